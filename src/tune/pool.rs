//! The compile pool: workers that turn sources into artifacts, each source once.

use super::verdict::Verdict;
use crate::backend::ArtifactInfo;
use crate::template::Source;
use crate::worker::{Answer, Failure, FailureKind, Kind, Request, Worker};
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a compiler may take.
const DEADLINE: Duration = Duration::from_secs(90);
/// What one compile worker may come to use; the pool is no larger than memory allows at this each.
pub const WORKER_MEMORY: u64 = 1 << 30;

/// An artifact on disk.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Its file.
    pub path: PathBuf,
    /// Its hash.
    pub hash: String,
    /// What the compiler said.
    pub info: ArtifactInfo,
}

/// Why there is no artifact.
#[derive(Clone, Debug)]
pub enum NotCompiled {
    /// The candidate's own doing.
    Judged(Verdict),
    /// The machine's: no candidate is to blame, and none may be remembered for it.
    Broken(Failure),
}

/// What came of a source.
pub type Outcome = Result<Compiled, NotCompiled>;
type Reply = (Sender<(usize, Outcome)>, usize);

enum Slot {
    Waiting(Vec<Reply>),
    Done(Outcome),
}

#[derive(Default)]
struct State {
    queue: VecDeque<(String, Source)>,
    slots: HashMap<String, Slot>,
    stop: bool,
    busy_s: f64,
    compiled: u64,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

/// Compile workers and their queue.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `workers` compile workers of the program at `exe`, which leave artifacts in `folder`.
    pub fn start(exe: PathBuf, folder: PathBuf, workers: usize) -> Pool {
        let shared = Arc::new(Shared { state: Mutex::default(), wake: Condvar::new() });
        let spawn = |_| {
            let (shared, exe, folder) = (shared.clone(), exe.clone(), folder.clone());
            std::thread::spawn(move || work(&shared, &exe, &folder))
        };
        let threads = (0..workers.max(1)).map(spawn).collect();
        Pool { shared, threads }
    }

    /// Asks for a source. The outcome goes to `reply` with its number, at once when it is known already. Without a reply
    /// the source is compiled when nothing else is asked for.
    pub fn submit(&self, source: &Source, reply: Option<Reply>) {
        let hash = source.hash();
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let urgent = reply.is_some();
        match state.slots.get_mut(&hash) {
            Some(Slot::Done(outcome)) => {
                if let Some((to, number)) = reply {
                    // A receiver that is gone no longer wants it.
                    let _ = to.send((number, outcome.clone()));
                }
                return;
            }
            Some(Slot::Waiting(list)) => {
                list.extend(reply);
                if urgent && let Some(at) = state.queue.iter().position(|(h, _)| *h == hash) {
                    // It was only foreseen until now: it moves ahead of what still is.
                    if let Some(job) = state.queue.remove(at) {
                        state.queue.push_front(job);
                    }
                }
                return;
            }
            None => {}
        }
        state.slots.insert(hash.clone(), Slot::Waiting(reply.into_iter().collect()));
        let job = (hash, source.clone());
        if urgent {
            state.queue.push_front(job)
        } else {
            state.queue.push_back(job)
        }
        self.shared.wake.notify_one();
    }

    /// Drops everything that is not being compiled yet.
    pub fn clear(&self) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped: Vec<String> = state.queue.drain(..).map(|(h, _)| h).collect();
        for hash in dropped {
            state.slots.remove(&hash);
        }
    }

    /// Seconds that all workers spent compiling, and how many sources.
    pub fn spent(&self) -> (f64, u64) {
        let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.busy_s, state.compiled)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.clear();
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.shared.wake.notify_all();
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

fn work(shared: &Shared, exe: &PathBuf, folder: &std::path::Path) {
    let mut worker: Option<Worker> = None;
    loop {
        let job = {
            let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                if state.stop {
                    return;
                }
                if let Some(job) = state.queue.pop_front() {
                    break job;
                }
                state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let (hash, source) = job;
        let start = Instant::now();
        let outcome = compile(&mut worker, exe, folder, source);
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.busy_s += start.elapsed().as_secs_f64();
        state.compiled += 1;
        if let Some(Slot::Waiting(list)) = state.slots.insert(hash, Slot::Done(outcome.clone())) {
            for (to, number) in list {
                let _ = to.send((number, outcome.clone()));
            }
        }
    }
}

fn compile(worker: &mut Option<Worker>, exe: &PathBuf, folder: &std::path::Path, source: Source) -> Outcome {
    let broken = |message: String| NotCompiled::Broken(Failure { kind: FailureKind::Environment, message });
    if worker.is_none() {
        *worker = Some(Worker::start(exe, Kind::Compile).map_err(|lost| broken(lost.to_string()))?);
    }
    let Some(w) = worker else { return Err(broken("a compile worker is not started".into())) };
    let request = Request::Compile { source: Box::new(source), folder: folder.to_path_buf() };
    match w.ask(&request, DEADLINE) {
        Ok(Answer::Compiled { path, hash, info }) => Ok(Compiled { path, hash, info }),
        Ok(Answer::Failed(f)) if f.is_of_the_machine() => Err(NotCompiled::Broken(f)),
        Ok(Answer::Failed(f)) => Err(NotCompiled::Judged(Verdict::from(f))),
        Ok(_) => Err(broken("a compile worker answered something else".into())),
        Err(lost) => {
            *worker = None;
            Err(NotCompiled::Judged(Verdict::from(lost)))
        }
    }
}
