//! A child process that is asked and answers, whatever the messages: started in a group of its own, waited for with a
//! deadline, killed with its whole group and all that it started.

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel, sync_channel};
use std::time::{Duration, Instant};

/// How often it is looked whether waiting still makes sense.
const LOOK: Duration = Duration::from_millis(100);

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
        /// The signal, where it was one.
        signal: Option<i32>,
    },
    /// It could not be started.
    #[error("a worker cannot be started: {why}")]
    Start {
        /// The system's error.
        why: String,
    },
}

impl Lost {
    /// Whether somebody else may have ended it: a user, or a system that is out of memory.
    pub fn from_outside(&self) -> bool {
        // SIGHUP, SIGINT, SIGQUIT, SIGKILL and SIGTERM, which no fault of the process raises, and SIGXCPU and SIGXFSZ, which
        // limits do that somebody set.
        let outside = [1, 2, 3, 9, 15, 24, 25];
        match self {
            Lost::Interrupted | Lost::Start { .. } => true,
            Lost::Ended { signal, .. } => signal.is_some_and(|signal| outside.contains(&signal)),
            _ => false,
        }
    }
}

/// A running process.
pub(crate) struct Process<A> {
    child: Child,
    /// It was waited for: its number is no longer its own.
    reaped: bool,
    /// To the thread that writes: a child that does not read holds up that thread, and never who asks.
    input: Option<Sender<Vec<u8>>>,
    answers: Receiver<io::Result<Option<A>>>,
}

