//! A server is started, or found, and waited for.

use super::request::Dialect;
use super::wire::{Reply, Wire, said};
use super::{Options, Server};
use crate::engines::process::Unanswered;
use crate::engines::service::Gone;
use crate::worker::{Lost, Process, below, lines};
use jitune_peer::Refusal;
use jitune_peer::engine::About;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// How often it is looked whether a server is ready, or still there.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// How long an answer may take that needs no model.
const SOON: Duration = Duration::from_secs(10);
/// Most bytes of an answer that is no stream: metrics of many engines, log-probabilities of a long prompt.
pub(super) const MOST: usize = 64 << 20;
/// How long a server may take to end when it is asked to, before it is killed.
const ENDING: Duration = Duration::from_secs(10);
/// Lines of its log that are shown when it is lost.
const SHOWN_LINES: usize = 5;

/// Runs a line of sh in its place, and beside it what ends the whole group when the pipe from here is closed, however this process ends.
const KEEPER: &str =
    "exec 3<&0; { cat <&3 >/dev/null; kill -KILL 0; } & exec sh -c \"$1\" </dev/null >>\"$2\" 2>&1 3<&-";

/// A server that was started here.
pub(super) struct Child {
    process: Process<()>,
    log: PathBuf,
    /// How it ended, once that is known.
    gone: Option<Gone>,
}

impl Child {
    fn start(line: &str, log: &Path) -> Result<Child, Refusal> {
        let failed = |e: std::io::Error| Refusal::failed(format!("{}: {e}", log.display()));
        let errors = File::create(log).map_err(failed)?;
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh", line]).arg(log).stderr(Stdio::from(errors));
        // Nothing is said here; the pipe is open as long as anything runs.
        let receive = |out: &mut std::process::ChildStdout| {
            let mut part = [0; 4096];
            while out.read(&mut part)? > 0 {}
            Ok(None)
        };
        let process = Process::start(command, receive).map_err(|e| Refusal::failed(e.to_string()))?;
        Ok(Child { process, log: log.into(), gone: None })
    }

    /// The number of its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Whether it still runs.
    pub fn there(&mut self) -> Result<(), Gone> {
        if let Some(gone) = &self.gone {
            return Err(gone.clone());
        }
        if !self.process.has_ended() {
            return Ok(());
        }
        let how = match self.process.ended() {
            Lost::Ended { how, .. } => format!("the server ended: {how}"),
            other => other.to_string(),
        };
        Err(self.gone.insert(Gone { why: lines::last_words(&how, &self.log, SHOWN_LINES) }).clone())
    }
}

impl Drop for Child {
    /// Asks it to end, so that it gives back what outlives a process; then it is killed, with all that it started.
    fn drop(&mut self) {
        let begun = Instant::now();
        let group = Pid::from_raw(self.process.id() as i32);
        // Its number is its own until it is waited for.
        if let Some(group) = group.filter(|_| self.gone.is_none()) {
            // What it started may go on in a group of its own when its parent is gone.
            let others: Vec<_> =
                below(group).into_iter().filter_map(|p| pidfd_open(p, PidfdFlags::empty()).ok()).collect();
            let _ = kill_process_group(group, Signal::TERM);
            while !self.process.has_ended() && begun.elapsed() < ENDING {
                std::thread::sleep(LOOK / 5);
            }
            for process in others {
                // It only fails when there is none any more.
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
        }
    }
}

/// As [`Server::start`].
pub(super) fn start(options: Options, stop: &Arc<AtomicBool>) -> Result<Server, Unanswered> {
    let refuse = |e: String| Unanswered::Refused(Refusal::failed(e));
    let (base, line) = place(&options).map_err(refuse)?;
    let wire = Wire::new(base, options.key.as_deref()).map_err(refuse)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("http")
        .enable_all()
        .build()
        .map_err(|e| refuse(format!("the system gives no threads for connections: {e}")))?;
    let child = line.map(|line| Child::start(&line, &options.log)).transpose().map_err(Unanswered::Refused)?;
    let (tell, heard) = channel();
    let mut server = Server {
        about: About::default(),
        model: options.model.clone().unwrap_or_default(),
        context: None,
        dialect: options.dialect.unwrap_or_default(),
        open: BTreeMap::new(),
        tell,
        heard,
        wire: Arc::new(wire),
        runtime: Some(runtime),
        child,
        stop: Arc::clone(stop),
        options,
    };
    server.wait()?;
    server.meet()?;
    if server.takes_text() && server.options.words.is_none() {
        let why = "it takes prompts as text alone, and the model's folder or file has no tokenizer with words of one token each";
        return Err(Unanswered::Refused(Refusal::unsupported(why)));
    }
    Ok(server)
}

/// The address before `/v1`, and the line that starts a server there.
fn place(options: &Options) -> Result<(String, Option<String>), String> {
    let mut url = options.url.trim().trim_end_matches('/').to_owned();
    let mut line = options.command.clone();
    if url.contains("{port}") {
        let free = TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .map_err(|e| format!("no port is free: {e}"))?;
        url = url.replace("{port}", &free.port().to_string());
    }
    let parsed: hyper::Uri = url.parse().map_err(|e| format!("`{url}` is no address: {e}"))?;
    if parsed.scheme_str() != Some("http") || parsed.query().is_some() {
        return Err(format!(
            "`{url}` is no address of the form http://HOST:PORT; put something that speaks TLS in between"
        ));
    }
    let port = parsed.port_u16().unwrap_or(80).to_string();
    line = line.map(|line| line.replace("{port}", &port));
    Ok((url.strip_suffix("/v1").unwrap_or(&url).to_owned(), line))
}

impl Server {
    /// Waits until it says that it is ready.
    fn wait(&mut self) -> Result<(), Unanswered> {
        let begun = Instant::now();
        loop {
            let why = match self.ready() {
                Ok(()) => return Ok(()),
                Err(why) => why,
            };
            if self.stop.load(Ordering::Relaxed) {
                return Err(Unanswered::Interrupted);
            }
            if let Some(child) = &mut self.child {
                child.there().map_err(|gone| Unanswered::Refused(Refusal::failed(gone.why)))?;
            } else if why.connect {
                let fix = "start the server first, or give the command that starts it";
                return Err(Unanswered::Refused(Refusal::missing(format!("{}: {}", self.wire.base, why.text), fix)));
            }
            if begun.elapsed() > self.options.start {
                let why = format!("it is not ready after {:.0} s: {}", self.options.start.as_secs_f64(), why.text);
                let why =
                    self.child.as_ref().map_or(why.clone(), |child| lines::last_words(&why, &child.log, SHOWN_LINES));
                return Err(Unanswered::Refused(Refusal::failed(why)));
            }
            std::thread::sleep(LOOK);
        }
    }

