//! One pool of threads that claims numbered tasks.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Times a waiting helper looks before it sleeps: some hundreds of microseconds, so that launches in a row find it awake.
const SPINS: u32 = 20_000;
/// Times the caller looks whether the helpers are done before it lets others run: one of them may wait for its core.
const PATIENCE: u32 = 1_000;

type Task = dyn Fn(i64) + Sync;

/// The gate of a job holds its number, how many helpers are inside, and whether another may enter.
const OPEN: u64 = 1;
const INSIDE: u64 = 2;
const NUMBER: u64 = 1 << 16;

struct Shared {
    gate: AtomicU64,
    desk: Mutex<Desk>,
    wake: Condvar,
    next: AtomicI64,
}

struct Desk {
    job: Option<Job>,
    asleep: usize,
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
            gate: AtomicU64::new(0),
            desk: Mutex::new(Desk { job: None, asleep: 0 }),
            wake: Condvar::new(),
            next: AtomicI64::new(0),
        });
        let spawn = |i: usize| {
            let shared = shared.clone();
            std::thread::Builder::new().name(format!("jitune-{i}")).spawn(move || helper(&shared, i)).ok()
        };
        // The gate counts no more than this.
        let handles = (1..threads.min((NUMBER / INSIDE) as usize)).filter_map(spawn).collect();
        Pool { shared, handles, turn: Mutex::new(()) }
    }

    /// Threads that a job can use.
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Calls `task` once for every number in `0..tasks` on at most `threads` threads; returns when all are done. A helper
    /// that does not get to run in time is not waited for.
    pub fn run(&self, tasks: i64, threads: usize, task: &(dyn Fn(i64) + Sync)) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let helpers = threads.clamp(1, self.threads()).min(tasks.max(1) as usize) - 1;
        let s = &self.shared;
        s.next.store(0, Ordering::Relaxed);
        if helpers == 0 {
            return claim(&s.next, tasks, task);
        }
        // SAFETY: only the lifetime is erased. A helper touches the closure only while it is inside the gate, which is
        // shut and empty before this call returns.
        let run = unsafe { std::mem::transmute::<*const (dyn Fn(i64) + Sync + '_), *const Task>(task) };
        self.publish(Job { run, tasks, threads: helpers + 1, stop: false });
        claim(&s.next, tasks, task);
        let mut inside = s.gate.fetch_and(!OPEN, Ordering::AcqRel) % NUMBER / INSIDE;
        let mut spins = 0;
        while inside > 0 {
            if spins < PATIENCE {
                std::hint::spin_loop();
                spins += 1;
            } else {
                std::thread::yield_now();
            }
            inside = s.gate.load(Ordering::Acquire) % NUMBER / INSIDE;
        }
    }

    fn publish(&self, job: Job) {
        let mut desk = self.shared.desk.lock().unwrap_or_else(PoisonError::into_inner);
        desk.job = Some(job);
        let number = self.shared.gate.load(Ordering::Relaxed) / NUMBER + 1;
        self.shared.gate.store((number * NUMBER) | OPEN, Ordering::Release);
        if desk.asleep > 0 {
            self.shared.wake.notify_all();
        }
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

fn helper(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let job = enter(shared, &mut seen);
        if index < job.threads {
            // SAFETY: this helper is inside the gate, so `Pool::run` keeps the closure alive.
            claim(&shared.next, job.tasks, unsafe { &*job.run });
        }
        shared.gate.fetch_sub(INSIDE, Ordering::Release);
        if job.stop {
            return;
        }
    }
}

/// Waits for a job with another number than `seen` and enters its gate.
fn enter(shared: &Shared, seen: &mut u64) -> Job {
    let fresh = |gate: u64, seen: u64| gate & OPEN != 0 && gate / NUMBER != seen;
    loop {
        let mut spins = 0;
        while !fresh(shared.gate.load(Ordering::Acquire), *seen) && spins < SPINS {
            std::hint::spin_loop();
            spins += 1;
        }
        let mut desk = shared.desk.lock().unwrap_or_else(PoisonError::into_inner);
        while !fresh(shared.gate.load(Ordering::Acquire), *seen) {
            desk.asleep += 1;
            desk = shared.wake.wait(desk).unwrap_or_else(PoisonError::into_inner);
            desk.asleep -= 1;
        }
        // It may be shut at any moment, but no other is opened while the desk is held.
        let inside = |gate: u64| fresh(gate, *seen).then_some(gate + INSIDE);
        if let Ok(gate) = shared.gate.fetch_update(Ordering::AcqRel, Ordering::Acquire, inside) {
            *seen = gate / NUMBER;
            if let Some(job) = desk.job {
                return job;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn jobs_in_a_row_and_after_a_pause_run_whole() {
        let pool = Pool::new(4);
        for i in 0..3000 {
            let sum = AtomicI64::new(0);
            pool.run(17, 4, &|t| {
                sum.fetch_add(t, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 17 * 8);
            if i % 1000 == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

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
