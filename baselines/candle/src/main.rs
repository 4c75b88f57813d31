//! Candle as a peer of jitune: each op as a user of Candle writes it, on the processor or on the GPU.

mod ops;

use std::{collections::BTreeMap, process::ExitCode};

use candle_core::{DType, Device as Place, Tensor};
use jitune_peer::{About, Device, Peer, Prepared, Refusal, RefusedWay, Stream, Task, Work};
use jitune_peer_candle::VERSION;

use ops::{Call, Source};

fn main() -> ExitCode {
    jitune_peer::serve(Candle { place: Place::Cpu, stream: None })
}

struct Candle {
    place: Place,
    /// Where a GPU's work goes.
    stream: Option<Stream>,
}

impl Peer for Candle {
    fn hello(&mut self, device: Device, _: &BTreeMap<String, String>) -> Result<About, Refusal> {
        let device = match device {
            Device::Cpu(threads) => {
                // SAFETY: no thread has been started yet, so nobody reads the environment meanwhile.
                unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
                format!("the processor, {threads} threads")
            }
            Device::Cuda(ordinal) => {
                let (place, stream, name) = gpu(ordinal)?;
                (self.place, self.stream) = (place, Some(stream));
                name
            }
        };
        Ok(About { peer: "candle".into(), version: VERSION.into(), device, ..About::default() })
    }

    fn prepare(&mut self, task: &Task) -> Result<Prepared, Refusal> {
        let (mut ways, mut calls, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        candle_core::cuda::set_gemm_reduced_precision_f32(task.dtype == "tf32");
        let source = Source::new(task, &self.place);
        for (way, build) in ops::ways(task, &self.place)? {
            // The first call of every way shows here what Candle lacks, be it a dtype or memory.
            let built = build(&source).and_then(|sets| {
                sets.first().map_or(Ok(()), |call| (call.run)().map(drop))?;
                self.place.synchronize()?;
                Ok(sets)
            });
            match built {
                Ok(sets) => {
                    ways.push(way);
                    calls.push(sets);
                }
                Err(trouble) => {
                    let Refusal { kind, why, .. } = trouble.into();
                    refused.push(RefusedWay { way: way.way, kind, why });
                }
            }
        }
        Ok(Prepared { work: Box::new(Calls { place: self.place.clone(), stream: self.stream, calls }), ways, refused })
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> Result<(Place, Stream, String), Refusal> {
    Err(jitune_peer_candle::gpu().err().unwrap_or_default())
}

#[cfg(feature = "cuda")]
fn gpu(ordinal: usize) -> Result<(Place, Stream, String), Refusal> {
    jitune_peer_candle::gpu()?;
    let failed = |e: candle_core::Error| Refusal::failed(e);
    let place = Place::new_cuda_with_stream(ordinal).map_err(failed)?;
    let device = place.as_cuda_device().map_err(failed)?;
    // SAFETY: everything is used on the one stream of this device. The events would keep calls out of a graph.
    unsafe { device.disable_event_tracking() };
    // Keeps the small parameters of kernels on the device, for as long as the process lives: a graph reads them again.
    std::mem::forget(device.enable_cuda_graph_htod_cache());
    let name = device.cuda_stream().context().name().map_err(Refusal::failed)?;
    // SAFETY: the device keeps its stream, and the process keeps the device until it ends.
    let stream = unsafe { Stream::new(device.cuda_stream().cu_stream().cast()) };
    Ok((place, stream, name))
}

/// The calls of each way on each set.
struct Calls {
    place: Place,
    stream: Option<Stream>,
    calls: Vec<Vec<Call>>,
}

impl Calls {
    fn at(&self, way: usize, set: usize) -> Result<&Call, Refusal> {
        let call = self.calls.get(way).and_then(|sets| sets.get(set));
        call.ok_or_else(|| Refusal::failed(format!("no set {set} of way {way}")))
    }
}

impl Work for Calls {
    /// The results are dropped, so that a graph frees all that it allocates.
    fn call(&mut self, way: usize, set: usize) -> Result<(), Refusal> {
        (self.at(way, set)?.run)().map(drop).map_err(Refusal::failed)
    }

    fn wait(&mut self) -> Result<(), Refusal> {
        self.place.synchronize().map_err(Refusal::failed)
    }

    fn stream(&self, _: usize) -> Option<Stream> {
        self.stream
    }

    fn read(&mut self, way: usize, tensor: &str, indices: &[u64]) -> Result<Vec<f64>, Refusal> {
        let call = self.at(way, 0)?;
        let outputs = (call.run)().and_then(&call.laid_out).map_err(Refusal::failed)?;
        let Some((_, output)) = outputs.iter().find(|(name, _)| *name == tensor) else {
            return Err(Refusal::failed(format!("{tensor} is no output")));
        };
        let elements = output.elem_count() as u64;
        if let Some(beyond) = indices.iter().find(|&&i| i >= elements) {
            return Err(Refusal::failed(format!("{tensor} has {elements} elements, none at {beyond}")));
        }
        let picked = || {
            let indices: Vec<i64> = indices.iter().map(|&i| i as i64).collect();
            let indices = Tensor::new(indices, output.device())?;
            let picked = output.flatten_all()?.index_select(&indices, 0)?;
            picked.to_device(&Place::Cpu)?.to_dtype(DType::F64)?.to_vec1::<f64>()
        };
        picked().map_err(Refusal::failed)
    }

    fn poison(&mut self, way: usize) -> Result<(), Refusal> {
        let fill = |t: &Tensor| {
            let nan = Tensor::full(f32::NAN, t.shape(), t.device())?.to_dtype(t.dtype())?;
            t.slice_set(&nan, 0, 0)
        };
        self.at(way, 0)?.kept.iter().try_for_each(fill).map_err(Refusal::failed)
    }
}
