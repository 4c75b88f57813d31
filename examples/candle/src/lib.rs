//! A linear layer of Candle whose product is a kernel that jitune tuned for this machine: a [`CustomOp2`] over a bundle.
//!
//! It works on Candle's own memory, on a GPU in Candle's own stream, and copies nothing. A size that was not tuned is
//! answered by the nearest tuned one whose kernel may run it, or by an error that says which sizes there are.

use candle_core::{CpuStorage, CustomOp2, DType, Device, Error, Layout, Result, Shape, Tensor};
use jitune::bundle::Bundle;
use jitune::problem::{Problem, Tensor as Described};
use jitune::runtime::{Queue, Runtime, View, Workspace};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The kernels of a bundle on the device of a Candle model.
pub struct Kernels {
    runtime: Runtime,
    /// The scratch of each problem.
    workspaces: Mutex<HashMap<Problem, Workspace>>,
}

impl Kernels {
    /// Loads what fits the device.
    pub fn load(bundle: &Path, device: &Device) -> Result<Arc<Kernels>> {
        let bundle = Bundle::open(bundle).map_err(Error::wrap)?;
        let runtime = match device {
            Device::Cpu => Runtime::cpu(&bundle, None),
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => Runtime::cuda(&bundle, gpu.cuda_stream().context().ordinal()),
            other => return Err(Error::msg(format!("jitune has no kernels for {other:?}"))),
        };
        Ok(Arc::new(Kernels { runtime: runtime.map_err(Error::wrap)?, workspaces: Mutex::default() }))
    }

    /// Runs the kernel of a problem on the addresses of its tensors, in their order.
    ///
    /// # Safety
    /// Each is of memory of the tensor's size, on the device of these kernels; while the launch runs it stays, and nobody
    /// else writes it.
    unsafe fn run(&self, problem: &Problem, tensors: &[u64], queue: Queue<'_>) -> Result<()> {
        let kernel = self.runtime.lookup(problem).map_err(Error::wrap)?;
        // SAFETY: as the caller promises.
        let view = |(address, t): (&u64, &Described)| unsafe { View::from_raw(*address, t.bytes()) };
        let views: Vec<View> = tensors.iter().zip(kernel.tensors()).map(view).collect();
        let mut workspaces = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = match workspaces.get(problem) {
            Some(known) => known,
            None => {
                let new = self.runtime.workspace(&kernel).map_err(Error::wrap)?;
                workspaces.entry(*problem).or_insert(new)
            }
        };
        kernel.bind(views, workspace).map_err(Error::wrap)?.launch(queue).map_err(Error::wrap)
    }
}

/// `y = x·wᵀ` of `x` (m×k) and `w` (n×k).
struct Product(Arc<Kernels>);

/// The problem of a product, and the shape of its result.
fn product(dtype: DType, x: &Layout, w: &Layout) -> Result<(Problem, Shape)> {
    let ((m, k), (n, depth)) = (x.shape().dims2()?, w.shape().dims2()?);
    if k != depth || !x.is_contiguous() || !w.is_contiguous() {
        return Err(Error::msg(format!("x {:?} and w {:?}: both contiguous, of as many columns", x.dims(), w.dims())));
    }
    let text = format!("matmul m={m} n={n} k={k} dtype={}", dtype.as_str());
    Ok((text.parse().map_err(Error::wrap)?, (m, n).into()))
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "jitune-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (problem, shape) = product(DType::F32, lx, lw)?;
        let (x, w) = (&x.as_slice::<f32>()?[lx.start_offset()..], &w.as_slice::<f32>()?[lw.start_offset()..]);
        let mut y = vec![0f32; shape.elem_count()];
        let tensors = [x.as_ptr() as u64, w.as_ptr() as u64, y.as_mut_ptr() as u64];
        // SAFETY: of the sizes that the shapes say, and borrowed until the launch has ended.
        unsafe { self.0.run(&problem, &tensors, Queue::Host)? };
        Ok((CpuStorage::F32(y), shape))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        x: &candle_core::CudaStorage,
        lx: &Layout,
        w: &candle_core::CudaStorage,
        lw: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        match x.dtype() {
            DType::BF16 => self.on_gpu::<half::bf16>(x, lx, w, lw),
            DType::F16 => self.on_gpu::<half::f16>(x, lx, w, lw),
            DType::F32 => self.on_gpu::<f32>(x, lx, w, lw),
            other => Err(Error::msg(format!("no product of {other:?}"))),
        }
    }
}

#[cfg(feature = "cuda")]
impl Product {
    fn on_gpu<T: candle_core::cuda_backend::CudaDType + candle_core::cuda_backend::cudarc::driver::DeviceRepr>(
        &self,
        x: &candle_core::CudaStorage,
        lx: &Layout,
        w: &candle_core::CudaStorage,
        lw: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::CudaStorage;
        use candle_core::backend::BackendStorage;
        use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DevicePtrMut};
        use jitune::backend::cuda::StreamRef;
        let (problem, shape) = product(x.dtype(), lx, lw)?;
        let device = x.device().clone();
        let stream = device.cuda_stream();
        let x = x.as_cuda_slice::<T>()?.slice(lx.start_offset()..);
        let w = w.as_cuda_slice::<T>()?.slice(lw.start_offset()..);
        // SAFETY: the kernel writes every element before anybody reads one.
        let mut y = unsafe { device.alloc::<T>(shape.elem_count())? };
        {
            let ((x, _reads_x), (w, _reads_w)) = (x.device_ptr(&stream), w.device_ptr(&stream));
            let (y, _writes_y) = y.device_ptr_mut(&stream);
            // SAFETY: the stream is of the GPU's primary context; the memory is of the sizes that the shapes say, and freed in
            // the order of the stream.
            unsafe {
                let queue = StreamRef::from_raw(stream.cu_stream().cast());
                self.0.run(&problem, &[x, w, y], Queue::Cuda(queue))?;
            }
        }
        Ok((CudaStorage::wrap_cuda_slice(y, device), shape))
    }
}

/// A linear layer without bias, such as the products of a language model.
pub struct Linear {
    weight: Tensor,
    kernels: Arc<Kernels>,
}

impl Linear {
    /// Of a weight of outputs × inputs.
    pub fn new(weight: Tensor, kernels: Arc<Kernels>) -> Linear {
        Linear { weight, kernels }
    }
}

impl candle_core::Module for Linear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op2_no_bwd(&self.weight, &Product(self.kernels.clone()))
    }
}
