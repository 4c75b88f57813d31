//! An engine that was started, however it is reached.

use super::http::{self, Dialect, Server};
use super::known::Places;
use super::process::{Engine, Unanswered};
use super::service::{Gone, Heard, Service};
use jitune_peer::engine::{About, Batching, Load, Loaded, Stats, Submit};
use jitune_peer::{Device, Refusal};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// How an engine is reached.
#[derive(Clone, Debug, PartialEq)]
pub enum Via {
    /// By the protocol of `docs/engines.md`, in a process of its own.
    Process,
    /// By OpenAI's HTTP API: a server that is there.
    Url(String),
    /// By OpenAI's HTTP API: a server that a line of `sh` starts, with {model}, {port}, {dtype}, {context} and {sequences} in it.
    Command(String),
}

/// An engine that was started.
pub enum Link {
    /// In a process.
    Process(Box<Engine>),
    /// Behind HTTP.
    Http(Box<Server>),
}

impl Link {
    /// Starts an engine under a label and loads a model; `options` are its settings.
    pub fn start(
        via: &Via,
        [label, name]: [&str; 2],
        options: &BTreeMap<String, String>,
        (places, on): (&Places, Device),
        load: Load,
        stop: &Arc<AtomicBool>,
    ) -> Result<(Link, Loaded), Unanswered> {
        let log = places.scratch.join(format!("{}.log", label.replace('/', "-")));
        let (url, line) = match via {
            Via::Process => {
                let command = places.command(name).map_err(Unanswered::Refused)?;
                let mut engine = Engine::start(command, log, on, options.clone(), stop)?;
                let loaded = engine.load(load)?;
                return Ok((Link::Process(Box::new(engine)), loaded));
            }
            Via::Url(url) => (url.clone(), None),
            Via::Command(line) => ("http://127.0.0.1:{port}".into(), Some(filled(line, &load, on))),
        };
        let wrong = |why: String| Unanswered::Refused(Refusal::failed(why));
        let dialect = match options.get("dialect") {
            Some(text) => Some(text.parse().map_err(|e| wrong(format!("dialect: {e}")))?),
            // It does not say itself whose it is.
            None => (name == Dialect::Transformers.name()).then_some(Dialect::Transformers),
        };
        let text = match options.get("prompts").map(String::as_str) {
            Some("text") => true,
            Some("ids") | None => false,
            Some(other) => return Err(wrong(format!("prompts={other} is neither text nor ids"))),
        };
        let vocab = places.vocab;
        let asked = http::Options {
            url,
            command: line.clone(),
            key: options.get("key").cloned(),
            model: options.get("model").cloned(),
            prefix: load.prefix,
            dialect,
            text,
            words: places.words.clone(),
            log,
            ..http::Options::default()
        };
        let server = Server::start(asked, stop)?;
        if server.context.is_some_and(|context| context < load.context) {
            let (has, needs) = (server.context.unwrap_or(0), load.context);
            let why = format!("it takes {has} tokens, and these workloads need {needs}");
            return Err(Unanswered::Refused(Refusal::unsupported(why)));
        }
        let mut notes = vec![format!("a server at {}", server.url())];
        if server.takes_text() {
            notes.push("prompts are texts of as many tokens, and its answers have no ids".into());
        }
        // transformers' server computes one request after another, unless it is told otherwise.
        let one = server.dialect == Dialect::Transformers
            && line.as_ref().is_some_and(|l| !l.contains("--continuous-batching"));
        let (batching, sequences) = if one { (Batching::Static, 1) } else { (Batching::Continuous, load.sequences) };
        let loaded = Loaded { batching, sequences, memory_bytes: None, vocab, notes };
        Ok((Link::Http(Box::new(server)), loaded))
    }

    /// Who it is.
    pub fn about(&self) -> &About {
        match self {
            Link::Process(engine) => &engine.about,
            Link::Http(server) => &server.about,
        }
    }

