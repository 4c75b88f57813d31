//! What GPU is here.

use super::driver::check;
use crate::backend::BackendError;
use crate::device::{Ceilings, Device, Target};
use cudarc::driver::sys;
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ptr;

/// The least CUDA version of the driver: cubins of sm_90a and `cuTensorMapEncodeTiled` need 12.0.
const NEEDED: i32 = 12000;

/// A GPU whose primary context is current on the thread that opened it.
pub struct Gpu {
    handle: sys::CUdevice,
    context: sys::CUcontext,
    /// Its description.
    pub device: Device,
}

// SAFETY: a context handle may be used from any thread; the driver locks.
unsafe impl Send for Gpu {}
unsafe impl Sync for Gpu {}

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

impl Gpu {
    /// Opens a GPU and makes its primary context current on this thread.
    pub fn open(ordinal: usize) -> Result<Gpu, BackendError> {
        let count = gpu_count()?;
        if ordinal >= count {
            return Err(BackendError::NoGpu { ordinal, count });
        }
        let version = driver_version()?;
        let mut handle = 0;
        let mut context = ptr::null_mut();
        // SAFETY: the ordinal exists; the context is released when dropped.
        unsafe {
            check("cuDeviceGet", sys::cuDeviceGet(&mut handle, ordinal as i32))?;
            check("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut context, handle))?;
            check("cuCtxSetCurrent", sys::cuCtxSetCurrent(context))?;
        }
        let device = describe(handle, version)?;
        Ok(Gpu { handle, context, device })
    }

    /// Makes its context current on the calling thread.
    pub fn make_current(&self) -> Result<(), BackendError> {
        // SAFETY: the context lives as long as `self`.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: balances the retain.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.handle) };
    }
}

fn describe(handle: sys::CUdevice, driver: i32) -> Result<Device, BackendError> {
    use sys::CUdevice_attribute_enum as A;
    let get = |attribute| {
        let mut v = 0;
        // SAFETY: the device handle is valid.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut v, attribute, handle) })
            .map(|()| v as u64)
    };
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
    // FLOP per multiprocessor and cycle by NVIDIA's architecture whitepapers; measured ceilings replace these.
    let (half, single) = match cc {
        80 => (2048.0, 128.0),
        90 => (4096.0, 256.0),
        _ => (1024.0, 256.0),
    };
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
        simd: 0,
        memory: memory as u64,
        silicon,
        ceilings: Ceilings {
            read,
            copy: read * 0.9,
            half,
            tf32: half / 2.0,
            single: units as f64 * hz * single,
            measured: false,
        },
    })
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
