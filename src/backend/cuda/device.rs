//! What GPU is here.

use super::context::{Context, Limits};
use super::driver::check;
use crate::backend::BackendError;
use crate::device::{Ceilings, Device, Target};
use cudarc::driver::sys;
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::Arc;

/// The least CUDA version of the driver: cubins of sm_90a and `cuTensorMapEncodeTiled` need 12.0.
const NEEDED: i32 = 12000;

/// The CUDA version that the driver supports, e.g. 13000; checks that there is a driver.
pub fn driver_version() -> Result<i32, BackendError> {
    if !super::present(&["libcuda.so", "libcuda.so.1"]) {
        return Err(BackendError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the library is present, so the symbol loads; cuDriverGetVersion needs no initialisation.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    if version < NEEDED {
        let text = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
        return Err(BackendError::OldDriver { found: text(version), needed: text(NEEDED) });
    }
    Ok(version)
}

/// How many GPUs the driver sees.
pub fn gpu_count() -> Result<usize, BackendError> {
    driver_version()?;
    let mut count = 0;
    // SAFETY: the library is present; cuInit may be called any number of times.
    unsafe {
        match sys::cuInit(0) {
            sys::CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
            code => check("cuInit", code)?,
        }
        check("cuDeviceGetCount", sys::cuDeviceGetCount(&mut count))?;
    }
    Ok(count as usize)
}

fn device(ordinal: usize) -> Result<sys::CUdevice, BackendError> {
    let count = gpu_count()?;
    if ordinal >= count {
        return Err(BackendError::NoGpu { ordinal, count });
    }
    let mut handle = 0;
    // SAFETY: the ordinal exists.
    check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut handle, ordinal as i32) })?;
    Ok(handle)
}

