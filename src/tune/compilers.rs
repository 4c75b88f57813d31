//! The compilers: workers that turn sources into artifacts, each source once.

use super::{Compiling, TuneError};
use crate::artifact::Artifact;
use crate::backend::BackendError;
use crate::bench::Compile;
use crate::source::Source;
use crate::sync::lock;
use crate::verdict::Verdict;
use crate::worker::{Answer, Duty, Failure, FailureKind, Request, Worker};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a compiler may take.
const DEADLINE: Duration = Duration::from_secs(90);
/// What one compile worker may come to use; the pool is no larger than memory allows at this each.
pub const WORKER_MEMORY: u64 = 1 << 30;

/// Why there is no artifact.
#[derive(Clone, Debug)]
pub enum NotCompiled {
    /// The candidate's own doing.
    Judged(Verdict),
    /// The machine's: no candidate is to blame, and none may be remembered for it.
    Broken(Failure),
}

/// What came of a source.
pub type Outcome = Result<Artifact, NotCompiled>;
type Reply = (Sender<(usize, Outcome)>, usize);

enum Slot {
    Waiting(Vec<Reply>),
    Done(Outcome),
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<(String, Source)>,
    slots: HashMap<String, Slot>,
    stop: bool,
    spent: Compiling,
}

struct Shared {
    jobs: Mutex<Jobs>,
    wake: Condvar,
}

/// Compile workers and their queue.
pub struct Compilers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Compilers {
    /// Starts `workers` compile workers of the program at `exe`, which leave artifacts in `folder`.
    pub fn start(exe: PathBuf, folder: PathBuf, workers: usize) -> Result<Compilers, TuneError> {
        let shared = Arc::new(Shared { jobs: Mutex::default(), wake: Condvar::new() });
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

    /// Asks for a source. The outcome goes to `reply` with its number, at once when it is known already. Without a reply
    /// the source is compiled when nothing else is asked for.
    pub fn submit(&self, source: &Source, reply: Option<Reply>) {
        let hash = source.hash();
        let mut jobs = lock(&self.shared.jobs);
        let urgent = reply.is_some();
        match jobs.slots.get_mut(&hash) {
            Some(Slot::Done(outcome)) => {
                if let Some((to, number)) = reply {
                    // A receiver that is gone no longer wants it.
                    let _ = to.send((number, outcome.clone()));
                }
                return;
            }
            Some(Slot::Waiting(list)) => {
                list.extend(reply);
                if urgent && let Some(at) = jobs.queue.iter().position(|(h, _)| *h == hash) {
                    // It was only foreseen until now: it moves ahead of what still is.
                    if let Some(job) = jobs.queue.remove(at) {
                        jobs.queue.push_front(job);
                    }
                }
                return;
            }
            None => {}
        }
        jobs.slots.insert(hash.clone(), Slot::Waiting(reply.into_iter().collect()));
        let job = (hash, source.clone());
        if urgent {
            jobs.queue.push_front(job)
        } else {
            jobs.queue.push_back(job)
        }
        self.shared.wake.notify_one();
    }

    /// Drops everything that is not being compiled yet.
    pub fn clear(&self) {
        let mut jobs = lock(&self.shared.jobs);
        let dropped: Vec<String> = jobs.queue.drain(..).map(|(h, _)| h).collect();
        for hash in dropped {
            jobs.slots.remove(&hash);
        }
    }

    /// What they did so far.
    pub fn spent(&self) -> Compiling {
        lock(&self.shared.jobs).spent
    }
}

impl Compile for Compilers {
    type Error = TuneError;

    fn compile(&self, what: &str, source: &Source) -> Result<Artifact, TuneError> {
        let (reply, outcome) = channel();
        self.submit(source, Some((reply, 0)));
        match outcome.recv() {
            Ok((_, Ok(artifact))) => Ok(artifact),
            Ok((_, Err(NotCompiled::Broken(f)))) => Err(TuneError::Device(f)),
            Ok((_, Err(NotCompiled::Judged(verdict)))) => {
                Err(TuneError::Support { what: what.into(), why: format!("{verdict:?}") })
            }
            Err(_) => Err(TuneError::Interrupted),
        }
    }
}

impl Drop for Compilers {
    fn drop(&mut self) {
        self.clear();
        lock(&self.shared.jobs).stop = true;
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
                if let Some(job) = jobs.queue.pop_front() {
                    break job;
                }
                jobs = shared.wake.wait(jobs).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let (hash, source) = job;
        let start = Instant::now();
        let outcome = compile(&mut worker, exe, folder, source);
        let mut jobs = lock(&shared.jobs);
        jobs.spent.seconds += start.elapsed().as_secs_f64();
        jobs.spent.sources += 1;
        if let Some(Slot::Waiting(list)) = jobs.slots.insert(hash, Slot::Done(outcome.clone())) {
            for (to, number) in list {
                let _ = to.send((number, outcome.clone()));
            }
        }
    }
}

fn compile(worker: &mut Option<Worker>, exe: &Path, folder: &Path, source: Source) -> Outcome {
    let broken = |message: String| NotCompiled::Broken(Failure { kind: FailureKind::Environment, message });
    if worker.is_none() {
        *worker = Some(Worker::start(exe, Duty::Compile).map_err(|lost| broken(lost.to_string()))?);
    }
    let Some(w) = worker else { return Err(broken("a compile worker is not started".into())) };
    let request = Request::Compile { source: Box::new(source), folder: folder.to_path_buf() };
    match w.ask(&request, DEADLINE) {
        Ok(Answer::Compiled(artifact)) => Ok(*artifact),
        Ok(Answer::Failed(f)) if f.is_of_the_machine() => Err(NotCompiled::Broken(f)),
        Ok(Answer::Failed(f)) => Err(NotCompiled::Judged(Verdict::from(f))),
        Ok(_) => Err(broken("a compile worker answered something else".into())),
        Err(lost) => {
            *worker = None;
            Err(NotCompiled::Judged(Verdict::from(lost)))
        }
    }
}
