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
    /// What it was asked beside the last request and has not been waited for, and for how long it is.
    ahead: Option<(Numbered<Request>, Duration)>,
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
        Ok(Worker { process: Process::start(command, frame::receive)?, ahead: None })
    }

    /// Asks and waits for the answer at most `deadline`, and not once `halt` is set. After an error the worker is gone. What
    /// answers anything else is lost: a candidate wrote it, or made the worker write it.
    pub fn ask(&mut self, request: &Request, deadline: Duration, halt: &AtomicBool) -> Result<Answer, Lost> {
        self.ask_both(request, None, deadline, halt)
    }

    /// Asks, and sends what it is to work on after that, so that it need not wait for it; whoever asks for that next waits for
    /// the answer alone, as long again.
    pub fn ask_both(
        &mut self,
        request: &Request,
        next: Option<&Request>,
        deadline: Duration,
        halt: &AtomicBool,
    ) -> Result<Answer, Lost> {
        let number = match self.ahead.take() {
            Some((sent, _)) if sent.message == *request => sent.number,
            sent => {
                self.ahead = sent;
                self.let_come(halt)?;
                self.process.silent()?;
                self.send(request)?
            }
        };
        if let Some(next) = next {
            self.ahead = Some((Numbered { number: self.send(next)?, message: next.clone() }, deadline));
        }
        self.answer(request, number, deadline, halt)
    }

    /// Waits for what was sent ahead, as long as was said then: nobody wants to know any more.
    pub fn let_come(&mut self, halt: &AtomicBool) -> Result<(), Lost> {
        let Some((sent, deadline)) = self.ahead.take() else { return Ok(()) };
        self.answer(&sent.message, sent.number, deadline, halt).map(drop)
    }

    fn send(&mut self, message: &Request) -> Result<u64, Lost> {
        let request = Numbered { number: unpredictable(), message };
        self.process.request(|to| frame::send(to, &request))?;
        Ok(request.number)
    }

    fn answer(
        &mut self,
        request: &Request,
        number: u64,
        deadline: Duration,
        halt: &AtomicBool,
    ) -> Result<Answer, Lost> {
        let answer = self.process.answer(deadline, &|| halt.load(Ordering::Relaxed))?;
        if answer.number != number || !request.fits(&answer.message) {
            return Err(self.process.lose("it answered something else than it was asked"));
        }
        Ok(answer.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Ceilings;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::time::Instant;

    /// A worker that notes the rates it is told beside itself. It says nothing to a rate of 7, answers 8 by the number before,
    /// and 9 twice.
    const SCRIPT: &str = "#!/usr/bin/env python3
import json, struct, sys, time
def say(number):
    body = json.dumps({'number': number, 'message': 'done'}).encode()
    sys.stdout.buffer.write(struct.pack('<I', len(body)) + body)
    sys.stdout.buffer.flush()
last = 0
while head := sys.stdin.buffer.read(4):
    request = json.loads(sys.stdin.buffer.read(struct.unpack('<I', head)[0]))
    rate = request['message']['assume']['read']
    with open(sys.argv[0] + '.told', 'a') as told:
        told.write(f'{rate:.0f} ')
    if rate == 7:
        time.sleep(60)
    say(last if rate == 8 else request['number'])
    if rate == 9:
        say(request['number'])
    last = request['number']
";

    struct Told {
        worker: Worker,
        notes: PathBuf,
        _folder: tempfile::TempDir,
    }

    impl Told {
        fn new() -> Told {
            let folder = tempfile::tempdir().unwrap();
            let program = folder.path().join("worker");
            std::fs::write(&program, SCRIPT).unwrap();
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o700)).unwrap();
            // A test beside this one may fork while the file is open for writing, and then it cannot be run for a moment.
            let started = (0..100).find_map(|_| {
                let worker = Worker::start(&program, Duty::Compile);
                worker.inspect_err(|_| std::thread::sleep(Duration::from_millis(20))).ok()
            });
            let worker = started.unwrap();
            Told { worker, notes: folder.path().join("worker.told"), _folder: folder }
        }

        fn ask(&mut self, rate: f64, next: Option<f64>, seconds: u64) -> Result<Answer, Lost> {
            let request = |read: f64| {
                let rest = Ceilings { read, copy: 1.0, half: 1.0, tf32: 1.0, single: 1.0, fma: 1.0, measured: true };
                Request::Assume(rest)
            };
            let (next, halt) = (next.map(request), AtomicBool::new(false));
            self.worker.ask_both(&request(rate), next.as_ref(), Duration::from_secs(seconds), &halt)
        }

        fn notes(&self) -> String {
            std::fs::read_to_string(&self.notes).unwrap()
        }
    }

    #[test]
    fn what_is_sent_ahead_is_sent_once_and_its_answer_is_nobody_elses() {
        let mut told = Told::new();
        for (rate, next) in
            [(1.0, Some(2.0)), (2.0, Some(3.0)), (3.0, None), (1.0, Some(4.0)), (5.0, Some(6.0)), (6.0, None)]
        {
            assert!(matches!(told.ask(rate, next, 30), Ok(Answer::Done)), "{rate}");
        }
        assert_eq!(told.notes(), "1 2 3 1 4 5 6 ");
    }

    #[test]
    fn who_answers_for_the_next_is_lost() {
        for (rate, next) in [(1.0, 8.0), (9.0, 2.0)] {
            let mut told = Told::new();
            assert!(matches!(told.ask(rate, Some(next), 30), Ok(Answer::Done)));
            let lost = told.ask(next, None, 30).unwrap_err();
            assert_eq!(lost.to_string(), "the worker ended: it answered something else than it was asked");
        }
    }

    #[test]
    fn what_nobody_waits_for_any_more_is_waited_for_no_longer_than_was_said() {
        let mut told = Told::new();
        assert!(matches!(told.ask(1.0, Some(7.0), 2), Ok(Answer::Done)));
        let begun = Instant::now();
        let lost = told.ask(2.0, None, 50).unwrap_err();
        assert_eq!(lost, Lost::Timeout { after: Duration::from_secs(2) });
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert_eq!(told.notes(), "1 7 ");
    }
}
