//! The compilers: workers that turn sources into artifacts, each source once.

use super::{Compiling, LOOK, TuneError};
use crate::artifact::Artifact;
use crate::backend::BackendError;
use crate::bench::Compile;
use crate::source::Source;
use crate::sync::lock;
use crate::verdict::{Judged, Standing};
use crate::worker::{Answer, Duty, Failure, FailureKind, Request, Worker};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a compiler may take.
const DEADLINE: Duration = Duration::from_secs(90);
/// What one compile worker may come to use; the pool is no larger than memory allows at this each.
pub const WORKER_MEMORY: u64 = 1 << 30;

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

/// Questions that are taken back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch(u64);

/// Where an outcome goes.
#[derive(Clone)]
pub struct Reply {
    /// Told with the number.
    pub to: Sender<(usize, Outcome)>,
    /// Which of the batch's sources it is.
    pub number: usize,
    /// Whose.
    pub batch: Batch,
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
}

#[derive(Default)]
struct Jobs {
    /// What is waited for, the first asked first.
    asked: VecDeque<Job>,
    slots: HashMap<String, Slot>,
    stop: bool,
    spent: Compiling,
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
    batches: AtomicU64,
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
            _ => Ok(Compilers { shared, batches: AtomicU64::new(0), threads }),
        }
    }

    /// A new batch.
    pub fn batch(&self) -> Batch {
        Batch(self.batches.fetch_add(1, Ordering::Relaxed))
    }

    /// Asks for a source. The outcome goes to `reply`, at once when it is known already.
    pub fn submit(&self, source: &Source, reply: Reply) {
        let hash = source.hash();
        let mut jobs = lock(&self.shared.jobs);
        match jobs.slots.get_mut(&hash) {
            Some(Slot::Done(outcome)) => {
                // A receiver that is gone no longer wants it.
                let _ = reply.to.send((reply.number, outcome.clone()));
            }
            Some(Slot::Waiting(list)) => list.push(reply),
            None => {
                jobs.slots.insert(hash.clone(), Slot::Waiting(vec![reply]));
                jobs.asked.push_back(Job { hash, source: source.clone(), anew: false });
                self.shared.wake.notify_one();
            }
        }
    }

    /// Has a source compiled once more, by another worker, and waits for it: what came of it before may be damaged.
    pub fn anew(&self, source: &Source) -> Result<Outcome, TuneError> {
        let (to, outcome) = channel();
        let (hash, reply) = (source.hash(), Reply { to, number: 0, batch: self.batch() });
        let mut jobs = lock(&self.shared.jobs);
        match jobs.slots.get_mut(&hash) {
            // Somebody asked just now.
            Some(Slot::Waiting(list)) => list.push(reply),
            _ => {
                jobs.slots.insert(hash.clone(), Slot::Waiting(vec![reply]));
                jobs.asked.push_front(Job { hash, source: source.clone(), anew: true });
                self.shared.wake.notify_one();
            }
        }
        drop(jobs);
        loop {
            match outcome.recv_timeout(LOOK) {
                Ok((_, outcome)) => return Ok(outcome),
                Err(RecvTimeoutError::Timeout) if !self.halted() => {}
                Err(_) => return Err(TuneError::Interrupted),
            }
        }
    }

    /// Takes a batch's questions back. What nobody else asked for is dropped, unless it is being compiled.
    pub fn cancel(&self, batch: Batch) {
        let mut jobs = lock(&self.shared.jobs);
        let Jobs { asked, slots, .. } = &mut *jobs;
        asked.retain(|Job { hash, .. }| {
            let Some(Slot::Waiting(list)) = slots.get_mut(hash) else { return true };
            list.retain(|reply| reply.batch != batch);
            let wanted = !list.is_empty();
            if !wanted {
                slots.remove(hash);
            }
            wanted
        });
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
        self.submit(source, Reply { to, number: 0, batch: self.batch() });
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
                if jobs.stop {
                    return;
                }
                if let Some(job) = jobs.asked.pop_front() {
                    break job;
                }
                jobs = shared.wake.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let Job { hash, source, anew } = job;
        if anew {
            worker = None;
        }
        let start = Instant::now();
        let outcome = compile(&mut worker, exe, folder, &source, &shared.halt);
        let mut jobs = lock(&shared.jobs);
        jobs.spent.seconds += start.elapsed().as_secs_f64();
        jobs.spent.sources += 1;
        if let Some(Slot::Waiting(list)) = jobs.slots.insert(hash, Slot::Done(outcome.clone())) {
            for reply in list {
                let _ = reply.to.send((reply.number, outcome.clone()));
            }
        }
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
