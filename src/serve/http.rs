//! The endpoints: who may ask, how much, and what becomes of it.

use super::answer::Writer;
use super::api::{Form, Job, Served};
use super::log::{InHand, Line, Tally};
use super::metrics::Metrics;
use super::refusal::{Json, Refusal};
use super::running::Running;
use super::{Options, sse};
use crate::engine::Engine;
use crate::tokenizer::Tokenizer;
use axum::body::{Body, Bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout_at;

/// Bytes of bodies that are held at a time, of all requests: what is over it is told to come again.
const BODIES: usize = 256 << 20;
/// How long heads and bodies may still come when the server stops.
pub(super) const LAST_BODIES: Duration = Duration::from_secs(1);
/// Bodies that are over the limit are read this many times as far and thrown away, since most clients hear of nothing before
/// they have sent all.
const THROWN_AWAY: usize = 16;

/// What the endpoints share.
pub(super) struct Shared {
    pub engine: Arc<Engine>,
    pub metrics: Arc<Metrics>,
    tokenizer: Option<Arc<Tokenizer>>,
    longest: usize,
    ends: Vec<i32>,
    name: String,
    created: u64,
    /// The hash of the key: hashes are compared in constant time.
    key: Option<blake3::Hash>,
    options: Options,
    /// Bodies that become tokens at a time: one a core.
    readers: Arc<Semaphore>,
    bodies: Arc<Semaphore>,
    random: RandomState,
    /// Whether no new requests are taken.
    pub stopping: watch::Sender<bool>,
    pub in_hand: Arc<InHand>,
}

impl Shared {
    pub fn new(served: super::Served, options: Options) -> Shared {
        let super::Served { name, engine, tokenizer, ends } = served;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Shared {
            longest: tokenizer.as_ref().map_or(1, Tokenizer::longest),
            tokenizer: tokenizer.map(Arc::new),
            engine: Arc::new(engine),
            metrics: Arc::default(),
            ends,
            name,
            created: now(),
            key: options.key.as_ref().map(|key| blake3::hash(key.as_bytes())),
            options,
            readers: Arc::new(Semaphore::new(cores)),
            bodies: Arc::new(Semaphore::new(BODIES)),
            random: RandomState::new(),
            stopping: watch::Sender::new(false),
            in_hand: Arc::default(),
        }
    }

    fn served(&self) -> Served<'_> {
        let options = self.engine.options();
        Served {
            name: &self.name,
            tokenizer: self.tokenizer.as_deref(),
            longest: self.longest,
            ends: &self.ends,
            vocab: self.engine.vocab(),
            context: options.context,
            queue: options.waiting,
        }
    }

    /// Another number each time, which nobody can tell beforehand.
    fn number(&self) -> u64 {
        self.random.hash_one(Instant::now())
    }

    /// Ends when what is in hand is to end.
    fn is_cut_off(&self) -> impl Future<Output = ()> + Send + use<> {
        is_set(&self.in_hand.cut_off)
    }

    /// The body of a request, which is JSON. A server that stops waits for no client to send it.
    async fn body(&self, headers: &HeaderMap, body: Body) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
        let stops = is_set(&self.stopping);
        let too_late = async {
            stops.await;
            tokio::time::sleep(LAST_BODIES).await;
        };
        before(self.whole_body(headers, body), too_late).await.unwrap_or_else(|| Err(Refusal::stopping()))
    }

    async fn whole_body(&self, headers: &HeaderMap, body: Body) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        let (deadline, most) = (tokio::time::Instant::now() + self.options.patience, self.options.body);
        let mut held = Vec::new();
        let mut permit = Arc::clone(&self.bodies).try_acquire_many_owned(0).map_err(|_| busy())?;
        let (mut body, mut count) = (body, 0usize);
        let late = || {
            let seconds = self.options.patience.as_secs();
            Refusal::new(StatusCode::REQUEST_TIMEOUT, None, format!("the body was not there within {seconds} s"))
        };
        while let Some(frame) = timeout_at(deadline, body.frame()).await.map_err(|_| late())? {
            let frame = frame.map_err(|e| Refusal::bad(format!("the body cannot be read: {e}")))?;
            let Ok(bytes) = frame.into_data() else { continue };
            count = count.saturating_add(bytes.len());
            if count > most {
                held = Vec::new();
                if count / THROWN_AWAY > most {
                    break;
                }
                continue;
            }
            let more = u32::try_from(bytes.len()).ok();
            let more = more.and_then(|n| Arc::clone(&self.bodies).try_acquire_many_owned(n).ok());
            permit.merge(more.ok_or_else(busy)?);
            held.extend_from_slice(&bytes);
        }
        if count > most {
            let text = format!("the body is over the limit of {most} bytes");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, None, text));
        }
        // Nothing else: a browser sends that from another site's page only where this server says it may, which it never does.
        if !kind.eq_ignore_ascii_case("application/json") {
            let text = "the body must be JSON, with `Content-Type: application/json`";
            return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, None, text));
        }
        Ok((held.into(), permit))
    }

    /// Reads a request's body by a function that may take long.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        headers: &HeaderMap,
        body: Body,
        read: impl FnOnce(&Shared, &[u8]) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let (bytes, held) = self.body(headers, body).await?;
        let turn = Arc::clone(&self.readers).acquire_owned().await.map_err(|e| Refusal::failed(e.to_string()))?;
        let shared = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            let read = read(&shared, &bytes);
            drop((held, turn));
            read
        });
        task.await.map_err(|e| Refusal::failed(format!("the request cannot be read: {e}")))?
    }

    async fn answer(
        self: &Arc<Self>,
        form: Form,
        tally: Arc<Tally>,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, Refusal> {
        let number = self.number();
        let job = self.read(headers, body, move |shared, body| shared.served().job(form, body, number)).await?;
        let begins = if form == Form::Chat { "chatcmpl" } else { "cmpl" };
        let Job { usage, ids, named, stream, .. } = job;
        let writer = Writer {
            form,
            id: format!("{begins}-{:016x}{:016x}", self.number(), self.number()),
            created: now(),
            model: self.name.clone(),
            tokenizer: self.tokenizer.clone(),
            ids,
            named,
            logprobs: job.requests.first().is_some_and(|r| r.sampling.logprobs.is_some()),
            usage,
            begun: vec![false; job.requests.len()],
        };
        let running = Running::begin(&self.engine, &self.metrics, &tally, self.tokenizer.as_ref(), job)?;
        match stream {
            true => Ok(sse::response(writer, running, tally, self.is_cut_off())),
            false => {
                let text = writer.whole(running).await?;
                Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
            }
        }
    }

    fn model(&self) -> Value {
        json!({
            "id": self.name, "object": "model", "created": self.created, "owned_by": "jitune", "root": self.name,
            "parent": null, "max_model_len": self.engine.options().context,
        })
    }
}

