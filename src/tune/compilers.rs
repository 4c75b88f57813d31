//! The compilers: workers that turn sources into artifacts, each source once.

use super::{Compiling, LOOK, TuneError};
use crate::artifact::Artifact;
use crate::backend::BackendError;
use crate::bench::Compile;
use crate::source::Source;
use crate::sync::lock;
use crate::verdict::{Judged, Standing};
use crate::worker::{Answer, Duty, Failure, FailureKind, Request, Worker};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a compiler may take.
const DEADLINE: Duration = Duration::from_secs(90);
/// What one compile worker may come to use; the pool is no larger than memory allows at this each.
pub const WORKER_MEMORY: u64 = 1 << 30;

/// How long a source may be passed over, a third of what a search has at the start of a large plan.
const LONG: Duration = Duration::from_secs(12);

/// Pauses before a compilation is tried again that the machine kept from its end, in milliseconds.
const AGAIN: [u64; 2] = [100, 1000];

/// Why there is no artifact.
#[derive(Clone, Debug)]
pub enum NotCompiled {
    /// What came of trying.
    Judged(Judged),
    /// The machine's: no candidate is to blame, and none may be remembered for it.
    Broken(Failure),
}

/// What came of a source.
pub type Outcome = Result<Artifact, NotCompiled>;

/// Sources that somebody waits for together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Batch(u64);

/// Where an outcome goes: with which number, and as one of whose.
struct Reply {
    to: Sender<(usize, Outcome)>,
    number: usize,
    batch: Batch,
}

enum Slot {
    Waiting(Vec<Reply>),
    Done(Outcome),
}

struct Job {
    hash: String,
    source: Source,
    /// Whether a new worker is to do it.
    anew: bool,
    asked: Instant,
}

#[derive(Default)]
struct Jobs {
    /// What is waited for, in the order in which it was asked.
    asked: VecDeque<Job>,
    slots: HashMap<String, Slot>,
    /// How many outcomes each batch waits for.
    open: HashMap<Batch, usize>,
    batches: u64,
    stop: bool,
    spent: Compiling,
}

impl Jobs {
    /// A new batch.
    fn batch(&mut self) -> Batch {
        self.batches += 1;
        Batch(self.batches)
    }

    /// Waits for a source, unless it is known. What is to be compiled `anew` is known to nobody, and comes first.
    fn ask(&mut self, hash: String, source: &Source, reply: Reply, anew: bool) -> bool {
        let batch = reply.batch;
        match self.slots.get_mut(&hash) {
            Some(Slot::Done(outcome)) if !anew => {
                // A receiver that is gone no longer wants it.
                let _ = reply.to.send((reply.number, outcome.clone()));
                return false;
            }
            // Somebody asked just now.
            Some(Slot::Waiting(list)) => list.push(reply),
            _ => {
                self.slots.insert(hash.clone(), Slot::Waiting(vec![reply]));
                let job = Job { hash, source: source.clone(), anew, asked: Instant::now() };
                if anew { self.asked.push_front(job) } else { self.asked.push_back(job) }
            }
        }
        *self.open.entry(batch).or_default() += 1;
        true
    }

    /// What is compiled next: of those that wait for the fewest others, what was asked first. Whoever needs little is soon measured and
    /// asks for more, where in turn all would wait for each other's first batches. What was asked long ago goes before all.
    fn next(&mut self, now: Instant) -> Option<Job> {
        let left = |job: &Job| match self.slots.get(&job.hash) {
            _ if job.anew => None,
            _ if now.saturating_duration_since(job.asked) > LONG => Some(&0),
            Some(Slot::Waiting(list)) => list.iter().filter_map(|reply| self.open.get(&reply.batch)).min(),
            _ => None,
        };
        let (at, _) = self.asked.iter().enumerate().min_by_key(|(_, job)| left(job))?;
        self.asked.remove(at)
    }

    /// Tells all who wait.
    fn done(&mut self, hash: String, outcome: &Outcome) {
        let Some(Slot::Waiting(list)) = self.slots.insert(hash, Slot::Done(outcome.clone())) else { return };
        for reply in list {
            self.close(reply.batch);
            let _ = reply.to.send((reply.number, outcome.clone()));
        }
    }