    fn ready(&self) -> Result<(), NotReady> {
        let health = self.soon("/health").map_err(|text| NotReady { text, connect: true })?;
        let models = match health.status.as_u16() {
            200..300 => return Ok(()),
            // It has no such thing, or not for everybody.
            401 | 403 | 404 | 405 | 501 => self.soon("/v1/models").map_err(|text| NotReady { text, connect: false })?,
            _ => health,
        };
        match models.status.is_success() {
            true => Ok(()),
            false => Err(NotReady { text: said(models.status, &models.body), connect: false }),
        }
    }

    /// Asks who it is and what it has.
    fn meet(&mut self) -> Result<(), Unanswered> {
        let refuse = |why: String| Unanswered::Refused(Refusal::failed(why));
        let reply = self.get("/v1/models", None, SOON).ok_or(Unanswered::Interrupted)?.map_err(refuse)?;
        let listed: Value = serde_json::from_str(&reply.body).unwrap_or_default();
        let list = listed["data"].as_array().map(Vec::as_slice).unwrap_or_default();
        let named = |entry: &&Value| entry["id"].as_str() == self.options.model.as_deref();
        let entry = if self.options.model.is_some() { list.iter().find(named) } else { list.first() };
        match entry {
            None if self.options.model.is_none() || !list.is_empty() => {
                let names: Vec<&str> = list.iter().filter_map(|e| e["id"].as_str()).collect();
                let why = match names.is_empty() {
                    true => format!("/v1/models names no model: {}", said(reply.status, &reply.body)),
                    false => format!("there is no model `{}` but {}", self.model, names.join(", ")),
                };
                return Err(refuse(why));
            }
            // Its name was given, and the server has no list.
            None => (),
            Some(entry) => {
                self.model = entry["id"].as_str().unwrap_or_default().to_owned();
                self.context = entry["max_model_len"].as_u64().map(|n| n as usize);
                let owner = entry["owned_by"].as_str().unwrap_or_default();
                self.dialect = self.options.dialect.unwrap_or_else(|| Dialect::of(owner));
            }
        }
        self.about.engine = self.dialect.name().into();
        if let Some((path, name)) = self.dialect.version() {
            let told = self.soon(path).ok().and_then(|reply| serde_json::from_str::<Value>(&reply.body).ok());
            self.about.version = told.and_then(|v| Some(v[name].as_str()?.to_owned())).unwrap_or_default();
        }
        Ok(())
    }

    fn soon(&self, path: &str) -> Result<Reply, String> {
        self.get(path, None, SOON).unwrap_or_else(|| Err("interrupted".into()))
    }

    /// Asks something that is answered whole; none when the run was interrupted.
    pub(super) fn get(&self, path: &str, body: Option<&Value>, most: Duration) -> Option<Result<Reply, String>> {
        let Some(runtime) = &self.runtime else { return Some(Err("it is closed".into())) };
        let begun = Instant::now();
        runtime.block_on(async {
            let mut asked = std::pin::pin!(self.wire.ask(path, body, MOST));
            loop {
                match timeout(LOOK, &mut asked).await {
                    Ok(reply) => return Some(reply),
                    Err(_) if self.stop.load(Ordering::Relaxed) => return None,
                    Err(_) if begun.elapsed() > most => {
                        return Some(Err(format!("{path}: no answer within {:.0} s", most.as_secs_f64())));
                    }
                    Err(_) => (),
                }
            }
        })
    }
}

struct NotReady {
    text: String,
    /// Nothing answered at all.
    connect: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::{CommandExt, ExitStatusExt};

    #[test]
    fn what_was_started_ends_when_nobody_holds_its_pipe() {
        let place = tempfile::tempdir().unwrap();
        let log = place.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh", "trap '' TERM; echo there; sleep 1000"]).arg(&log);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0).spawn().unwrap();
        let begun = Instant::now();
        while std::fs::read_to_string(&log).unwrap_or_default() != "there\n" {
            assert!(child.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(5));
        }
        // As it is closed when this process is killed.
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
}