impl<A: Send + 'static> Process<A> {
    /// Starts `command`; `receive` reads its next answer, `None` at the end.
    pub fn start(
        command: Command,
        receive: impl FnMut(&mut ChildStdout) -> io::Result<Option<A>> + Send + 'static,
    ) -> Result<Process<A>, Lost> {
        // What answers without end is not read further than one answer ahead.
        Process::stream(command, receive, 1)
    }

    /// Starts a process that says things unasked: `ahead` of them are read before they are heard.
    pub fn stream(
        mut command: Command,
        mut receive: impl FnMut(&mut ChildStdout) -> io::Result<Option<A>> + Send + 'static,
        ahead: usize,
    ) -> Result<Process<A>, Lost> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).spawn();
        let mut child = child.map_err(|e| Lost::Start { why: format!("{program}: {e}") })?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (tell, answers) = sync_channel(ahead);
        let (write, requests) = channel::<Vec<u8>>();
        let writer = std::thread::Builder::new().spawn(move || {
            let Some(mut input) = input else { return };
            for request in requests {
                if input.write_all(&request).and_then(|()| input.flush()).is_err() {
                    return;
                }
            }
        });
        let reader = std::thread::Builder::new().spawn(move || {
            let Some(mut output) = output else { return };
            loop {
                let answer = receive(&mut output);
                let last = !matches!(answer, Ok(Some(_)));
                if tell.send(answer).is_err() || last {
                    return;
                }
            }
        });
        // Without these threads it is dropped, which ends it.
        let process = Process { child, reaped: false, input: Some(write), answers };
        for thread in [reader, writer] {
            thread.map_err(|e| Lost::Start { why: format!("{program}: the system gives no thread for it: {e}") })?;
        }
        Ok(process)
    }

    /// Sends a request and waits for the answer at most `deadline`, but gives up soon after `stopped` has become true. After an
    /// error the process is gone.
    pub fn ask_unless(
        &mut self,
        send: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
        deadline: Duration,
        stopped: &dyn Fn() -> bool,
    ) -> Result<A, Lost> {
        self.silent()?;
        self.request(send)?;
        self.answer(deadline, stopped)
    }

    /// An error where it says something, of which nothing was asked.
    pub fn silent(&mut self) -> Result<(), Lost> {
        match self.answers.try_recv() {
            Err(TryRecvError::Empty) => Ok(()),
            Ok(Ok(Some(_))) => Err(self.lose("it answered without being asked")),
            _ => Err(self.ended()),
        }
    }

    /// Sends a request.
    pub fn request(&mut self, send: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Result<(), Lost> {
        let mut request = Vec::new();
        if let Err(e) = send(&mut request) {
            return Err(self.lose(&format!("its request cannot be written: {e}")));
        }
        match self.input.as_ref().is_none_or(|input| input.send(request).is_err()) {
            true => Err(self.ended()),
            false => Ok(()),
        }
    }

    /// Waits for the next answer.
    pub fn answer(&mut self, deadline: Duration, stopped: &dyn Fn() -> bool) -> Result<A, Lost> {
        let begun = Instant::now();
        loop {
            let left = deadline.saturating_sub(begun.elapsed());
            match self.answers.recv_timeout(left.min(LOOK)) {
                Ok(Ok(Some(answer))) => return Ok(answer),
                Ok(Err(e)) if e.kind() != io::ErrorKind::UnexpectedEof => {
                    return Err(self.lose(&format!("its answer is not understood: {e}")));
                }
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

    /// Sends something, and waits for no answer.
    #[cfg(feature = "engines")]
    pub fn send(&mut self, text: Vec<u8>) -> Result<(), Lost> {
        match self.input.as_ref().is_some_and(|input| input.send(text).is_ok()) {
            true => Ok(()),
            false => Err(self.ended()),
        }
    }

    /// The next thing that it says within `wait`, if any; after an error the process is gone.
    #[cfg(feature = "engines")]
    pub fn heard(&mut self, wait: Duration) -> Result<Option<A>, Lost> {
        match self.answers.recv_timeout(wait) {
            Ok(Ok(Some(said))) => Ok(Some(said)),
            Ok(Err(e)) if e.kind() != io::ErrorKind::UnexpectedEof => {
                Err(self.lose(&format!("what it says is not understood: {e}")))
            }
            Ok(_) | Err(RecvTimeoutError::Disconnected) => Err(self.ended()),
            Err(RecvTimeoutError::Timeout) => Ok(None),
        }
    }

    /// Its number in the system.
    #[cfg(feature = "engines")]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it for what it did.
    pub fn lose(&mut self, how: &str) -> Lost {
        self.kill();
        Lost::Ended { how: how.into(), signal: None }
    }

    /// How it ended, after it has; then it is waited for.
    pub fn ended(&mut self) -> Lost {
        // The pipe is closed, so the process is ending; give it a moment to say how before it is killed.
        for _ in 0..50 {
            if self.has_ended() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let own = self.has_ended();
        let status = self.kill().filter(|_| own).map(|status| (status.code(), status.signal()));
        let how = match status {
            Some((Some(code), _)) => format!("exit code {code}"),
            Some((_, Some(signal))) => format!("signal {signal}{}", signal_name(signal)),
            _ => "closed its pipe".into(),
        };
        Lost::Ended { how, signal: status.and_then(|(_, signal)| signal) }
    }
}

impl<A> Process<A> {
    /// Whether it has ended; it is not reaped, so that its number stays its own.
    pub fn has_ended(&self) -> bool {
        let Some(pid) = Pid::from_raw(self.child.id() as i32) else { return false };
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), look).is_ok_and(|status| status.is_some())
    }

    /// Kills all below it and the whole group, then reaps the process: once that is done its number may be anybody's, so
    /// it happens once.
    fn kill(&mut self) -> Option<ExitStatus> {
        self.input = None;
        if !std::mem::replace(&mut self.reaped, true) {
            if let Some(group) = Pid::from_raw(self.child.id() as i32) {
                end_below(group);
                // It only fails when there is no such group.
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.child.kill();
        }
        self.child.wait().ok()
    }
}

impl<A> Drop for Process<A> {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Times that it is looked for processes to end: one may start another while it is being ended.
const ENDINGS: u32 = 100;

/// Kills all processes below one, in whatever session or group they are.
pub(super) fn end_below(root: Pid) {
    for _ in 0..ENDINGS {
        let list = below(root);
        if list.is_empty() {
            return;
        }
        for pid in list {
            // It only fails when there is none any more.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A process and all below it.
#[cfg(feature = "engines")]
pub(crate) fn family(root: u32) -> Vec<u32> {
    let Some(pid) = Pid::from_raw(root as i32) else { return Vec::new() };
    std::iter::once(root).chain(below(pid).into_iter().map(|pid| pid.as_raw_nonzero().get().unsigned_abs())).collect()
}

/// The processes below one that still run.
pub(crate) fn below(root: Pid) -> Vec<Pid> {
    let mut all: Vec<(Pid, Pid, bool)> = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // After the name, which may hold anything: the state, and the parent's number.
        let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
        let (state, parent) = (fields.next(), fields.next().and_then(|n| n.parse().ok()));
        if let (Some(pid), Some(parent)) = (Pid::from_raw(pid), parent.and_then(Pid::from_raw)) {
            all.push((pid, parent, !matches!(state, Some("Z" | "X"))));
        }
    }
    let (mut found, mut from) = (vec![root], 0);
    while let Some(&parent) = found.get(from) {
        found.extend(
            all.iter()
                .filter(|(pid, p, _)| *p == parent && !found.contains(pid))
                .map(|(pid, ..)| *pid)
                .collect::<Vec<_>>(),
        );
        from += 1;
    }
    found.retain(|pid| *pid != root && all.iter().any(|(p, _, runs)| p == pid && *runs));
    found
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};

    /// The number of the process that a shell says it started.
    fn started(output: &mut ChildStdout) -> io::Result<Option<u32>> {
        let mut line = String::new();
        BufReader::new(output.take(64)).read_line(&mut line)?;
        Ok(line.trim().parse().ok())
    }

    /// Running: neither gone nor a zombie.
    fn runs(pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
    }

    #[test]
    fn the_group_of_a_process_that_ended_is_killed_while_its_number_is_its_own() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "read line; sleep 1000 >/dev/null 2>&1 </dev/null & echo $!; read line; exit 3"]);
        let mut process = Process::start(shell, started).unwrap();
        let second = Duration::from_secs(10);
        let pid = process.ask_unless(|input| input.write_all(b"start\n"), second, &|| false).unwrap();
        assert!(runs(pid) && !process.has_ended() && !process.reaped);
        let lost = process.ask_unless(|input| input.write_all(b"go\n"), second, &|| false).unwrap_err();
        assert_eq!(lost, Lost::Ended { how: "exit code 3".into(), signal: None });
        // What it left behind ends with it, not when the handle is dropped: by then the number may be another's.
        assert!(process.reaped);
        let begun = Instant::now();
        while runs(pid) {
            assert!(begun.elapsed() < second, "what the process started still runs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn shell(script: &str) -> Process<String> {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        let line = |output: &mut ChildStdout| {
            let mut line = Vec::new();
            let mut byte = [0];
            while output.read(&mut byte)? == 1 && byte[0] != b'\n' {
                line.push(byte[0]);
            }
            Ok((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()))
        };
        Process::start(shell, line).unwrap()
    }

    #[test]
    fn a_child_that_does_not_read_holds_nobody_up() {
        let mut process = shell("sleep 1000");
        let begun = Instant::now();
        // More than any pipe holds.
        let much = vec![b'x'; 8 << 20];
        let lost = process.ask_unless(|to| to.write_all(&much), Duration::from_millis(500), &|| false).unwrap_err();
        assert!(matches!(lost, Lost::Timeout { .. }), "{lost}");
        let mut process = shell("sleep 1000");
        let lost = process.ask_unless(|to| to.write_all(&much), Duration::from_secs(60), &|| true).unwrap_err();
        assert_eq!(lost, Lost::Interrupted);
        drop(process);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }

    #[test]
    fn who_answers_without_being_asked_is_lost_and_fills_no_memory() {
        let mut process = shell("while read line; do echo one; echo two; done");
        assert_eq!(process.ask_unless(|to| to.write_all(b"go\n"), Duration::from_secs(10), &|| false).unwrap(), "one");
        std::thread::sleep(Duration::from_millis(200));
        let lost = process.ask_unless(|to| to.write_all(b"go\n"), Duration::from_secs(10), &|| false).unwrap_err();
        assert!(lost.to_string().contains("without being asked"), "{lost}");
        // Who is not heard is not read either, beyond what a pipe holds: four times as much is soon said where somebody reads, and never here.
        let folder = tempfile::tempdir().unwrap();
        let all = folder.path().join("all");
        let much = |reader: &str| shell(&format!("(yes | head -c 262144; : > '{}') {reader}", all.display()));
        let heard = much("| cat > /dev/null; echo done").ask_unless(|_| Ok(()), Duration::from_secs(10), &|| false);
        assert!(heard.is_ok() && all.exists(), "{heard:?}");
        std::fs::remove_file(&all).unwrap();
        let mut process = much("");
        std::thread::sleep(Duration::from_secs(2));
        assert!(!all.exists(), "it was read to its end");
        assert!(process.ask_unless(|_| Ok(()), Duration::from_secs(10), &|| false).is_err());
    }
}
