//! The parent's side: start a worker, ask it with a deadline, kill its group when it does not answer.

use super::{Answer, Kind, Request, frame};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// A worker that gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// It did not answer in time and was killed.
    #[error("no answer within {:.1} s", after.as_secs_f64())]
    Timeout {
        /// The deadline.
        after: Duration,
    },
    /// It ended.
    #[error("the worker ended: {how}")]
    Ended {
        /// Exit code or signal.
        how: String,
    },
    /// It could not be started.
    #[error("a worker cannot be started: {why}")]
    Start {
        /// The system's error.
        why: String,
    },
}

/// A running worker. Must be started, used and dropped on one thread that outlives it: the kernel ties its life to that
/// thread.
pub struct Worker {
    kind: Kind,
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<io::Result<Option<Answer>>>,
}

impl Worker {
    /// Starts the program at `exe` as a worker.
    pub fn start(exe: &PathBuf, kind: Kind) -> Result<Worker, Lost> {
        let start = |e: io::Error| Lost::Start { why: format!("{}: {e}", exe.display()) };
        let errors = if std::env::var_os("JITUNE_WORKER_STDERR").is_some() { Stdio::inherit() } else { Stdio::null() };
        let mut child = Command::new(exe)
            .args(["worker", &kind.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(start)?;
        let input = child.stdin.take();
        let output = child.stdout.take();
        let (tell, answers) = channel();
        std::thread::spawn(move || {
            let Some(mut output) = output else { return };
            loop {
                let answer = frame::receive::<Answer>(&mut output);
                let last = !matches!(answer, Ok(Some(_)));
                if tell.send(answer).is_err() || last {
                    return;
                }
            }
        });
        Ok(Worker { kind, child, input, answers })
    }

    /// What it does.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Asks and waits for the answer at most `deadline`. After an error the worker is gone.
    pub fn ask(&mut self, request: &Request, deadline: Duration) -> Result<Answer, Lost> {
        let sent = self.input.as_mut().map(|i| frame::send(i, request));
        if !matches!(sent, Some(Ok(()))) {
            return Err(self.ended());
        }
        match self.answers.recv_timeout(deadline) {
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(_) | Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
            Err(RecvTimeoutError::Timeout) => {
                self.kill();
                Err(Lost::Timeout { after: deadline })
            }
        }
    }

    fn ended(&mut self) -> Lost {
        // The pipe is closed, so the process is ending; give it a moment to say how before it is killed.
        for _ in 0..50 {
            if let Ok(Some(status)) = self.child.try_wait() {
                let how = match (status.code(), status.signal()) {
                    (Some(code), _) => format!("exit code {code}"),
                    (_, Some(signal)) => format!("signal {signal}{}", signal_name(signal)),
                    _ => status.to_string(),
                };
                return Lost::Ended { how };
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        Lost::Ended { how: "closed its pipe".into() }
    }

    /// Kills the whole group and reaps the worker.
    fn kill(&mut self) {
        self.input = None;
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            // The group may be gone already.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => " (illegal instruction)",
        6 => " (abort)",
        7 => " (bus error)",
        8 => " (arithmetic)",
        9 => " (killed)",
        11 => " (segmentation fault)",
        _ => "",
    }
}
