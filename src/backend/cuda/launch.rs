//! Binding a launch to addresses, and launching it.

use super::driver::{Function, Module, Stream, check};
use crate::backend::BackendError;
use crate::problem::{Dtype, Problem, Scalar};
use crate::recipe::{Arg, Launch, TensorMap};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr;

/// Room for one kernel argument, aligned as `CUtensorMap` asks.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct Slot([u8; 128]);

impl Slot {
    fn of(bytes: &[u8]) -> Slot {
        let mut slot = Slot([0; 128]);
        slot.0[..bytes.len()].copy_from_slice(bytes);
        slot
    }
}

struct BoundKernel {
    function: Function,
    grid: [u32; 3],
    block: u32,
    cluster: u32,
    smem: u32,
    pdl: bool,
    slots: Vec<Slot>,
}

/// A launch with its addresses: can be launched again and again, and captured.
pub struct Bound {
    kernels: Vec<BoundKernel>,
}

/// A `CUstream` of the caller's.
#[derive(Clone, Copy)]
pub struct RawStream(sys::CUstream);

impl RawStream {
    /// Takes a stream handle made elsewhere.
    ///
    /// # Safety
    /// `handle` is a `CUstream` of the current context, or null for its default stream, that outlives the launches.
    pub unsafe fn new(handle: *mut c_void) -> RawStream {
        RawStream(handle.cast())
    }
}

impl From<&Stream> for RawStream {
    fn from(s: &Stream) -> RawStream {
        RawStream(s.handle)
    }
}

impl Bound {
    /// Binds `launch` of `problem` to `tensors`, the device address of each tensor in order, and to `workspace`.
    /// The memory must live, and keep its place, as long as launches run.
    pub fn new(
        module: &Module,
        launch: &Launch,
        problem: &Problem,
        tensors: &[u64],
        workspace: u64,
    ) -> Result<Bound, BackendError> {
        let described = problem.tensors();
        if described.len() != tensors.len() {
            return Err(BackendError::Launch {
                why: format!("{problem} has {} tensors, {} addresses given", described.len(), tensors.len()),
            });
        }
        let slot = |arg: &Arg| -> Result<Slot, BackendError> {
            Ok(match arg {
                Arg::Tensor(i) => Slot::of(&tensors[*i].to_le_bytes()),
                Arg::Map(map) => encode(map, tensors[map.tensor], described[map.tensor].scalar)?,
                Arg::I32(v) => Slot::of(&v.to_le_bytes()),
                Arg::I64(v) => Slot::of(&v.to_le_bytes()),
                Arg::F32(v) => Slot::of(&v.to_le_bytes()),
                Arg::Workspace(at) => Slot::of(&(workspace + at).to_le_bytes()),
            })
        };
        let kernel = |k: &crate::recipe::KernelLaunch| -> Result<BoundKernel, BackendError> {
            Ok(BoundKernel {
                function: module.function(&k.entry, k.smem)?,
                grid: k.grid,
                block: k.block,
                cluster: k.cluster,
                smem: k.smem,
                pdl: k.pdl,
                slots: k.args.iter().map(slot).collect::<Result<_, _>>()?,
            })
        };
        Ok(Bound { kernels: launch.kernels.iter().map(kernel).collect::<Result<_, _>>()? })
    }

    /// Enqueues its kernels on a stream; also inside a capture.
    pub fn launch(&self, stream: impl Into<RawStream>) -> Result<(), BackendError> {
        let stream = stream.into();
        for k in &self.kernels {
            let mut params: [*mut c_void; MAX_ARGS] = [ptr::null_mut(); MAX_ARGS];
            for (p, s) in params.iter_mut().zip(&k.slots) {
                *p = ptr::from_ref(&s.0).cast_mut().cast();
            }
            // SAFETY: an all-zero attribute is a valid value of the C union; the used ones are filled in below.
            let mut attributes: [sys::CUlaunchAttribute; 2] = unsafe { std::mem::zeroed() };
            let mut count = 0;
            if k.cluster > 1 {
                attributes[count].id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
                attributes[count].value.clusterDim =
                    sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: k.cluster, y: 1, z: 1 };
                count += 1;
            }
            if k.pdl {
                attributes[count].id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
                attributes[count].value.programmaticStreamSerializationAllowed = 1;
                count += 1;
            }
            let config = sys::CUlaunchConfig {
                gridDimX: k.grid[0],
                gridDimY: k.grid[1],
                gridDimZ: k.grid[2],
                blockDimX: k.block,
                blockDimY: 1,
                blockDimZ: 1,
                sharedMemBytes: k.smem,
                hStream: stream.0,
                attrs: attributes.as_mut_ptr(),
                numAttrs: count as u32,
            };
            // SAFETY: the function belongs to a loaded module, every argument points to a live slot of at least its
            // size, and the addresses are the caller's promise.
            let code =
                unsafe { sys::cuLaunchKernelEx(&config, k.function.handle, params.as_mut_ptr(), ptr::null_mut()) };
            check("cuLaunchKernelEx", code)?;
        }
        Ok(())
    }

    /// Blocks of the first kernel that one multiprocessor holds.
    pub fn blocks_per_sm(&self) -> Result<u32, BackendError> {
        self.kernels.first().map_or(Ok(0), |k| k.function.blocks_per_sm(k.block, k.smem))
    }
}

/// Most arguments a kernel may have.
const MAX_ARGS: usize = 32;

fn encode(map: &TensorMap, address: u64, scalar: Scalar) -> Result<Slot, BackendError> {
    use sys::CUtensorMapDataType_enum as Type;
    let kind = match scalar {
        Scalar::Elem(Dtype::Bf16) => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        Scalar::Elem(Dtype::F16) => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        Scalar::Elem(Dtype::E4m3) => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        Scalar::I32 => Type::CU_TENSOR_MAP_DATA_TYPE_INT32,
        _ => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
    };
    let swizzle = match map.swizzle {
        0 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_NONE,
        32 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_32B,
        64 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_64B,
        128 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
        other => return Err(BackendError::Launch { why: format!("a swizzle of {other} bytes does not exist") }),
    };
    let steps = [1u32; 5];
    let mut out = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: every array holds as many entries as the rank (`Recipe::new` checks), and `out` is aligned as the call asks.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut out,
            kind,
            map.dims.len() as u32,
            address as *mut c_void,
            map.dims.as_ptr(),
            map.strides.as_ptr(),
            map.box_.as_ptr(),
            steps.as_ptr(),
            sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    };
    check("cuTensorMapEncodeTiled", code).map_err(|e| BackendError::Launch { why: format!("{map:?}: {e}") })?;
    let mut slot = Slot([0; 128]);
    for (chunk, word) in slot.0.chunks_exact_mut(8).zip(out.opaque) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    Ok(slot)
}
