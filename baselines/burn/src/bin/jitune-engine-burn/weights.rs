//! Tensors of safetensors files on a device.

use std::{collections::BTreeMap, fs::File, path::PathBuf};

use burn::{
    module::Param,
    nn::{Linear, RmsNorm},
    tensor::{DType, Tensor, TensorData, backend::Backend},
};
use jitune_peer::Refusal;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

/// Files in memory.
pub struct Files(Vec<(PathBuf, Mmap)>);

impl Files {
    pub fn open(files: Vec<PathBuf>) -> Result<Files, Refusal> {
        let map = |path: PathBuf| {
            let failed = |e: std::io::Error| Refusal::failed(format!("{}: {e}", path.display()));
            let file = File::open(&path).map_err(failed)?;
            // SAFETY: nobody writes the files meanwhile.
            let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
            Ok((path, map))
        };
        files.into_iter().map(map).collect::<Result<_, _>>().map(Files)
    }
}

/// What the files hold, to be taken to a device in one type.
pub struct Weights<'a, B: Backend> {
    files: Vec<SafeTensors<'a>>,
    places: BTreeMap<String, usize>,
    device: &'a B::Device,
    dtype: DType,
}

impl<'a, B: Backend> Weights<'a, B> {
    pub fn new(files: &'a Files, device: &'a B::Device, dtype: DType) -> Result<Weights<'a, B>, Refusal> {
        let read = |(path, map): &'a (PathBuf, Mmap)| {
            SafeTensors::deserialize(map).map_err(|e| Refusal::failed(format!("{}: {e}", path.display())))
        };
        let files = files.0.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let names =
            files.iter().enumerate().flat_map(|(at, file)| file.names().into_iter().map(move |n| (n.into(), at)));
        let places = names.collect();
        Ok(Weights { files, places, device, dtype })
    }

    pub fn tensor<const D: usize>(&self, name: &str, shape: [usize; D]) -> Result<Tensor<B, D>, Refusal> {
        let file = self.places.get(name).and_then(|at| self.files.get(*at));
        let file = file.ok_or_else(|| Refusal::failed(format!("no tensor {name} in the files")))?;
        let tensor = file.tensor(name).map_err(|e| Refusal::failed(format!("{name}: {e}")))?;
        if tensor.shape() != shape {
            let why = format!("{name} has the shape {:?}, and the model's is {shape:?}", tensor.shape());
            return Err(Refusal::failed(why));
        }
        let stored = match tensor.dtype() {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            other => return Err(Refusal::unsupported(format!("{name} is of {other:?}"))),
        };
        let data = TensorData::from_bytes_vec(tensor.data().to_vec(), shape, stored);
        Ok(Tensor::from_data(data, (self.device, self.dtype)))
    }

    /// A product. The file has a row for each output, and Burn's weight one for each input.
    pub fn linear(&self, name: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Linear<B>, Refusal> {
        let weight = self.turned(self.tensor(&format!("{name}.weight"), [outputs, inputs])?);
        let bias = if bias { Some(Param::from_tensor(self.tensor(&format!("{name}.bias"), [outputs])?)) } else { None };
        Ok(Linear { weight: Param::from_tensor(weight), bias })
    }

    /// A matrix with rows and columns exchanged, as a copy: with a view, products of few rows take three times as long on a processor.
    pub fn turned(&self, matrix: Tensor<B, 2>) -> Tensor<B, 2> {
        Tensor::from_data(matrix.transpose().into_data(), (self.device, self.dtype))
    }

    pub fn norm(&self, name: &str, width: usize, epsilon: f64) -> Result<RmsNorm<B>, Refusal> {
        let gamma = Param::from_tensor(self.tensor(&format!("{name}.weight"), [width])?);
        Ok(RmsNorm { gamma, epsilon })
    }

    /// Numbers of our own, in the type of the others.
    pub fn made<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Tensor<B, D> {
        Tensor::from_data(TensorData::new(values, shape), (self.device, self.dtype))
    }
}
