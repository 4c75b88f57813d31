//! An engine behind OpenAI's HTTP API: a server that is there, or one that is started. What is asked of it and how its tokens are
//! counted, `docs/engines.md` says.

mod answer;
mod logprobs;
mod metrics;
mod request;
#[cfg(test)]
mod script;
mod sse;
mod start;
#[cfg(test)]
mod tests;
mod wire;
mod words;

pub use request::Dialect;
pub use words::Words;

use super::process::Unanswered;
use super::service::{Gone, Heard, Service, What};
use jitune_peer::Refusal;
use jitune_peer::engine::{About, End, Finish, Stats, Submit};
use start::{Child, LOOK};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::AbortHandle;
use wire::{Reply, Wire, said};

/// How long a server may take to say what it has done, or to forget.
const STATS: Duration = Duration::from_secs(60);

/// Which server, and how long it may take.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it is: `http://HOST:PORT`, with or without `/v1`. `{port}` in it is a port that is free now.
    pub url: String,
    /// A line of `sh` that starts it; none where it runs already. `{port}` in it is the port of the url.
    pub command: Option<String>,
    /// What is sent as `Authorization: Bearer KEY`.
    pub key: Option<String>,
    /// The model's name; none for the first that it lists.
    pub model: Option<String>,
    /// Whose server it is; none for what it says itself.
    pub dialect: Option<Dialect>,
    /// Whether prompts are sent as text, of as many tokens: for a server that takes no ids.
    pub text: bool,
    /// What these texts are made of; none where the model's tokenizer has no such words or is not there.
    pub words: Option<Arc<Words>>,
    /// Whether token ids are asked for, where it has them.
    pub ids: bool,
    /// Whether what is kept of one prompt may serve another, for a server that is told with each request (llama-server); others have
    /// an option for it when they are started.
    pub prefix: bool,
    /// Where a started server's standard output and error go.
    pub log: PathBuf,
    /// How long a server may take to start, load and warm up.
    pub start: Duration,
    /// How long a request may get no token before it has failed.
    pub silence: Duration,
}

impl Default for Options {
    /// A server that runs at port 8000 of this machine.
    fn default() -> Options {
        Options {
            url: "http://127.0.0.1:8000".into(),
            command: None,
            key: None,
            model: None,
            dialect: None,
            text: false,
            words: None,
            ids: true,
            prefix: false,
            log: "server.log".into(),
            start: Duration::from_secs(900),
            silence: Duration::from_secs(300),
        }
    }
}

/// The most likely tokens at one position of a prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Position {
    /// The position: what is told here predicts the token after it.
    pub at: usize,
    /// The most likely tokens, the most likely first.
    pub top: Vec<Logprob>,
}

/// A token's log-probability.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logprob {
    /// The token as the server names it.
    pub token: String,
    /// Its id, where the server says.
    pub id: Option<u32>,
    /// The natural logarithm of its probability.
    pub logprob: f32,
}

/// A server that answers.
pub struct Server {
    /// Who it is; of the engine's device it says nothing.
    pub about: About,
    /// The model's name.
    pub model: String,
    /// The most tokens of a prompt and its answer together, where it says.
    pub context: Option<usize>,
    /// Whose server it is.
    pub dialect: Dialect,
    options: Options,
    /// Requests that have not ended.
    open: BTreeMap<u64, AbortHandle>,
    tell: Sender<Heard>,
    heard: Receiver<Heard>,
    wire: Arc<Wire>,
    /// There until it is dropped.
    runtime: Option<Runtime>,
    child: Option<Child>,
    stop: Arc<AtomicBool>,
}

impl Server {
    /// Starts a server or finds one, and waits until it is ready; gives up soon after `stop` has become true. A server that was started
    /// here is ended with the whole group of its process when this is dropped, or when this process ends.
    pub fn start(options: Options, stop: &Arc<AtomicBool>) -> Result<Server, Unanswered> {
        start::start(options, stop)
    }

    /// The `n` most likely tokens at each position of a prompt that the server tells of: all, or the last one alone. Refused as
    /// unsupported where it tells of none, or of fewer than `n` tokens. Nothing else may be on its way that is timed.
    pub fn logprobs(&mut self, prompt: &[u32], n: usize) -> Result<Vec<Position>, Unanswered> {
        self.ask_logprobs(prompt, n)
    }