/// The name that a GPU has in NVML and `nvidia-smi`, `GPU-` and its UUID: unlike its ordinal it is the same whatever
/// CUDA_VISIBLE_DEVICES and the order of devices are.
pub fn gpu_uuid(ordinal: usize) -> Result<String, BackendError> {
    let device = device(ordinal)?;
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: the device exists, and the call writes 16 bytes.
    check("cuDeviceGetUuid", unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, device) })?;
    let hex: String = uuid.bytes.iter().map(|b| format!("{:02x}", *b as u8)).collect();
    Ok(format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

/// Describes the GPU of that ordinal; makes no context on it.
pub fn describe(ordinal: usize) -> Result<Device, BackendError> {
    description(device(ordinal)?, driver_version()?)
}

/// Opens the GPU of that ordinal. The calling thread keeps whatever context it has.
pub(crate) fn open(ordinal: usize) -> Result<(Arc<Context>, Device), BackendError> {
    let (handle, version) = (device(ordinal)?, driver_version()?);
    let device = description(handle, version)?;
    let limits = limits(handle, version, &device)?;
    Ok((Context::retain(handle, ordinal, limits)?, device))
}

fn attribute(handle: sys::CUdevice, which: sys::CUdevice_attribute) -> Result<u64, BackendError> {
    let mut v = 0;
    // SAFETY: the device handle is valid.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut v, which, handle) })?;
    // None of those that are asked for is negative.
    Ok(v.max(0) as u64)
}

fn limits(handle: sys::CUdevice, driver: i32, device: &Device) -> Result<Limits, BackendError> {
    use sys::CUdevice_attribute_enum as A;
    let get = |which| Ok::<u32, BackendError>(attribute(handle, which)? as u32);
    Ok(Limits {
        grid: [
            get(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
            get(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?,
            get(A::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?,
        ],
        smem: device.smem as u32,
        // By the programming guide: more since CUDA 12.1, from Volta on.
        parameters: if driver >= 12010 && device.cc >= 70 { 32764 } else { 4096 },
    })
}

fn description(handle: sys::CUdevice, driver: i32) -> Result<Device, BackendError> {
    use sys::CUdevice_attribute_enum as A;
    let get = |which| attribute(handle, which);
    let mut name = [0; 96];
    let mut memory = 0;
    // SAFETY: the name buffer's length is given, and the call ends it with a zero.
    let name = unsafe {
        check("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, handle))?;
        check("cuDeviceTotalMem", sys::cuDeviceTotalMem_v2(&mut memory, handle))?;
        CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
    };
    let major = get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = get(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let cc = (major * 10 + minor) as u32;
    let units = get(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let l2 = get(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
    let clock_khz = get(A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
    let memory_khz = get(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
    let bus = get(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
    // Only Hopper has instructions of its own that we use; other architectures run what their family compiles.
    let arch = match cc {
        90 => "sm_90a".to_string(),
        _ => format!("sm_{cc}"),
    };
    let silicon = BTreeMap::from([
        ("compute_capability".to_string(), cc.to_string()),
        ("multiprocessors".to_string(), units.to_string()),
        ("l2_bytes".to_string(), l2.to_string()),
        // The usable size differs by firmware reserves, so it is rounded to a GiB.
        ("memory_gib".to_string(), ((memory as u64 + (1 << 29)) >> 30).to_string()),
        ("clock_khz".to_string(), clock_khz.to_string()),
        ("memory_clock_khz".to_string(), memory_khz.to_string()),
        ("bus_bits".to_string(), bus.to_string()),
        ("driver".to_string(), driver_release().unwrap_or_else(|| format!("cuda {driver}"))),
    ]);
    // Double data rate; the fallback is of an order that keeps rooflines finite where the driver reports zero.
    let read = if memory_khz * bus > 0 { memory_khz as f64 * 1e3 * 2.0 * bus as f64 / 8.0 * 0.93 } else { 1e12 };
    let hz = clock_khz as f64 * 1e3;
    // A stand-in for a generation that is not known, until its rate is measured.
    let (half, single) = rates(cc).unwrap_or((4096.0, 256.0));
    let half = units as f64 * hz * half;
    Ok(Device {
        target: Target::Cuda,
        name,
        arch,
        cc,
        units: units as u32,
        smem: get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        smem_sm: get(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
        regs_sm: get(A::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR)?,
        l1: 0,
        l2,
        l3: 0,
        isa: String::new(),
        flags: String::new(),
        simd: 0,
        memory: memory as u64,
        silicon,
        ceilings: Ceilings {
            read,
            copy: read * 0.9,
            half,
            tf32: half / 2.0,
            single: Ceilings::single_by_tf32(half / 2.0).max(units as f64 * hz * single),
            fma: 0.0,
            measured: false,
        },
    })
}

/// FLOP per multiprocessor and cycle, of matrix products of 16-bit elements and of f32: the most that any part of the
/// generation reaches, by NVIDIA's architecture whitepapers and datasheets. `None` for one that is not known.
fn rates(cc: u32) -> Option<(f64, f64)> {
    match cc {
        80 => Some((2048.0, 128.0)),
        87 => Some((2048.0, 256.0)),
        86 | 89 | 120 | 121 => Some((1024.0, 256.0)),
        90 => Some((4096.0, 256.0)),
        100 | 103 => Some((8192.0, 256.0)),
        _ => None,
    }
}

/// Whether it is known what no kernel exceeds on a GPU of this compute capability.
#[cfg(any(test, feature = "tuner"))]
pub(super) fn is_known(cc: u32) -> bool {
    rates(cc).is_some()
}

/// The driver's release, such as 580.65.06, as its kernel module reports it.
fn driver_release() -> Option<String> {
    let text = std::fs::read_to_string("/sys/module/nvidia/version")
        .or_else(|_| {
            let line = std::fs::read_to_string("/proc/driver/nvidia/version")?;
            Ok::<_, std::io::Error>(line.split_whitespace().find(|w| w.contains('.')).unwrap_or("").to_string())
        })
        .ok()?;
    Some(text.trim().to_string()).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts by their datasheets: multiprocessors, boost clock in GHz, dense bf16 products in TFLOP/s with f32 accumulators.
    const PARTS: [(u32, f64, f64, f64); 6] = [
        (80, 108.0, 1.41, 312.0),
        (86, 84.0, 1.74, 149.7),
        (89, 142.0, 2.52, 362.0),
        (90, 132.0, 1.83, 989.4),
        (100, 148.0, 1.965, 2250.0),
        (120, 188.0, 2.617, 503.8),
    ];

    #[test]
    fn no_part_exceeds_the_rate_of_its_generation() {
        for (cc, units, ghz, tflops) in PARTS {
            let most = rates(cc).unwrap().0 * units * ghz * 1e-3;
            assert!(tflops <= most * 1.01 && tflops > most * 0.9, "{cc}: {tflops} of {most}");
        }
        assert!(!is_known(75) && !is_known(200));
    }
}