    /// One fewer is waited for.
    fn close(&mut self, batch: Batch) {
        if let Entry::Occupied(mut open) = self.open.entry(batch) {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
    }

    /// Takes a batch's questions back. What nobody else asked for is dropped, unless it is being compiled.
    fn cancel(&mut self, batch: Batch) {
        let Jobs { asked, slots, .. } = self;
        let mut taken = 0;
        asked.retain(|Job { hash, .. }| {
            let Some(Slot::Waiting(list)) = slots.get_mut(hash) else { return true };
            let before = list.len();
            list.retain(|reply| reply.batch != batch);
            taken += before - list.len();
            let wanted = !list.is_empty();
            if !wanted {
                slots.remove(hash);
            }
            wanted
        });
        (0..taken).for_each(|_| self.close(batch));
    }
}

struct Shared {
    jobs: Mutex<Jobs>,
    wake: Condvar,
    /// Set where everything is to end at once.
    halt: Arc<AtomicBool>,
}

/// Compile workers and their queue.
pub struct Compilers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Compilers {
    /// Starts `workers` compile workers of the program at `exe`, which leave artifacts in `folder`. Once `halt` is set
    /// whoever waits for them is told, and the compilers at work are killed.
    pub fn start(exe: PathBuf, folder: PathBuf, workers: usize, halt: Arc<AtomicBool>) -> Result<Compilers, TuneError> {
        let shared = Arc::new(Shared { jobs: Mutex::default(), wake: Condvar::new(), halt });
        let spawn = |_| {
            let (shared, exe, folder) = (shared.clone(), exe.clone(), folder.clone());
            std::thread::Builder::new().spawn(move || work(&shared, &exe, &folder))
        };
        // Fewer than asked serve as well.
        let (threads, refused): (Vec<_>, Vec<_>) = (0..workers.max(1)).map(spawn).partition(Result::is_ok);
        let threads: Vec<_> = threads.into_iter().flatten().collect();
        match refused.into_iter().find_map(Result::err) {
            Some(e) if threads.is_empty() => Err(BackendError::Threads { asked: workers, why: e.to_string() }.into()),
            _ => Ok(Compilers { shared, threads }),
        }
    }

    /// How many sources are compiled at the same time.
    pub fn workers(&self) -> usize {
        self.threads.len()
    }

    /// Asks for sources. Each outcome goes to `to` with its number, at once when it is known already.
    pub fn submit(&self, sources: &[(usize, Source)], to: &Sender<(usize, Outcome)>) -> Batch {
        let hashes: Vec<String> = sources.iter().map(|(_, source)| source.hash()).collect();
        let mut jobs = lock(&self.shared.jobs);
        let batch = jobs.batch();
        for ((number, source), hash) in sources.iter().zip(hashes) {
            let reply = Reply { to: to.clone(), number: *number, batch };
            if jobs.ask(hash, source, reply, false) {
                self.shared.wake.notify_one();
            }
        }
        batch
    }

    /// Has a source compiled once more, by another worker, and waits for it: what came of it before may be damaged.
    pub fn anew(&self, source: &Source) -> Result<Outcome, TuneError> {
        let (to, outcome) = channel();
        let mut jobs = lock(&self.shared.jobs);
        let reply = Reply { to, number: 0, batch: jobs.batch() };
        jobs.ask(source.hash(), source, reply, true);
        drop(jobs);
        self.shared.wake.notify_one();
        loop {
            match outcome.recv_timeout(LOOK) {
                Ok((_, outcome)) => return Ok(outcome),
                Err(RecvTimeoutError::Timeout) if !self.halted() => {}
                Err(_) => return Err(TuneError::Interrupted),
            }
        }
    }

    /// Takes a batch's questions back.
    pub fn cancel(&self, batch: Batch) {
        lock(&self.shared.jobs).cancel(batch);
    }

    /// Whether everything is to end at once.
    pub fn halted(&self) -> bool {
        self.shared.halt.load(Ordering::Relaxed)
    }

    /// What they did so far.
    pub fn spent(&self) -> Compiling {
        lock(&self.shared.jobs).spent
    }
}

impl Compile for Compilers {
    type Error = TuneError;

