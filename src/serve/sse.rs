//! Answers as a stream of server-sent events: a chunk a token, and `[DONE]`.

use super::answer::Writer;
use super::running::Running;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use http_body::Frame;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// Bytes of events that are sent together at most, when many tokens are there already.
const TOGETHER: usize = 16 << 10;

/// The body of a streamed answer. It has the job, so that a client that leaves, whose body is dropped, ends it.
struct Sse {
    writer: Writer,
    running: Running,
    done: bool,
}

/// Streams the answers to a job.
pub(super) fn response(writer: Writer, running: Running) -> Response {
    let mut response = Body::new(Sse { writer, running, done: false }).into_response();
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
        let Sse { writer, running, done } = self.get_mut();
        let mut text = String::new();
        while !*done && text.len() < TOGETHER {
            let chunks = match running.poll_next(cx) {
                Poll::Pending if text.is_empty() => return Poll::Pending,
                Poll::Pending => break,
                Poll::Ready(Some(Ok(piece))) => writer.chunks(piece),
                // The status is said already.
                Poll::Ready(Some(Err(refusal))) => {
                    *done = true;
                    vec![refusal.json()]
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
}
