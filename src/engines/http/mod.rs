//! An engine behind OpenAI's HTTP API: a server that is there, or one that is started. What is asked of it and how its tokens are
//! counted, `docs/engines.md` says.

use super::process::Unanswered;
use super::service::{Gone, Heard, Service};
use jitune_peer::engine::{About, Stats, Submit};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

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
    /// Where a started server's standard output and error go.
    pub log: PathBuf,
    /// How long a server may take to start, load and warm up.
    pub start: Duration,
    /// How long a request may have nothing said of it before it has failed.
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
    /// Who it is.
    pub about: About,
    /// The model's name.
    pub model: String,
    /// The most tokens of a prompt and its answer together, where it says.
    pub context: Option<usize>,
}

impl Server {
    /// Starts a server or finds one, and waits until it is ready; gives up soon after `stop` has become true.
    pub fn start(options: Options, stop: &Arc<AtomicBool>) -> Result<Server, Unanswered> {
        let _ = (options, stop);
        todo!("the next commit has it")
    }

    /// The `n` most likely tokens at each position of a prompt that the server tells of: all, or the last one alone. Refused as
    /// unsupported where it tells of none.
    pub fn logprobs(&mut self, prompt: &[u32], n: usize) -> Result<Vec<Position>, Unanswered> {
        let _ = (prompt, n);
        todo!("the next commit has it")
    }

    /// What its `/metrics` say; all none where it has no such thing.
    pub fn stats(&mut self) -> Result<Stats, Unanswered> {
        todo!("the next commit has it")
    }

    /// Makes it forget what it keeps of earlier prompts; refused as unsupported where it has no way to be told.
    pub fn reset(&mut self) -> Result<(), Unanswered> {
        todo!("the next commit has it")
    }

    /// The number of its process, where it was started here.
    pub fn process_id(&self) -> Option<u32> {
        None
    }
}

impl Service for Server {
    fn now(&self) -> Duration {
        todo!("the next commit has it")
    }

    fn submit(&mut self, id: u64, request: Submit) -> Result<(), Gone> {
        let _ = (id, request);
        todo!("the next commit has it")
    }

    fn cancel(&mut self, id: u64) -> Result<(), Gone> {
        let _ = id;
        todo!("the next commit has it")
    }

    fn next(&mut self, until: Duration) -> Result<Option<Heard>, Gone> {
        let _ = until;
        todo!("the next commit has it")
    }
}
