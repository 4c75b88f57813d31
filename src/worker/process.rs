//! A child process that is asked and answers, whatever the messages: started in a group of its own, waited for with a
//! deadline, killed with its whole group.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How often it is looked whether waiting still makes sense.
const LOOK: Duration = Duration::from_millis(200);

/// A process that gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Lost {
    /// It did not answer in time and was killed.
    #[error("no answer within {:.1} s", after.as_secs_f64())]
    Timeout {
        /// The deadline.
        after: Duration,
    },
    /// The user stopped the run while it was waited for; it was killed.
    #[error("interrupted")]
    Interrupted,
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

/// A running process. Where it dies with the thread that started it, it must be started, used and dropped on one thread
/// that outlives it.
pub(crate) struct Process<A> {
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<io::Result<Option<A>>>,
}

impl<A: Send + 'static> Process<A> {
    /// Starts `command`; `receive` reads its next answer, `None` at the end.
    pub fn start(
        mut command: Command,
        mut receive: impl FnMut(&mut ChildStdout) -> io::Result<Option<A>> + Send + 'static,
    ) -> Result<Process<A>, Lost> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).spawn();
        let mut child = child.map_err(|e| Lost::Start { why: format!("{program}: {e}") })?;
        let input = child.stdin.take();
        let output = child.stdout.take();
        let (tell, answers) = channel();
        std::thread::spawn(move || {
            let Some(mut output) = output else { return };
            loop {
                let answer = receive(&mut output);
                let last = !matches!(answer, Ok(Some(_)));
                if tell.send(answer).is_err() || last {
                    return;
                }
            }
        });
        Ok(Process { child, input, answers })
    }

    /// Sends a request and waits for the answer at most `deadline`. After an error the process is gone.
    pub fn ask(&mut self, send: impl FnOnce(&mut ChildStdin) -> io::Result<()>, deadline: Duration) -> Result<A, Lost> {
        self.ask_unless(send, deadline, &|| false)
    }

    /// The same, but gives up soon after `stopped` has become true.
    pub fn ask_unless(
        &mut self,
        send: impl FnOnce(&mut ChildStdin) -> io::Result<()>,
        deadline: Duration,
        stopped: &dyn Fn() -> bool,
    ) -> Result<A, Lost> {
        if !matches!(self.input.as_mut().map(send), Some(Ok(()))) {
            return Err(self.ended());
        }
        let begun = Instant::now();
        loop {
            let left = deadline.saturating_sub(begun.elapsed());
            match self.answers.recv_timeout(left.min(LOOK)) {
                Ok(Ok(Some(answer))) => return Ok(answer),
                Ok(_) | Err(RecvTimeoutError::Disconnected) => return Err(self.ended()),
                Err(RecvTimeoutError::Timeout) if stopped() => {
                    self.kill();
                    return Err(Lost::Interrupted);
                }
                Err(RecvTimeoutError::Timeout) if left <= LOOK => {
                    self.kill();
                    return Err(Lost::Timeout { after: deadline });
                }
                Err(RecvTimeoutError::Timeout) => {}
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
}

impl<A> Process<A> {
    /// Kills the whole group and reaps the process.
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

impl<A> Drop for Process<A> {
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
