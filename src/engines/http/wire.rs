//! Requests and their answers over HTTP/1.1, each in a task of its own.

use super::answer::{Answer, message, short};
use super::sse::Events;
use crate::engines::service::What;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{HttpConnector, HttpInfo, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde_json::Value;
use std::collections::HashSet;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::{timeout, timeout_at};

/// Idle connections are closed after this long: many servers close theirs after 5 s, and a request that meets that is lost.
const IDLE: Duration = Duration::from_secs(4);
/// How long a connection may take to open.
const CONNECT: Duration = Duration::from_secs(10);
/// Most bytes of an error that are read, and how long it may take.
const ERROR_BYTES: usize = 64 << 10;
const ERROR_TIME: Duration = Duration::from_secs(10);
/// How long the end of a body is waited for when the answer is whole, so that its connection serves again.
const REST_TIME: Duration = Duration::from_secs(1);

/// A whole answer to something that is no stream.
pub(super) struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The body, UTF-8 or made so.
    pub body: String,
}

/// Connections to one server.
pub(super) struct Wire {
    client: Client<HttpConnector, Full<Bytes>>,
    /// Without connections that were used before.
    anew: Client<HttpConnector, Full<Bytes>>,
    /// Our ends of connections that something was answered on.
    used: Mutex<HashSet<SocketAddr>>,
    /// `http://HOST:PORT` and what comes before `/v1`.
    pub base: String,
    key: Option<HeaderValue>,
    /// When the service was opened.
    pub begun: Instant,
}

impl Wire {
    /// Opens nothing yet.
    pub fn new(base: String, key: Option<&str>) -> Result<Wire, String> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT));
        let mut builder = Client::builder(TokioExecutor::new());
        let client = builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE).build(connector.clone());
        let anew = builder.pool_max_idle_per_host(0).build(connector);
        let key = key.map(|key| {
            let mut value =
                HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| "the key is no header's value")?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        });
        Ok(Wire { client, anew, used: Mutex::default(), base, key: key.transpose()?, begun: Instant::now() })
    }

    fn request(&self, path: &str, body: Option<Bytes>) -> Result<Request<Full<Bytes>>, String> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if body.is_some() {
            request =
                request.header(CONTENT_TYPE, "application/json").header(ACCEPT, "text/event-stream, application/json");
        }
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, key);
        }
        request.body(Full::new(body.unwrap_or_default())).map_err(|e| format!("{}{path}: {e}", self.base))
    }

    /// The head of the answer. A request that met a connection that was used before, and closed meanwhile, is asked again on a new one.
    async fn send(&self, path: &str, body: Option<Bytes>) -> Result<Response<Incoming>, String> {
        let mut request = self.request(path, body.clone())?;
        let connection = capture_connection(&mut request);
        let used = || self.used.lock().unwrap_or_else(PoisonError::into_inner);
        match self.client.request(request).await {
            Ok(response) => {
                used().extend(response.extensions().get().map(HttpInfo::local_addr));
                Ok(response)
            }
            Err(e) => {
                let mut extras = Default::default();
                connection.connection_metadata().iter().for_each(|c| c.get_extras(&mut extras));
                let local = extras.get().map(HttpInfo::local_addr);
                if !local.is_some_and(|local| used().remove(&local)) {
                    return Err(reasons(&e));
                }
                self.anew.request(self.request(path, body)?).await.map_err(|e| reasons(&e))
            }
        }
    }

    /// Asks something that is answered whole, in at most so many bytes.
    pub async fn ask(&self, path: &str, body: Option<&Value>, most: usize) -> Result<Reply, String> {
        let response = self.send(path, body.map(|b| b.to_string().into())).await?;
        let (status, mut body) = (response.status(), response.into_body());
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            bytes.extend_from_slice(&frame.map_err(|e| reasons(&e))?.into_data().unwrap_or_default());
            if bytes.len() > most {
                return Err(format!("an answer of over {most} bytes"));
            }
        }
        Ok(Reply { status, body: String::from_utf8_lossy(&bytes).into_owned() })
    }

    /// Asks for an answer of `most` tokens in pieces, and tells each with the moment of its receipt; the end too, unless it returns why
    /// there is none. `prompt` is how many tokens the server must say that the prompt had, where it says so.
    pub async fn stream(
        &self,
        path: &str,
        body: Value,
        (most, prompt): (usize, Option<usize>),
        silence: Duration,
        mut tell: impl FnMut(Duration, What),
    ) -> Result<(), String> {
        let silent = || format!("nothing was heard of it for {:.1} s", silence.as_secs_f64());
        let body = Bytes::from(body.to_string());
        let response = timeout(silence, self.send(path, Some(body))).await.map_err(|_| silent())??;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        let kind = response.headers().get(CONTENT_TYPE).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        if let Some(kind) = kind.filter(|kind| kind.starts_with("application/json") || kind.starts_with("text/html")) {
            return Err(format!("its answer is no stream of events but {}", short(&kind)));
        }
        let mut body = response.into_body();
        let (mut events, mut answer) = (Events::default(), Answer::new(most, prompt));
        let mut deadline = tokio::time::Instant::now() + silence;
        loop {
            let frame = timeout_at(deadline, body.frame()).await.map_err(|_| silent())?;
            let at = self.begun.elapsed();
            let Some(frame) = frame else {
                events.end(|event| answer.event(event, at, &mut tell))?;
                return answer.closed(at, tell);
            };
            let frame = frame.map_err(|e| format!("it broke off: {}", reasons(&e)))?;
            let Ok(bytes) = frame.into_data() else { continue };
            events.push(&bytes, |event| answer.event(event, at, &mut tell))?;
            if answer.done() {
                break;
            }
            if answer.moved() {
                deadline = tokio::time::Instant::now() + silence;
            }
        }
        let mut rest = 0;
        let end = async {
            while let Some(Ok(frame)) = body.frame().await {
                rest += frame.into_data().map_or(0, |bytes| bytes.len());
                if rest > ERROR_BYTES {
                    return;
                }
            }
        };
        let _ = timeout(REST_TIME, end).await;
        Ok(())
    }
}

/// What a refusal says.
async fn refused(response: Response<Incoming>) -> String {
    let (status, mut body) = (response.status(), response.into_body());
    let mut bytes = Vec::new();
    let read = async {
        while let Some(Ok(frame)) = body.frame().await {
            bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
            if bytes.len() > ERROR_BYTES {
                return;
            }
        }
    };
    let _ = timeout(ERROR_TIME, read).await;
    said(status, &String::from_utf8_lossy(&bytes))
}

/// A status and what its body says.
pub(super) fn said(status: StatusCode, body: &str) -> String {
    match message(body).unwrap_or_else(|| short(body)) {
        text if text.is_empty() => status.to_string(),
        text => format!("{status}: {text}"),
    }
}

/// An error with what is behind it.
fn reasons(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut inner = error.source();
    while let Some(e) = inner {
        let more = e.to_string();
        if !text.contains(&more) {
            text += ": ";
            text += &more;
        }
        inner = e.source();
    }
    text
}
