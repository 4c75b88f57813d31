//! Checking a launch against a GPU, binding it to addresses, and launching it.

use super::context::Context;
use super::driver::{Module, StreamRef, check};
use crate::backend::BackendError;
use crate::problem::Storage;
use crate::recipe::{Arg, KernelLaunch, Launch, MAX_ARGS, TensorMap};
use cudarc::driver::sys;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

/// Most blocks of a cluster that every GPU with clusters takes.
const MAX_CLUSTER: u32 = 8;
/// What the address of every tensor and of the workspace is a multiple of: kernels move 16 bytes at a time, and tensor
/// maps ask for it.
pub(crate) const ALIGNMENT: u64 = 16;

/// Room for one kernel argument, aligned as `CUtensorMap` asks.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct Slot([u8; 128]);

/// Stands for arguments that a kernel does not have.
static EMPTY: Slot = Slot([0; 128]);

impl Slot {
    fn of(bytes: &[u8]) -> Slot {
        let mut slot = Slot([0; 128]);
        slot.0[..bytes.len()].copy_from_slice(bytes);
        slot
    }
}

/// Bytes of an argument, and what its offset among the arguments is a multiple of.
fn size(arg: &Arg) -> (usize, usize) {
    match arg {
        Arg::Tensor(_) | Arg::I64(_) | Arg::Workspace(_) => (8, 8),
        Arg::I32(_) | Arg::F32(_) => (4, 4),
        Arg::Map(_) => (128, 64),
    }
}

/// A launch whose kernels are found and that this GPU can do; it lacks the addresses.
pub(crate) struct Executable {
    kernels: Vec<KernelLaunch>,
    handles: Vec<Handle>,
    storages: Vec<Storage>,
    module: Arc<Module>,
}

#[derive(Clone, Copy)]
struct Handle(sys::CUfunction);

// SAFETY: as for `Module`, which is held beside it.
unsafe impl Send for Handle {}
unsafe impl Sync for Handle {}

impl Executable {
    /// Checks a launch over tensors of these types: its kernels are there, and take such arguments, so many threads and so
    /// much shared memory.
    pub(crate) fn new(
        module: &Arc<Module>,
        launch: &Launch,
        tensors: &[Storage],
    ) -> Result<Arc<Executable>, BackendError> {
        let handles = launch.kernels.iter().map(|k| handle(module, launch, k, tensors)).collect::<Result<_, _>>()?;
        let (kernels, storages) = (launch.kernels.clone(), tensors.to_vec());
        Ok(Arc::new(Executable { kernels, handles, storages, module: Arc::clone(module) }))
    }

    /// Binds it to the device address of each tensor, in order, and of the workspace (any where none is needed).
    ///
    /// # Safety
    /// From now to the end of the last launch, replays of captured ones included, each address is that of memory of the
    /// tensor's size on the module's GPU, which nothing else writes, or reads where a launch writes it, while one runs;
    /// and tensors whose values say where memory is read or written (pages, slots, ids, lengths) hold values within
    /// their range.
    pub(crate) unsafe fn bind(self: &Arc<Self>, tensors: &[u64], workspace: u64) -> Result<Bound, BackendError> {
        if self.storages.len() != tensors.len() {
            let why = format!("it has {} tensors, {} addresses are given", self.storages.len(), tensors.len());
            return Err(BackendError::Bind { why });
        }
        let slot = |arg: &Arg| match arg {
            Arg::Tensor(i) | Arg::Map(TensorMap { tensor: i, .. }) => self.at_tensor(arg, tensors[*i]),
            Arg::I32(v) => Ok(Slot::of(&v.to_le_bytes())),
            Arg::I64(v) => Ok(Slot::of(&v.to_le_bytes())),
            Arg::F32(v) => Ok(Slot::of(&v.to_le_bytes())),
            Arg::Workspace(at) => at_workspace(workspace, *at),
        };
        let slots = |k: &KernelLaunch| k.args.iter().map(slot).collect::<Result<Vec<_>, _>>();
        let slots = self.kernels.iter().map(slots).collect::<Result<_, _>>()?;
        Ok(Bound { executable: Arc::clone(self), slots })
    }

    /// The argument that stands for a tensor at an address.
    fn at_tensor(&self, arg: &Arg, address: u64) -> Result<Slot, BackendError> {
        if !address.is_multiple_of(ALIGNMENT) {
            let why = format!("the address {address:#x} of a tensor is no multiple of {ALIGNMENT}");
            return Err(BackendError::Bind { why });
        }
        match arg {
            Arg::Map(map) => encode(map, address, self.storages[map.tensor], &self.module.context),
            _ => Ok(Slot::of(&address.to_le_bytes())),
        }
    }

    /// Blocks of the first kernel that one multiprocessor holds.
    #[cfg(feature = "tuner")]
    pub(crate) fn blocks_per_sm(&self) -> Result<u32, BackendError> {
        let Some(k) = self.kernels.first() else { return Ok(0) };
        self.module.function(&k.entry)?.blocks_per_sm(k.block, k.smem, &self.module.context)
    }
}