    fn compile(&self, what: &str, source: &Source) -> Result<Artifact, TuneError> {
        let (to, outcome) = channel();
        self.submit(&[(0, source.clone())], &to);
        loop {
            return match outcome.recv_timeout(LOOK) {
                Ok((_, Ok(artifact))) => Ok(artifact),
                // The compiler was ended with the run.
                Ok((_, Err(_))) if self.halted() => Err(TuneError::Interrupted),
                Ok((_, Err(NotCompiled::Broken(f)))) => Err(TuneError::Device(f)),
                Ok((_, Err(NotCompiled::Judged(judged)))) => {
                    Err(TuneError::Support { what: what.into(), why: judged.verdict.evidence() })
                }
                Err(RecvTimeoutError::Timeout) if !self.halted() => continue,
                Err(_) => Err(TuneError::Interrupted),
            };
        }
    }
}

impl Drop for Compilers {
    fn drop(&mut self) {
        lock(&self.shared.jobs).stop = true;
        self.shared.halt.store(true, Ordering::Relaxed);
        self.shared.wake.notify_all();
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

fn work(shared: &Shared, exe: &Path, folder: &Path) {
    let mut worker: Option<Worker> = None;
    loop {
        let job = {
            let mut jobs = lock(&shared.jobs);
            loop {
                // What is still asked for then is not begun: nobody waits for it.
                if jobs.stop || shared.halt.load(Ordering::Relaxed) {
                    return;
                }
                if let Some(job) = jobs.next(Instant::now()) {
                    break job;
                }
                jobs = shared.wake.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let Job { hash, source, anew, .. } = job;
        if anew {
            worker = None;
        }
        let start = Instant::now();
        let outcome = compile(&mut worker, exe, folder, &source, &shared.halt);
        let mut jobs = lock(&shared.jobs);
        jobs.spent.seconds += start.elapsed().as_secs_f64();
        jobs.spent.sources += 1;
        jobs.done(hash, &outcome);
    }
}

/// Compiles; what the machine may have kept from its end is tried again, each time in a new worker.
fn compile(worker: &mut Option<Worker>, exe: &Path, folder: &Path, source: &Source, halt: &AtomicBool) -> Outcome {
    let mut outcome = once(worker, exe, folder, source, halt);
    for pause_ms in AGAIN {
        let open = match &outcome {
            Ok(_) => false,
            Err(NotCompiled::Judged(judged)) => judged.standing == Standing::Open,
            Err(NotCompiled::Broken(_)) => true,
        };
        if !open || halt.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep(Duration::from_millis(pause_ms));
        *worker = None;
        outcome = match (outcome, once(worker, exe, folder, source, halt)) {
            (Err(NotCompiled::Judged(first)), Err(NotCompiled::Judged(second))) => {
                Err(NotCompiled::Judged(first.again(second)))
            }
            (_, second) => second,
        };
    }
    outcome
}

fn once(worker: &mut Option<Worker>, exe: &Path, folder: &Path, source: &Source, halt: &AtomicBool) -> Outcome {
    let broken = |message: String| NotCompiled::Broken(Failure { kind: FailureKind::Environment, message });
    if worker.is_none() {
        *worker = Some(Worker::start(exe, Duty::Compile).map_err(|lost| broken(lost.to_string()))?);
    }
    let Some(w) = worker else { return Err(broken("a compile worker is not started".into())) };
    let request = Request::Compile { source: Box::new(source.clone()), folder: folder.to_path_buf() };
    match w.ask(&request, DEADLINE, halt) {
        Ok(Answer::Compiled(artifact)) => Ok(*artifact),
        Ok(Answer::Failed(f)) if f.is_of_the_machine() => Err(NotCompiled::Broken(f)),
        Ok(Answer::Failed(f)) => Err(NotCompiled::Judged(Judged::from(f))),
        Ok(_) => {
            *worker = None;
            Err(broken("a compile worker answered something else".into()))
        }
        Err(lost) => {
            *worker = None;
            Err(NotCompiled::Judged(Judged::from(lost)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Language;
    use std::sync::mpsc::Receiver;

    /// Asks for sources of these names, and gives what is heard of them.
    fn ask(jobs: &mut Jobs, names: &str) -> (Batch, Receiver<(usize, Outcome)>) {
        let (to, heard) = channel();
        let batch = jobs.batch();
        for (number, name) in names.chars().enumerate() {
            let (text, arch) = (name.to_string(), String::new());
            let source = Source { language: Language::C, text, arch, options: Vec::new(), entries: Vec::new() };
            jobs.ask(name.into(), &source, Reply { to: to.clone(), number, batch }, name.is_uppercase());
        }
        (batch, heard)
    }

    fn next(jobs: &mut Jobs) -> String {
        next_after(jobs, Duration::ZERO)
    }

    fn next_after(jobs: &mut Jobs, waiting: Duration) -> String {
        jobs.next(Instant::now() + waiting).map(|job| job.hash).unwrap_or_default()
    }

    fn done(jobs: &mut Jobs, names: &str) {
        let failure = Failure { kind: FailureKind::Environment, message: String::new() };
        for name in names.chars() {
            jobs.done(name.into(), &Err(NotCompiled::Broken(failure.clone())));
        }
    }

    #[test]
    fn what_lets_somebody_go_on_soonest_is_compiled_first() {
        let mut jobs = Jobs::default();
        let (_, first) = ask(&mut jobs, "abcd");
        // Of equals the first.
        assert_eq!([next(&mut jobs), next(&mut jobs)], ["a", "b"]);
        done(&mut jobs, "a");
        // Three are left of it: a short batch goes ahead, in its own order, and one that is as long does not.
        let (_, short) = ask(&mut jobs, "xy");
        ask(&mut jobs, "pqr");
        assert_eq!([next(&mut jobs), next(&mut jobs), next(&mut jobs)], ["x", "y", "c"]);
        done(&mut jobs, "bxy");
        assert_eq!(short.try_iter().map(|(number, _)| number).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(first.try_iter().map(|(number, _)| number).collect::<Vec<_>>(), [0, 1]);
        // What two wait for is as urgent as for the one who needs less; what is known already makes nobody wait.
        let (_, both) = ask(&mut jobs, "abrxy");
        assert_eq!(both.try_iter().count(), 4);
        assert_eq!([next(&mut jobs), next(&mut jobs)], ["r", "d"]);
        done(&mut jobs, "cdr");
        assert_eq!([next(&mut jobs), next(&mut jobs), next(&mut jobs)], ["p", "q", ""]);
        done(&mut jobs, "pq");
        assert!(jobs.open.is_empty(), "{:?}", jobs.open);
    }

    #[test]
    fn nobody_is_passed_over_for_long() {
        let mut jobs = Jobs::default();
        ask(&mut jobs, "abcd");
        ask(&mut jobs, "xyz");
        let moments = [Duration::ZERO, LONG / 2, LONG * 2, LONG * 2];
        assert_eq!(moments.map(|waiting| next_after(&mut jobs, waiting)), ["x", "y", "a", "b"]);
        // But for what is compiled anew: the device waits for it.
        ask(&mut jobs, "A");
        assert_eq!([next_after(&mut jobs, LONG * 2), next_after(&mut jobs, LONG * 2)], ["A", "c"]);
    }

    #[test]
    fn what_is_taken_back_makes_nobody_wait() {
        let mut jobs = Jobs::default();
        let (long, _heard) = ask(&mut jobs, "abcdef");
        ask(&mut jobs, "fgh");
        assert_eq!(next(&mut jobs), "f");
        jobs.cancel(long);
        assert_eq!(jobs.open.values().sum::<usize>(), 4, "f is at work");
        assert_eq!([next(&mut jobs), next(&mut jobs), next(&mut jobs)], ["g", "h", ""]);
        done(&mut jobs, "fgh");
        assert!(jobs.open.is_empty(), "{:?}", jobs.open);
        // Taken back, they can be asked for again; what is compiled anew comes first.
        ask(&mut jobs, "ab");
        ask(&mut jobs, "F");
        assert_eq!([next(&mut jobs), next(&mut jobs), next(&mut jobs)], ["F", "a", "b"]);
    }
}
