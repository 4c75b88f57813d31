//! One pool of threads that claims numbered tasks.

use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Times a waiting thread looks before it sleeps: some tens of microseconds, so that launches in a row find it awake.
const SPINS: u32 = 20_000;

type Task = dyn Fn(i64) + Sync;

struct Shared {
    /// Counts the jobs; a thread that sees it move takes part in the job.
    epoch: AtomicU64,
    job: Mutex<Option<Job>>,
    wake: Condvar,
    next: AtomicI64,
    busy: AtomicUsize,
}

#[derive(Clone, Copy)]
struct Job {
    run: *const Task,
    tasks: i64,
    threads: usize,
    stop: bool,
}

// SAFETY: the pointer is only used between the start and the end of `Pool::run`, which keeps the closure alive.
unsafe impl Send for Job {}

/// Threads that run one job at a time; the caller is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    /// One job at a time, whoever calls.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of `threads`, the caller counted.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            job: Mutex::new(None),
            wake: Condvar::new(),
            next: AtomicI64::new(0),
            busy: AtomicUsize::new(0),
        });
        let spawn = |i: usize| {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("jitune-{i}")).spawn(move || worker(&shared, i)).ok()
        };
        let handles = (1..threads).filter_map(spawn).collect();
        Pool { shared, handles, turn: Mutex::new(()) }
    }

    /// Threads that a job can use.
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Calls `task` once for every number in `0..tasks` on at most `threads` threads; returns when all are done.
    pub fn run(&self, tasks: i64, threads: usize, task: &(dyn Fn(i64) + Sync)) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let helpers = threads.clamp(1, self.threads()).min(tasks.max(1) as usize) - 1;
        let s = &self.shared;
        s.next.store(0, Ordering::Relaxed);
        if helpers > 0 {
            // SAFETY: only the lifetime is erased. No thread touches the closure after `busy` is zero again, which this
            // call waits for before it returns.
            let run = unsafe { std::mem::transmute::<*const (dyn Fn(i64) + Sync + '_), *const Task>(task) };
            s.busy.store(self.handles.len(), Ordering::Relaxed);
            self.publish(Job { run, tasks, threads: helpers + 1, stop: false });
        }
        claim(&s.next, tasks, task);
        if helpers > 0 {
            while s.busy.load(Ordering::Acquire) > 0 {
                std::hint::spin_loop();
            }
        }
    }

    fn publish(&self, job: Job) {
        let mut slot = self.shared.job.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(job);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let nothing: *const Task = &|_| ();
        self.publish(Job { run: nothing, tasks: 0, threads: 0, stop: true });
        for h in self.handles.drain(..) {
            // A thread only ends by leaving its loop; there is nothing to do about one that panicked.
            let _ = h.join();
        }
    }
}

fn claim(next: &AtomicI64, tasks: i64, task: &(dyn Fn(i64) + Sync)) {
    loop {
        let i = next.fetch_add(1, Ordering::Relaxed);
        if i >= tasks {
            return;
        }
        task(i);
    }
}

fn worker(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        while shared.epoch.load(Ordering::Acquire) == seen && spins < SPINS {
            std::hint::spin_loop();
            spins += 1;
        }
        let job = {
            let mut slot = shared.job.lock().unwrap_or_else(PoisonError::into_inner);
            while shared.epoch.load(Ordering::Acquire) == seen {
                slot = shared.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
            }
            seen = shared.epoch.load(Ordering::Acquire);
            *slot
        };
        let Some(job) = job else { continue };
        if job.stop {
            return;
        }
        if index < job.threads {
            // SAFETY: `Pool::run` keeps the closure alive until `busy` is zero.
            claim(&shared.next, job.tasks, unsafe { &*job.run });
        }
        shared.busy.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        let pool = Pool::new(3);
        for tasks in [0, 1, 2, 7, 1000] {
            let hits: Vec<AtomicU64> = (0..tasks).map(|_| AtomicU64::new(0)).collect();
            pool.run(tasks, 3, &|i| {
                hits[i as usize].fetch_add(1, Ordering::Relaxed);
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn two_callers_take_turns() {
        let pool = Pool::new(2);
        let sum = AtomicI64::new(0);
        std::thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    for _ in 0..200 {
                        pool.run(10, 2, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 2 * 200 * 45);
    }
}
