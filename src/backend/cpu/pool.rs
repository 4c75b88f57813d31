//! One pool of threads that claims numbered tasks.

use crate::backend::BackendError;
use crate::sync::lock;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Times a waiting helper looks before it sleeps: some hundreds of microseconds, so that launches in a row find it awake.
const SPINS: u32 = 20_000;
/// Times the caller looks whether the helpers are done before it lets others run: one of them may wait for its core.
const PATIENCE: u32 = 1_000;

/// Most threads of a pool; far above any machine, and below what the gate can count.
const MAX_THREADS: usize = 4096;

type Task = dyn Fn(i64) + Sync;

/// The gate of a job, from its lowest bit: one bit says whether a helper may enter, fifteen count the helpers inside, the
/// other bits are the job's number.
const OPEN: u64 = 1;
const INSIDE: u64 = 2;
const NUMBER: u64 = 1 << 16;

struct Shared {
    gate: AtomicU64,
    desk: Mutex<Desk>,
    wake: Condvar,
    next: AtomicI64,
    /// What a helper's task panicked with.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
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

// SAFETY: the pointer is only used by helpers inside the gate, which `Turn::run` does not leave, by a panic either,
// before it is shut and empty.
unsafe impl Send for Job {}

/// Threads that run one job at a time; the caller is one of them.
pub struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    /// One job at a time, whoever calls.
    turn: Mutex<()>,
}

impl Pool {
    /// A pool of `threads`, the caller counted; none is one.
    pub fn new(threads: usize) -> Result<Pool, BackendError> {
        // Its threads run code that may use them.
        super::tiles::allowed();
        let refused = |why: String| BackendError::Threads { asked: threads, why };
        if threads > MAX_THREADS {
            return Err(refused(format!("{MAX_THREADS} is the most")));
        }
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            desk: Mutex::new(Desk { job: None, asleep: 0 }),
            wake: Condvar::new(),
            next: AtomicI64::new(0),
            panic: Mutex::new(None),
        });
        // Where one cannot be started, those before it end with the pool.
        let mut pool = Pool { shared, handles: Vec::new(), turn: Mutex::new(()) };
        for i in 1..threads {
            let shared = pool.shared.clone();
            let handle = std::thread::Builder::new().name(format!("jitune-{i}")).spawn(move || helper(&shared, i));
            pool.handles.push(handle.map_err(|e| refused(format!("the system started {i} and then said: {e}")))?);
        }
        Ok(pool)
    }

    /// Threads that a job can use.
    pub fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// The pool for one caller until the result is dropped: jobs of others wait, those between two jobs of this caller too.
    pub fn turn(&self) -> Turn<'_> {
        Turn { pool: self, _alone: lock(&self.turn) }
    }

    /// As [`Turn::run`], in a turn of its own.
    pub fn run(&self, tasks: i64, threads: usize, task: &(dyn Fn(i64) + Sync)) {
        self.turn().run(tasks, threads, task);
    }

    fn publish(&self, job: Job) {
        let mut desk = lock(&self.shared.desk);
        desk.job = Some(job);
        let number = self.shared.gate.load(Ordering::Relaxed) / NUMBER + 1;
        self.shared.gate.store((number * NUMBER) | OPEN, Ordering::Release);
        if desk.asleep > 0 {
            self.shared.wake.notify_all();
        }
    }
}

/// One caller's turn on a pool.
pub struct Turn<'p> {
    pool: &'p Pool,
    _alone: MutexGuard<'p, ()>,
}