/// Ends when a flag is set.
fn is_set(flag: &watch::Sender<bool>) -> impl Future<Output = ()> + Send + use<> {
    let mut flag = flag.subscribe();
    async move {
        let _ = flag.wait_for(|set| *set).await;
    }
}

/// What comes of one, unless the other ends before it.
pub(super) async fn before<T>(one: impl Future<Output = T>, other: impl Future<Output = ()>) -> Option<T> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    std::future::poll_fn(|cx| match one.as_mut().poll(cx) {
        Poll::Pending => other.as_mut().poll(cx).map(|()| None),
        Poll::Ready(done) => Poll::Ready(Some(done)),
    })
    .await
}

fn busy() -> Refusal {
    let text = "the bodies of other requests take all the room that there is for them; try again later";
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Some("busy"), text)
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_secs())
}

/// Every endpoint.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(Arc::clone(&shared), guard))
        .with_state(shared)
}

/// What is answered where no connection is left for more.
pub(super) fn spare_router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(async || Refusal::full())
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(Arc::clone(&shared), guard))
        .with_state(shared)
}

type Here = State<Arc<Shared>>;

/// Has a line written of each request, and those that are refused counted.
async fn guard(State(shared): Here, mut request: Request, next: Next) -> Response {
    let line = Line::begin(&request, &shared.in_hand);
    request.extensions_mut().insert(Arc::clone(&line.tally));
    let response = admitted(&shared, request, next).await;
    if response.status().is_client_error() || response.status().is_server_error() {
        shared.metrics.refused(response.status().as_u16());
    }
    line.ends_with(response)
}

/// Who may ask, and when: anybody, always, whether the server is well; whoever has the key, the rest.
async fn admitted(shared: &Shared, request: Request, next: Next) -> Response {
    let (health, metrics) = (request.uri().path() == "/health", request.uri().path() == "/metrics");
    if let Some(key) = shared.key.filter(|_| !health) {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.as_bytes().split_at_checked(7));
        let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"Bearer ")).map(|(_, given)| given);
        if given.map(blake3::hash) != Some(key) {
            let text = "the API key is missing or wrong; it is sent as `Authorization: Bearer KEY`";
            return Refusal::new(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), text).into_response();
        }
    }
    let stopping = *shared.stopping.borrow();
    let mut response = match stopping && !metrics {
        true => Refusal::stopping().into_response(),
        false => {
            let answered = before(next.run(request), shared.is_cut_off()).await;
            answered.unwrap_or_else(|| Refusal::cut_off().into_response())
        }
    };
    if stopping {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

type Counts = Extension<Arc<Tally>>;

async fn completions(
    State(shared): Here,
    Extension(tally): Counts,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    shared.answer(Form::Completion, tally, &headers, body).await
}

async fn chat(
    State(shared): Here,
    Extension(tally): Counts,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    shared.answer(Form::Chat, tally, &headers, body).await
}

async fn models(State(shared): Here) -> Json {
    Json(json!({ "object": "list", "data": [shared.model()] }))
}

async fn model(State(shared): Here, id: Result<Path<String>, PathRejection>) -> Result<Json, Refusal> {
    match id {
        Ok(Path(id)) if id == shared.name => Ok(Json(shared.model())),
        Ok(Path(id)) => Err(shared.served().unknown(&id)),
        Err(e) => Err(Refusal::bad(e.body_text())),
    }
}

async fn tokenize(State(shared): Here, headers: HeaderMap, body: Body) -> Result<Json, Refusal> {
    let ids = shared.read(&headers, body, |shared, body| shared.served().tokenize(body)).await?;
    let most = shared.engine.options().context;
    Ok(Json(json!({ "count": ids.len(), "max_model_len": most, "tokens": ids })))
}

async fn detokenize(State(shared): Here, headers: HeaderMap, body: Body) -> Result<Json, Refusal> {
    let text = shared.read(&headers, body, |shared, body| shared.served().detokenize(body)).await?;
    Ok(Json(json!({ "prompt": text })))
}

async fn health(State(shared): Here) -> Result<Json, Refusal> {
    match shared.engine.failure() {
        Some(why) => Err(Refusal::failed(why)),
        None => Ok(Json(json!({ "status": "ok" }))),
    }
}

async fn metrics(State(shared): Here) -> Response {
    let text = shared.metrics.text(&shared.name, &shared.engine.stats());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn unknown(uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(100).collect();
    Refusal::new(StatusCode::NOT_FOUND, Some("not_found"), format!("there is nothing at {path}"))
}

async fn not_allowed(method: Method, uri: Uri) -> Refusal {
    let text = format!("{} does not take {method}", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed"), text)
}
