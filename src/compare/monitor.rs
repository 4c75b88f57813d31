//! What the hardware does meanwhile: a thread that reads NVML a few times a second.

use crate::backend::cuda::Sensors;
use crate::report::rows::Trace;
use crate::sync::lock;
use jitune_peer::Device;
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two readings.
const EVERY: Duration = Duration::from_millis(200);

/// Readings since the start. On a machine without NVML there are none.
pub struct Monitor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    clock: Option<Sensors>,
}

struct Shared {
    stop: AtomicBool,
    readings: Mutex<Vec<Trace>>,
}

impl Monitor {
    /// Watches a device from now on; a processor has nothing to read.
    pub fn start(device: Device) -> Monitor {
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), readings: Mutex::default() });
        let open = || match device {
            Device::Cuda(ordinal) => Sensors::open(ordinal),
            Device::Cpu(_) => None,
        };
        let thread = open().and_then(|sensors| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().spawn(move || watch(&sensors, &shared)).ok()
        });
        Monitor { shared, thread, clock: open() }
    }

    /// The SM clock in MHz now; 0 where it cannot be read.
    pub fn clock(&self) -> u32 {
        self.clock.as_ref().map_or(0, Sensors::mhz)
    }

    fn readings(&self) -> std::sync::MutexGuard<'_, Vec<Trace>> {
        lock(&self.shared.readings)
    }

    /// How many readings there are, to ask later what came after.
    pub fn mark(&self) -> usize {
        self.readings().len()
    }

    /// The readings since a mark.
    pub fn since(&self, mark: usize) -> Vec<Trace> {
        self.readings().get(mark..).unwrap_or_default().to_vec()
    }

    /// The reasons for lower clocks that were seen since a mark.
    pub fn throttled_since(&self, mark: usize) -> Vec<String> {
        let mut all: Vec<String> = self.since(mark).into_iter().flat_map(|t| t.throttle).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has no more to say.
            let _ = thread.join();
        }
    }
}

fn watch(sensors: &Sensors, shared: &Shared) {
    let start = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        if let Some(device) = sensors.device() {
            let utilization = device.utilization_rates().ok();
            let reading = Trace {
                t: start.elapsed().as_secs_f64(),
                sm_mhz: device.clock_info(Clock::SM).ok().map(f64::from),
                mem_mhz: device.clock_info(Clock::Memory).ok().map(f64::from),
                power_w: device.power_usage().ok().map(|mw| f64::from(mw) / 1e3),
                temp_c: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
                gpu_pct: utilization.as_ref().map(|u| f64::from(u.gpu)),
                mem_pct: utilization.as_ref().map(|u| f64::from(u.memory)),
                mem_bytes: device.memory_info().ok().map(|m| m.used),
                throttle: device.current_throttle_reasons().map(reasons).unwrap_or_default(),
            };
            lock(&shared.readings).push(reading);
        }
        std::thread::sleep(EVERY);
    }
}

/// Their names, but for an idle GPU and clocks that a user set.
fn reasons(set: ThrottleReasons) -> Vec<String> {
    let named = [
        (ThrottleReasons::SW_POWER_CAP, "power cap"),
        (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "hardware heat"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "heat"),
        (ThrottleReasons::SYNC_BOOST, "sync boost"),
    ];
    named.iter().filter(|(bit, _)| set.contains(*bit)).map(|(_, name)| name.to_string()).collect()
}
