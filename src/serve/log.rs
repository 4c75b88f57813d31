//! A line for each request, once it has ended. Of what a client wrote it has the method and the path, and nothing else: no
//! prompt, no key, no answer.

use super::refusal::Refusal;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use http_body::{Body as _, Frame, SizeHint};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::watch;

/// Characters of a method and of a path that are written.
const SHOWN: usize = 200;

/// Requests whose end is still to come.
#[derive(Default)]
pub(super) struct InHand {
    pub count: AtomicUsize,
    /// Whether they are to end now.
    pub cut_off: watch::Sender<bool>,
}

/// What a line says of the answers to a request.
#[derive(Default)]
pub(super) struct Tally {
    pub prompt: AtomicUsize,
    pub answer: AtomicUsize,
    /// When the first token was there.
    pub first: OnceLock<Instant>,
    /// What ended a stream, whose status was said already.
    pub error: OnceLock<Refusal>,
}

/// A request in hand. Its line is written when it is dropped.
pub(super) struct Line {
    method: String,
    path: String,
    begun: Instant,
    status: Option<StatusCode>,
    refusal: Option<Refusal>,
    /// Whether the connection has all of the answer.
    whole: bool,
    pub tally: Arc<Tally>,
    in_hand: Arc<InHand>,
}

impl Line {
    /// A request that came.
    pub fn begin(request: &Request, in_hand: &Arc<InHand>) -> Line {
        in_hand.count.fetch_add(1, Ordering::Relaxed);
        let shown = |text: &str| text.chars().take(SHOWN).collect();
        Line {
            method: shown(request.method().as_str()),
            path: shown(request.uri().path()),
            begun: Instant::now(),
            status: None,
            refusal: None,
            whole: false,
            tally: Arc::default(),
            in_hand: Arc::clone(in_hand),
        }
    }

    /// A response whose end is that of the request.
    pub fn ends_with(mut self, mut response: Response) -> Response {
        self.status = Some(response.status());
        self.refusal = response.extensions_mut().remove();
        // Of neither anything is asked for.
        self.whole = self.method == Method::HEAD.as_str() || response.body().is_end_stream();
        response.map(|body| Body::new(Logged { body, line: self }))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.in_hand.count.fetch_sub(1, Ordering::Relaxed);
        let Line { method, path, begun, status, .. } = self;
        let ms = |until: Instant| until.duration_since(*begun).as_millis() as u64;
        let (status, total_ms) = (status.map(|status| status.as_u16()), ms(Instant::now()));
        let refusal = self.refusal.as_ref().or(self.tally.error.get());
        let ended = match refusal {
            Some(refusal) if *refusal == Refusal::cut_off() => "stopped",
            Some(refusal) if refusal.status == StatusCode::INTERNAL_SERVER_ERROR => "failed",
            Some(_) => "refused",
            None if self.whole => "done",
            // Of one that reads nothing.
            None if *self.in_hand.cut_off.borrow() => "stopped",
            None => "cancelled",
        };
        // What asks every few seconds would hide the rest.
        if ended == "done" && matches!(path.as_str(), "/health" | "/metrics") {
            tracing::debug!(target: "jitune::serve", %method, ?path, status, total_ms, "{ended}");
            return;
        }
        let reason = refusal.map(Refusal::reason);
        let [prompt, answer] = [&self.tally.prompt, &self.tally.answer].map(|count| count.load(Ordering::Relaxed));
        let answers = prompt > 0;
        tracing::info!(
            target: "jitune::serve",
            %method,
            // Written as Rust writes texts: nothing in it is for a terminal to obey.
            ?path,
            status,
            reason,
            prompt_tokens = answers.then_some(prompt),
            generated_tokens = answers.then_some(answer),
            first_token_ms = self.tally.first.get().map(|first| ms(*first)),
            total_ms,
            "{ended}"
        );
    }
}

/// A body with the line of its request.
struct Logged {
    body: Body,
    line: Line,
}

impl http_body::Body for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.line.whole = matches!(frame, Poll::Ready(None)) || self.body.is_end_stream();
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