fn at_workspace(workspace: u64, at: u64) -> Result<Slot, BackendError> {
    let address = workspace.checked_add(at).filter(|_| workspace.is_multiple_of(ALIGNMENT));
    let why =
        || format!("the workspace's address {workspace:#x} is no multiple of {ALIGNMENT}, or ends outside of memory");
    address.map(|a| Slot::of(&a.to_le_bytes())).ok_or_else(|| BackendError::Bind { why: why() })
}

/// Finds one kernel, and refuses what the driver would refuse at its launch, or read past.
fn handle(module: &Module, launch: &Launch, k: &KernelLaunch, tensors: &[Storage]) -> Result<Handle, BackendError> {
    let refused = |why: String| BackendError::Launch { why: format!("{}: {why}", k.entry) };
    let (function, limits) = (module.function(&k.entry)?, module.context.limits);
    if k.grid.iter().zip(limits.grid).any(|(n, most)| *n == 0 || *n > most) {
        return Err(refused(format!("a grid of {:?} blocks, and {:?} is the most", k.grid, limits.grid)));
    }
    if k.block == 0 || k.block > function.threads {
        return Err(refused(format!("blocks of {} threads, and {} is the most", k.block, function.threads)));
    }
    if k.cluster == 0 || k.cluster > MAX_CLUSTER || !k.grid[0].is_multiple_of(k.cluster) {
        return Err(refused(format!("clusters of {} blocks on a grid of {:?}", k.cluster, k.grid)));
    }
    function.allow(k.smem, &module.context).map_err(|e| match e {
        BackendError::Launch { why } => refused(why),
        other => other,
    })?;
    let mut end = 0usize;
    for arg in &k.args {
        let (bytes, align) = size(arg);
        end = end.next_multiple_of(align) + bytes;
        match arg {
            Arg::Tensor(i) | Arg::Map(TensorMap { tensor: i, .. }) if *i >= tensors.len() => {
                return Err(refused(format!("it takes tensor {i} of {}", tensors.len())));
            }
            Arg::Map(map) => possible(map, tensors[map.tensor]).map_err(refused)?,
            Arg::Workspace(at) if *at > launch.workspace => {
                return Err(refused(format!("byte {at} of a workspace of {}", launch.workspace)));
            }
            _ => {}
        }
    }
    if k.args.len() > MAX_ARGS || end > limits.parameters {
        let (args, most) = (k.args.len(), limits.parameters);
        return Err(refused(format!("{args} arguments of {end} bytes, and {MAX_ARGS} of {most} is the most")));
    }
    let given = || k.args.iter().map(|a| size(a).0);
    if let Some(taken) = function.parameters.as_ref().filter(|t| !t.iter().copied().eq(given())) {
        let given: Vec<usize> = given().collect();
        return Err(refused(format!(
            "its code takes arguments of {taken:?} bytes, and its description gives {given:?}"
        )));
    }
    Ok(Handle(function.handle))
}

/// A launch with its addresses: can be launched again and again, and captured.
pub(crate) struct Bound {
    executable: Arc<Executable>,
    slots: Vec<Vec<Slot>>,
}

impl Bound {
    /// Puts other memory in the place of a tensor; launches that were enqueued or captured keep the old one. After an
    /// error nothing has changed.
    ///
    /// # Safety
    /// As for [`Executable::bind`].
    pub(crate) unsafe fn set_tensor(&mut self, tensor: usize, address: u64) -> Result<(), BackendError> {
        self.set(|executable, arg| match arg {
            Arg::Tensor(i) | Arg::Map(TensorMap { tensor: i, .. }) if *i == tensor => {
                executable.at_tensor(arg, address).map(Some)
            }
            _ => Ok(None),
        })
    }

    /// Puts another workspace in the place of the one it has.
    ///
    /// # Safety
    /// As for [`Executable::bind`].
    pub(crate) unsafe fn set_workspace(&mut self, address: u64) -> Result<(), BackendError> {
        self.set(|_, arg| match arg {
            Arg::Workspace(at) => at_workspace(address, *at).map(Some),
            _ => Ok(None),
        })
    }

    fn set(
        &mut self,
        slot: impl Fn(&Executable, &Arg) -> Result<Option<Slot>, BackendError>,
    ) -> Result<(), BackendError> {
        let mut changed = Vec::new();
        for (k, kernel) in self.executable.kernels.iter().enumerate() {
            for (a, arg) in kernel.args.iter().enumerate() {
                changed.extend(slot(&self.executable, arg)?.map(|new| (k, a, new)));
            }
        }
        changed.into_iter().for_each(|(k, a, new)| self.slots[k][a] = new);
        Ok(())
    }

