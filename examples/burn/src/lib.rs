//! A linear layer of Burn whose product is a kernel that jitune tuned for this machine: an op that a backend of Burn has
//! beside its own, here that of `NdArray`.
//!
//! It reads Burn's own memory. A size that was not tuned is answered by the nearest tuned one whose kernel may run it, or
//! by an error that says which sizes there are.

use burn::backend::NdArray;
use burn::backend::ndarray::NdArrayTensor;
use burn::tensor::{Tensor, TensorData, TensorPrimitive, backend};
use jitune::bundle::Bundle;
use jitune::problem::{Problem, Tensor as Described};
use jitune::runtime::{Queue, Runtime, View, Workspace};
use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The kernels of a bundle on the host's processor.
pub struct Kernels {
    runtime: Runtime,
    /// The scratch of each problem.
    workspaces: Mutex<HashMap<Problem, Workspace>>,
}

type Res<T> = Result<T, Box<dyn Error + Send + Sync>>;

impl Kernels {
    /// Loads what fits this machine.
    pub fn load(bundle: &Path) -> Res<Arc<Kernels>> {
        let runtime = Runtime::cpu(&Bundle::open(bundle)?, None)?;
        Ok(Arc::new(Kernels { runtime, workspaces: Mutex::default() }))
    }

    /// `y = x·wᵀ` of `x` (m×k) and `w` (n×k).
    fn product(&self, x: &[f32], w: &[f32], [m, n, k]: [usize; 3]) -> Res<Vec<f32>> {
        if x.len() != m * k || w.len() != n * k {
            return Err(format!("{} and {} elements are no {m}×{k} and {n}×{k}", x.len(), w.len()).into());
        }
        let problem: Problem = format!("matmul m={m} n={n} k={k} dtype=f32").parse()?;
        let kernel = self.runtime.lookup(&problem)?;
        let mut y = vec![0f32; m * n];
        let addresses = [x.as_ptr() as u64, w.as_ptr() as u64, y.as_mut_ptr() as u64];
        // SAFETY: of the sizes of the slices, which are borrowed until the launch has ended.
        let view = |(address, t): (&u64, &Described)| unsafe { View::from_raw(*address, t.bytes()) };
        let views: Vec<View> = addresses.iter().zip(kernel.tensors()).map(view).collect();
        let mut workspaces = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = match workspaces.get(&problem) {
            Some(known) => known,
            None => {
                let new = self.runtime.workspace(&kernel)?;
                workspaces.entry(problem).or_insert(new)
            }
        };
        kernel.bind(views, workspace)?.launch(Queue::Host)?;
        Ok(y)
    }
}

/// A backend of Burn with products of jitune's.
pub trait Backend: backend::Backend {
    /// `y = x·wᵀ` of `x` (m×k) and `w` (n×k).
    fn product(kernels: &Kernels, x: Tensor<Self, 2>, w: Tensor<Self, 2>) -> Res<Tensor<Self, 2>>;
}

impl Backend for NdArray {
    fn product(kernels: &Kernels, x: Tensor<Self, 2>, w: Tensor<Self, 2>) -> Res<Tensor<Self, 2>> {
        let ([m, k], [n, depth], device) = (x.dims(), w.dims(), x.device());
        if k != depth {
            return Err(format!("x has {k} columns and w {depth}").into());
        }
        let array = |t: Tensor<Self, 2>| match t.into_primitive() {
            TensorPrimitive::Float(NdArrayTensor::F32(storage)) => Ok(storage.into_shared()),
            _ => Err("products are of f32"),
        };
        let (x, w) = (array(x)?, array(w)?);
        // What is transposed or strided is laid out anew; what is contiguous is read where it lies.
        let (x, w) = (x.as_standard_layout(), w.as_standard_layout());
        let (Some(x), Some(w)) = (x.as_slice(), w.as_slice()) else { return Err("no memory to read".into()) };
        let y = kernels.product(x, w, [m, n, k])?;
        Ok(Tensor::from_data(TensorData::new(y, [m, n]), &device))
    }
}

/// A linear layer without bias, such as the products of a language model.
pub struct Linear<B: Backend> {
    weight: Tensor<B, 2>,
    kernels: Arc<Kernels>,
}

impl<B: Backend> Linear<B> {
    /// Of a weight of outputs × inputs.
    pub fn new(weight: Tensor<B, 2>, kernels: Arc<Kernels>) -> Linear<B> {
        Linear { weight, kernels }
    }

    /// Applies it to rows of inputs.
    pub fn forward(&self, x: Tensor<B, 2>) -> Res<Tensor<B, 2>> {
        B::product(&self.kernels, x, self.weight.clone())
    }
}