impl Turn<'_> {
    /// Calls `task` once for every number in `0..tasks` on at most `threads` threads; returns when all are done. A helper
    /// that does not get to run in time is not waited for. A task must not call its own pool.
    ///
    /// # Panics
    /// When a task panics, on whatever thread, once no other is running; what was not begun is left out.
    pub fn run(&mut self, tasks: i64, threads: usize, task: &(dyn Fn(i64) + Sync)) {
        let helpers = threads.clamp(1, self.pool.threads()).min(tasks.max(1) as usize) - 1;
        let s = &self.pool.shared;
        s.next.store(0, Ordering::Relaxed);
        if helpers == 0 {
            return claim(&s.next, tasks, task);
        }
        // SAFETY: only the lifetime is erased. A helper touches the closure only while it is inside the gate, which is
        // shut and empty before this call returns or unwinds.
        let run = unsafe { std::mem::transmute::<*const (dyn Fn(i64) + Sync + '_), *const Task>(task) };
        self.pool.publish(Job { run, tasks, threads: helpers + 1, stop: false });
        let inside = Inside { shared: s, tasks };
        claim(&s.next, tasks, task);
        drop(inside);
        let panic = lock(&s.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
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

/// A job whose helpers may be at work; dropping it waits for them.
struct Inside<'p> {
    shared: &'p Shared,
    tasks: i64,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody begins another task. A helper's own panic gives way to this one.
            self.shared.next.store(self.tasks, Ordering::Relaxed);
        }
        let mut inside = self.shared.gate.fetch_and(!OPEN, Ordering::AcqRel) % NUMBER / INSIDE;
        let mut spins = 0;
        while inside > 0 {
            if spins < PATIENCE {
                std::hint::spin_loop();
                spins += 1;
            } else {
                std::thread::yield_now();
            }
            inside = self.shared.gate.load(Ordering::Acquire) % NUMBER / INSIDE;
        }
        if std::thread::panicking() {
            lock(&self.shared.panic).take();
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
            // SAFETY: this helper is inside the gate, so `Turn::run` keeps the closure alive.
            let task = unsafe { &*job.run };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| claim(&shared.next, job.tasks, task))) {
                shared.next.store(job.tasks, Ordering::Relaxed);
                *lock(&shared.panic) = Some(panic);
            }
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
        let mut desk = lock(&shared.desk);
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
        let pool = Pool::new(4).unwrap();
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
        let pool = Pool::new(3).unwrap();
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
        let pool = Pool::new(2).unwrap();
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

    /// What a run that panics says.
    fn panic_of(pool: &Pool, tasks: i64, threads: usize, task: &(dyn Fn(i64) + Sync)) -> String {
        let failed = catch_unwind(AssertUnwindSafe(|| pool.run(tasks, threads, task)));
        failed.unwrap_err().downcast_ref::<&str>().unwrap().to_string()
    }

    #[test]
    fn a_panic_of_the_caller_waits_for_the_helpers() {
        let pool = Pool::new(4).unwrap();
        let caller = std::thread::current().id();
        for _ in 0..200 {
            let running = AtomicI64::new(0);
            // The closure and what it borrows end with the panic: no helper may be inside then.
            let said = panic_of(&pool, 1 << 40, 4, &|_| {
                if std::thread::current().id() == caller {
                    resume_unwind(Box::new("the caller's"));
                }
                running.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_micros(200));
                running.fetch_sub(1, Ordering::SeqCst);
            });
            assert_eq!((said.as_str(), running.load(Ordering::SeqCst)), ("the caller's", 0));
        }
        let sum = AtomicI64::new(0);
        pool.run(100, 4, &|i| {
            sum.fetch_add(i, Ordering::SeqCst);
        });
        assert_eq!(sum.load(Ordering::SeqCst), 4950);
    }

    #[test]
    fn a_panic_of_a_helper_reaches_the_caller_and_costs_no_thread() {
        let pool = Pool::new(3).unwrap();
        let caller = std::thread::current().id();
        for _ in 0..50 {
            let hit = std::sync::atomic::AtomicBool::new(false);
            let said = panic_of(&pool, 1 << 40, 3, &|_| {
                if std::thread::current().id() != caller {
                    hit.store(true, Ordering::SeqCst);
                    resume_unwind(Box::new("a helper's"));
                }
                std::thread::sleep(Duration::from_micros(10));
            });
            assert!(hit.load(Ordering::SeqCst) && said == "a helper's");
        }
        // All three work still: each of three tasks waits for the other two.
        let barrier = std::sync::Barrier::new(3);
        pool.run(3, 3, &|_| {
            barrier.wait();
        });
    }

    #[test]
    fn more_threads_than_there_can_be_are_refused() {
        for asked in [MAX_THREADS + 1, 100_000, usize::MAX] {
            assert!(matches!(Pool::new(asked), Err(BackendError::Threads { asked: a, .. }) if a == asked));
        }
        assert_eq!(Pool::new(0).unwrap().threads(), 1);
    }
}
