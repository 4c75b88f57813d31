//! What the processes of an engine and the hardware do while a cell runs.

use super::measured::Meanwhile;
use crate::compare::Monitor;
use crate::report::rows::Trace;
use crate::sync::lock;
use crate::worker::family;
use jitune_peer::Device;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two looks at the host's processes.
const EVERY: Duration = Duration::from_millis(250);

/// Watches from its start to [`Watch::end`].
pub struct Watch {
    gpu: Monitor,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    begun: Instant,
    before: f64,
    root: Option<u32>,
    device: Device,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Resident bytes of all processes together, at each look.
    bytes: Mutex<Vec<u64>>,
}

impl Watch {
    /// Watches a device, and the process `root` with all below it, where one is known.
    pub fn start(device: Device, root: Option<u32>) -> Watch {
        let shared = Arc::new(Shared::default());
        let thread = root.and_then(|root| {
            let shared = Arc::clone(&shared);
            let look = move || {
                while !shared.stop.load(Ordering::Relaxed) {
                    lock(&shared.bytes).push(family(root).into_iter().filter_map(resident).sum());
                    std::thread::sleep(EVERY);
                }
            };
            std::thread::Builder::new().name("watch".into()).spawn(look).ok()
        });
        let before = root.map_or(0.0, busy);
        Watch { gpu: Monitor::start(device), shared, thread, begun: Instant::now(), before, root, device }
    }

    /// What was seen, and the readings of a GPU.
    pub fn end(mut self) -> (Meanwhile, Vec<Trace>) {
        let seconds = self.begun.elapsed().as_secs_f64();
        self.stop();
        let host = std::mem::take(&mut *lock(&self.shared.bytes));
        let trace = self.gpu.since(0);
        let mean = |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
        let of = |pick: fn(&Trace) -> Option<f64>| -> Vec<f64> { trace.iter().filter_map(pick).collect() };
        let on_device: Vec<u64> = match self.device {
            Device::Cuda(_) => trace.iter().filter_map(|t| t.mem_bytes).collect(),
            Device::Cpu(_) => host.clone(),
        };
        let meanwhile = Meanwhile {
            peak_bytes: on_device.iter().max().copied(),
            sustained_bytes: mean(on_device.iter().map(|b| *b as f64).collect()).map(|b| b as u64),
            busy: mean(of(|t| t.gpu_pct)).map(|pct| pct / 100.0),
            sm_mhz: mean(of(|t| t.sm_mhz)),
            power_w: mean(of(|t| t.power_w)),
            temp_c: of(|t| t.temp_c).into_iter().reduce(f64::max),
            host_cores: self.root.map(|root| ((busy(root) - self.before) / seconds.max(1e-9)).max(0.0)),
            host_bytes: host.iter().max().copied(),
            ..Meanwhile::default()
        };
        (meanwhile, trace)
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has no more to say.
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Bytes of a process's memory that are in the machine's.
fn resident(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    Some(text.split(' ').nth(1)?.parse::<u64>().ok()? * rustix::param::page_size() as u64)
}

/// Seconds of a processor that a process and all below it have had.
fn busy(root: u32) -> f64 {
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let of = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may hold anything: the state is the first field, user and system time are the 12th and 13th.
        let mut fields = text.rsplit_once(") ")?.1.split(' ').skip(11);
        let mut next = || fields.next()?.parse::<f64>().ok();
        Some((next()? + next()?) / ticks)
    };
    family(root).into_iter().filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_that_works_is_seen() {
        // A shell with a child: both are counted.
        let mut shell = Command::new("sh").args(["-c", "sh -c 'while :; do :; done' & wait"]).spawn().unwrap();
        let watch = Watch::start(Device::Cpu(1), Some(shell.id()));
        std::thread::sleep(Duration::from_millis(900));
        let (seen, trace) = watch.end();
        for pid in family(shell.id()) {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_raw(pid as i32).unwrap(),
                rustix::process::Signal::KILL,
            );
        }
        let _ = shell.wait();
        assert!(seen.host_cores.is_some_and(|cores| cores > 0.05 && cores < 1.5), "{seen:?}");
        assert!(seen.host_bytes.is_some_and(|bytes| bytes > 1 << 19), "{seen:?}");
        assert_eq!((trace.len(), seen.power_w), (0, None));
    }
}
