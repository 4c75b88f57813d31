//! Answers as a stream of server-sent events: a chunk a token, and `[DONE]`.

use super::answer::Writer;
use super::log::Tally;
use super::refusal::Refusal;
use super::running::Running;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use http_body::Frame;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Bytes of events that are sent together at most, when many tokens are there already.
const TOGETHER: usize = 16 << 10;

/// The body of a streamed answer. It has the job, so that a client that leaves, whose body is dropped, ends it.
struct Sse {
    writer: Writer,
    running: Running,
    tally: Arc<Tally>,
    /// When the server ends it.
    cut_off: Pin<Box<dyn Future<Output = ()> + Send>>,
    done: bool,
}

/// Streams the answers to a job, until `cut_off`.
pub(super) fn response(
    writer: Writer,
    running: Running,
    tally: Arc<Tally>,
    cut_off: impl Future<Output = ()> + Send + 'static,
) -> Response {
    let sse = Sse { writer, running, tally, cut_off: Box::pin(cut_off), done: false };
    let mut response = Body::new(sse).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // What stands between would otherwise wait for more (nginx).
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

impl http_body::Body for Sse {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Sse { writer, running, tally, cut_off, done } = self.get_mut();
        let mut text = String::new();
        let mut over = !*done && cut_off.as_mut().poll(cx).is_ready();
        while !*done && text.len() < TOGETHER {
            let next = match std::mem::take(&mut over) {
                true => Poll::Ready(Some(Err(Refusal::cut_off()))),
                false => running.poll_next(cx),
            };
            let chunks = match next {
                Poll::Pending if text.is_empty() => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Some(Ok(piece))) => writer.chunks(piece),
                // The status is said already.
                Poll::Ready(Some(Err(refusal))) => {
                    *done = true;
                    let chunk = refusal.json();
                    let _ = tally.error.set(refusal);
                    vec![chunk]
                }
                Poll::Ready(None) => {
                    *done = true;
                    writer.last(running.usage).into_iter().collect()
                }
            };
            chunks.iter().for_each(|chunk| text += &format!("data: {chunk}\n\n"));
            if *done {
                text += "data: [DONE]\n\n";
            }
        }
        Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(text.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }
}
