//! The parent's side: start a worker, and ask it with a deadline.

use super::process::{Lost, Process};
use super::{Answer, Kind, Request, WORD, frame};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A running worker. Must be started, used and dropped on one thread that outlives it: the kernel ties its life to that
/// thread.
pub struct Worker {
    kind: Kind,
    process: Process<Answer>,
}

impl Worker {
    /// Starts the program at `exe`, which calls [`worker_main`](super::worker_main) first, as a worker.
    pub fn start(exe: &PathBuf, kind: Kind) -> Result<Worker, Lost> {
        let errors = if std::env::var_os("JITUNE_WORKER_STDERR").is_some() { Stdio::inherit() } else { Stdio::null() };
        let mut command = Command::new(exe);
        command.args([WORD, &kind.to_string()]).stderr(errors);
        Ok(Worker { kind, process: Process::start(command, frame::receive)? })
    }

    /// What it does.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Asks and waits for the answer at most `deadline`. After an error the worker is gone.
    pub fn ask(&mut self, request: &Request, deadline: Duration) -> Result<Answer, Lost> {
        self.process.ask(|to| frame::send(to, request), deadline)
    }
}
