//! The parent's side: start a worker, and ask it with a deadline.

use super::process::{Lost, Process};
use super::{Answer, Duty, Numbered, Request, WORD, frame};
use crate::backend::session::unpredictable;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What a program whose workers do not work is told.
pub(crate) const MAIN: &str = "a program that tunes calls jitune::worker_main() at the start of its main";

/// A running worker. Any thread may start, use and drop it: it ends when its pipe does, with all of this process.
pub(crate) struct Worker {
    process: Process<Numbered<Answer>>,
}

impl Worker {
    /// Starts the program at `exe`, which calls [`worker_main`](super::worker_main) first, as a worker.
    pub fn start(exe: &Path, duty: Duty) -> Result<Worker, Lost> {
        if std::env::args_os().nth(1).is_some_and(|word| word == WORD) {
            // Its own would start again what it does, and so on without end.
            return Err(Lost::Start { why: format!("this process is one itself; {MAIN}") });
        }
        let errors = if std::env::var_os("JITUNE_WORKER_STDERR").is_some() { Stdio::inherit() } else { Stdio::null() };
        let mut command = Command::new(exe);
        command.args([WORD, &duty.to_string()]).stderr(errors);
        Ok(Worker { process: Process::start(command, frame::receive)? })
    }

    /// Asks and waits for the answer at most `deadline`, and not once `halt` is set. After an error the worker is gone. What
    /// answers anything else is lost: a candidate wrote it, or made the worker write it.
    pub fn ask(&mut self, request: &Request, deadline: Duration, halt: &AtomicBool) -> Result<Answer, Lost> {
        let number = unpredictable();
        let stopped = || halt.load(Ordering::Relaxed);
        let request = Numbered { number, message: request };
        let answer = self.process.ask_unless(|to| frame::send(to, &request), deadline, &stopped)?;
        if answer.number != number || !request.message.fits(&answer.message) {
            return Err(self.process.lose("it answered something else than it was asked"));
        }
        Ok(answer.message)
    }
}