    /// What its `/metrics` say; all none where it has no such thing.
    pub fn stats(&mut self) -> Result<Stats, Unanswered> {
        let reply = self.asked("/metrics", None)?;
        Ok(if reply.status.is_success() { metrics::stats(&reply.body) } else { Stats::default() })
    }

    /// Makes it forget what it keeps of earlier prompts; refused as unsupported where it has no way to be told (vLLM has one with
    /// `VLLM_SERVER_DEV_MODE=1`).
    pub fn reset(&mut self) -> Result<(), Unanswered> {
        let path = match self.dialect {
            Dialect::Vllm => "/reset_prefix_cache",
            Dialect::Sglang => "/flush_cache",
            // With each request.
            Dialect::Llama if !self.options.prefix => return Ok(()),
            _ => {
                let why = format!("{} cannot be told to forget", self.dialect.name());
                return Err(Unanswered::Refused(Refusal::unsupported(why)));
            }
        };
        let reply = self.asked(path, Some(&serde_json::json!({})))?;
        match reply.status.is_success() {
            true => Ok(()),
            false => {
                Err(Unanswered::Refused(Refusal::unsupported(format!("{path}: {}", said(reply.status, &reply.body)))))
            }
        }
    }

    /// The number of its process, where it was started here: that of the command's shell or, of a single command, its own.
    pub fn process_id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether prompts are sent to it as text.
    pub(super) fn takes_text(&self) -> bool {
        self.options.text || self.dialect == Dialect::Transformers
    }

    /// Where it is: `http://HOST:PORT`.
    pub fn url(&self) -> &str {
        &self.wire.base
    }

    fn asked(&mut self, path: &str, body: Option<&serde_json::Value>) -> Result<Reply, Unanswered> {
        let reply = self.get(path, body, STATS).ok_or(Unanswered::Interrupted)?;
        if reply.is_err() {
            self.there()?;
        }
        reply.map_err(|why| Unanswered::Refused(Refusal::failed(why)))
    }

    fn there(&mut self) -> Result<(), Gone> {
        self.child.as_mut().map_or(Ok(()), Child::there)
    }
}

impl Service for Server {
    fn now(&self) -> Duration {
        self.wire.begun.elapsed()
    }

    fn submit(&mut self, id: u64, request: Submit) -> Result<(), Gone> {
        let Some(runtime) = &self.runtime else { return Err(Gone { why: "it is closed".into() }) };
        let (wire, tell, dialect) = (Arc::clone(&self.wire), self.tell.clone(), self.dialect);
        let (model, silence) = (self.model.clone(), self.options.silence);
        let (ids, prefix) = (self.options.ids, self.options.prefix);
        let words = self.options.words.clone().filter(|_| self.takes_text());
        let task = runtime.spawn(async move {
            let text = words.map(|words| words.text(&request.prompt));
            // A text that its tokenizer reads otherwise is another prompt.
            let prompt = text.as_ref().map(|_| request.prompt.len());
            let body = dialect.submit(&model, &request, text, ids, prefix);
            // Nobody listens any more where it fails.
            let say = |at, what| drop(tell.send(Heard { id, at, what }));
            if let Err(why) = wire.stream(dialect.path(), body, (request.most, prompt), silence, say).await {
                let what = What::End(End { why: Finish::Failed, error: Some(why), cached: None });
                say(wire.begun.elapsed(), what);
            }
        });
        self.open.insert(id, task.abort_handle());
        Ok(())
    }

    fn cancel(&mut self, id: u64) -> Result<(), Gone> {
        if let Some(task) = self.open.get(&id) {
            // Its connection is closed with it, by which the server knows.
            task.abort();
            let what = What::End(End { why: Finish::Cancelled, error: None, cached: None });
            let _ = self.tell.send(Heard { id, at: self.now(), what });
        }
        Ok(())
    }

    fn next(&mut self, until: Duration) -> Result<Option<Heard>, Gone> {
        loop {
            let left = until.saturating_sub(self.now());
            match self.heard.recv_timeout(left.min(LOOK)) {
                // What comes after an end was said before the end was known.
                Ok(heard) if !self.open.contains_key(&heard.id) => {}
                Ok(heard) => {
                    if let What::End(end) = &heard.what {
                        self.open.remove(&heard.id);
                        if end.why == Finish::Failed {
                            self.there()?;
                        }
                    }
                    return Ok(Some(heard));
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.there()?;
                    if left <= LOOK {
                        return Ok(None);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Err(Gone { why: "it is closed".into() }),
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Connections first, so that a server that drains has nothing to wait for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