    /// `process` or `http`.
    pub fn transport(&self) -> &'static str {
        match self {
            Link::Process(_) => "process",
            Link::Http(_) => "http",
        }
    }

    /// The number of its process, where it was started here.
    pub fn process_id(&self) -> Option<u32> {
        match self {
            Link::Process(engine) => Some(engine.process_id()),
            Link::Http(server) => server.process_id(),
        }
    }

    /// What it has done and holds; nothing where it does not say.
    pub fn stats(&mut self) -> Stats {
        match self {
            Link::Process(engine) => engine.stats(),
            Link::Http(server) => server.stats(),
        }
        .unwrap_or_default()
    }

    /// Makes it forget what it keeps of earlier prompts; a server that cannot be told to is left as it is, since no two workloads have
    /// prompts that begin alike.
    pub fn reset(&mut self) -> Result<(), Unanswered> {
        match self {
            Link::Process(engine) => engine.reset(),
            Link::Http(server) => match server.reset() {
                Err(Unanswered::Refused(_)) => Ok(()),
                other => other,
            },
        }
    }

    /// Asks what it holds without waiting for it, where that is possible.
    pub fn sample(&mut self) -> Result<(), Gone> {
        match self {
            Link::Process(engine) => engine.sample(),
            Link::Http(_) => Ok(()),
        }
    }

    /// What was sampled since the last call.
    pub fn take_samples(&mut self) -> Vec<Stats> {
        match self {
            Link::Process(engine) => engine.take_samples(),
            Link::Http(_) => Vec::new(),
        }
    }
}

/// A line with what is to be loaded filled in, as words of `sh`.
fn filled(line: &str, load: &Load, on: Device) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let values = [
        ("{model}", quoted(&load.folder.to_string_lossy())),
        ("{dtype}", quoted(&load.dtype)),
        ("{context}", load.context.to_string()),
        ("{sequences}", load.sequences.to_string()),
        ("{cache}", (load.context * load.sequences).to_string()),
        ("{long_dtype}", long(&load.dtype).to_string()),
        ("{device}", if let Device::Cuda(ordinal) = on { format!("cuda:{ordinal}") } else { "cpu".into() }),
        ("{threads}", if let Device::Cpu(threads) = on { threads } else { here() }.to_string()),
        ("{prefix}", if load.prefix { "true" } else { "false" }.to_string()),
    ];
    values.iter().fold(line.to_string(), |line, (name, value)| line.replace(name, value))
}

/// Threads of this machine.
fn here() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// A precision as PyTorch's users write it.
fn long(dtype: &str) -> &str {
    match dtype {
        "bf16" => "bfloat16",
        "f16" => "float16",
        "f32" => "float32",
        other => other,
    }
}

impl Service for Link {
    fn now(&self) -> Duration {
        match self {
            Link::Process(engine) => engine.now(),
            Link::Http(server) => server.now(),
        }
    }

    fn submit(&mut self, id: u64, request: Submit) -> Result<(), Gone> {
        match self {
            Link::Process(engine) => engine.submit(id, request),
            Link::Http(server) => server.submit(id, request),
        }
    }

    fn cancel(&mut self, id: u64) -> Result<(), Gone> {
        match self {
            Link::Process(engine) => engine.cancel(id),
            Link::Http(server) => server.cancel(id),
        }
    }

    fn next(&mut self, until: Duration) -> Result<Option<Heard>, Gone> {
        match self {
            Link::Process(engine) => engine.next(until),
            Link::Http(server) => server.next(until),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_what_is_to_be_loaded() {
        let load = Load {
            folder: "/m o'dels/x".into(),
            dtype: "bf16".into(),
            context: 2048,
            sequences: 32,
            ..Load::default()
        };
        let line = "serve {model} --port {port} --dtype {long_dtype} -c {context} -n {sequences} --p {prefix} --on {device} -t {threads}";
        let line = filled(line, &load, Device::Cpu(3));
        // The port is found when it is started.
        assert_eq!(
            line,
            r"serve '/m o'\''dels/x' --port {port} --dtype bfloat16 -c 2048 -n 32 --p false --on cpu -t 3"
        );
    }
}