    /// Enqueues its kernels on a stream; also inside a capture.
    #[cfg(feature = "tuner")]
    pub(crate) fn launch<'s>(&self, stream: impl Into<StreamRef<'s>>) -> Result<(), BackendError> {
        self.enqueue(stream, true)
    }

    /// The same. The first of them begins `early`, before what was enqueued last has ended, where it is made for that, or else behind it.
    pub(crate) fn enqueue<'s>(&self, stream: impl Into<StreamRef<'s>>, early: bool) -> Result<(), BackendError> {
        let (stream, context) = (stream.into(), &self.executable.module.context);
        let mut early = early;
        stream.of(context)?;
        let _current = context.bind()?;
        for ((k, function), slots) in self.executable.kernels.iter().zip(&self.executable.handles).zip(&self.slots) {
            let mut params: [*mut c_void; MAX_ARGS] = [ptr::from_ref(&EMPTY.0).cast_mut().cast(); MAX_ARGS];
            for (p, s) in params.iter_mut().zip(slots) {
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
            if k.pdl && std::mem::replace(&mut early, true) {
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
                hStream: stream.handle,
                attrs: attributes.as_mut_ptr(),
                numAttrs: count as u32,
            };
            // SAFETY: the function belongs to a loaded module of this context, every argument points to a live slot of at
            // least its size, and the addresses are the promise that `bind` was given.
            let code = unsafe { sys::cuLaunchKernelEx(&config, function.0, params.as_mut_ptr(), ptr::null_mut()) };
            check("cuLaunchKernelEx", code)?;
        }
        Ok(())
    }
}

/// What the driver asks of a tensor map without interleaving, whatever the address (CUDA driver API,
/// cuTensorMapEncodeTiled).
fn possible(map: &TensorMap, storage: Storage) -> Result<(), String> {
    let rank = map.dims.len();
    if !(1..=5).contains(&rank) || map.box_.len() != rank || map.strides.len() + 1 != rank {
        return Err(format!("a map of {rank} dimensions, or of other numbers of sizes: {map:?}"));
    }
    if map.dims.iter().any(|d| *d < 1 || *d > 1 << 32) || map.box_.iter().any(|b| *b < 1 || *b > 256) {
        return Err(format!("dimensions are 1 to 2^32 and box sizes 1 to 256: {map:?}"));
    }
    if map.strides.iter().any(|s| !s.is_multiple_of(ALIGNMENT) || *s >= 1 << 40) {
        return Err(format!("strides are multiples of {ALIGNMENT} bytes below 2^40: {map:?}"));
    }
    if storage == Storage::Int4 && !(map.dims[0].is_multiple_of(2) && map.box_[0].is_multiple_of(2)) {
        return Err(format!("two codes of a row are a byte, so its dimension and its box are even: {map:?}"));
    }
    if map.tf32 && storage != Storage::F32 {
        return Err(format!("only f32 is rounded to TF32, not {storage}: {map:?}"));
    }
    let inner = storage.bytes(map.box_[0].into());
    let span = if map.swizzle == 0 { inner } else { u64::from(map.swizzle) };
    if !matches!(map.swizzle, 0 | 32 | 64 | 128) || !inner.is_multiple_of(ALIGNMENT) || inner > span {
        return Err(format!("{inner} bytes of a box's row do not fit a swizzle of {} bytes: {map:?}", map.swizzle));
    }
    Ok(())
}

/// Encodes a map that is [`possible`].
fn encode(map: &TensorMap, address: u64, storage: Storage, context: &Context) -> Result<Slot, BackendError> {
    // It takes no handle, but the driver asks what the current context's GPU can do.
    let _current = context.bind()?;
    use sys::CUtensorMapDataType_enum as Type;
    let kind = match storage {
        Storage::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        Storage::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        Storage::E4m3 | Storage::Int4 | Storage::Int8 | Storage::U8 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
        Storage::F32 if map.tf32 => Type::CU_TENSOR_MAP_DATA_TYPE_TFLOAT32,
        Storage::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        Storage::I32 => Type::CU_TENSOR_MAP_DATA_TYPE_INT32,
    };
    let swizzle = match map.swizzle {
        0 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_NONE,
        32 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_32B,
        64 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_64B,
        128 => sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
        other => return Err(BackendError::Launch { why: format!("a swizzle of {other} bytes does not exist") }),
    };
    let (steps, mut dims, mut box_) = ([1u32; 5], map.dims.clone(), map.box_.clone());
    if storage == Storage::Int4 {
        // The driver copies the bytes that hold two codes each.
        (dims[0], box_[0]) = (dims[0] / 2, box_[0] / 2);
    }
    let mut out = sys::CUtensorMap { opaque: [0; 16] };
    // SAFETY: every array holds as many entries as the rank (`possible` says so), and `out` is aligned as the call asks.
    let code = unsafe {
        sys::cuTensorMapEncodeTiled(
            &mut out,
            kind,
            map.dims.len() as u32,
            address as *mut c_void,
            dims.as_ptr(),
            map.strides.as_ptr(),
            box_.as_ptr(),
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
