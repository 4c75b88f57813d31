//! What NVML tells of a GPU while it works.

use super::device::gpu_uuid;
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::{Device, Nvml};

/// The sensors of one GPU.
pub struct Sensors {
    nvml: Nvml,
    index: u32,
}

impl Sensors {
    /// Those of the GPU with that ordinal in CUDA; none on a machine without NVML. NVML numbers GPUs in another order, and
    /// counts those that CUDA_VISIBLE_DEVICES hides, so it is asked by UUID.
    pub fn open(ordinal: usize) -> Option<Sensors> {
        let (nvml, uuid) = (Nvml::init().ok()?, gpu_uuid(ordinal).ok()?);
        // A part of a GPU has a name of its own, and no clock.
        let part = || nvml.device_by_uuid(uuid.replacen("GPU", "MIG", 1))?.mig_parent_device();
        let index = nvml.device_by_uuid(uuid.as_str()).or_else(|_| part()).and_then(|d| d.index()).ok()?;
        Some(Sensors { nvml, index })
    }

    /// The GPU to NVML.
    pub fn device(&self) -> Option<Device<'_>> {
        self.nvml.device_by_index(self.index).ok()
    }

    /// The clock of the multiprocessors in MHz now; 0 where it cannot be read.
    pub fn mhz(&self) -> u32 {
        self.device().and_then(|d| d.clock_info(Clock::SM).ok()).unwrap_or(0)
    }
}
