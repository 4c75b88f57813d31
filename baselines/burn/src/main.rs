//! Burn and CubeCL as peers of jitune: each op as a user of Burn writes it, and on the GPU CubeCL's matrix product and
//! attention by themselves.

#[cfg(feature = "cuda")]
mod cubek;
mod ops;

use std::{collections::BTreeMap, process::ExitCode};

use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use jitune_peer::{About, Device, Peer, Prepared, Refusal, RefusedWay, Task, Way, Work};
use jitune_peer_burn::{Gpu, VERSION, libraries, processor};

use ops::{Call, Output};

/// Outputs that are kept until the device has computed them, at most.
const KEPT_BYTES: usize = 4 << 30;

fn main() -> ExitCode {
    jitune_peer::serve(Burn { device: None })
}

struct Burn {
    device: Option<Opened>,
}

enum Opened {
    Cpu,
    Cuda(Gpu),
}

impl Peer for Burn {
    fn hello(&mut self, device: Device, _: &BTreeMap<String, String>) -> Result<About, Refusal> {
        let (opened, device, libraries) = match device {
            Device::Cpu(threads) => (Opened::Cpu, processor(threads), BTreeMap::new()),
            Device::Cuda(ordinal) => {
                let (gpu, name) = Gpu::open(ordinal)?;
                (Opened::Cuda(gpu), name, libraries())
            }
        };
        self.device = Some(opened);
        Ok(About { peer: "burn".into(), version: VERSION.into(), device, libraries })
    }

    fn prepare(&mut self, task: &Task) -> Result<Prepared, Refusal> {
        let mut ways = Ways::default();
        match &self.device {
            None => return Err(Refusal::failed("no device was opened")),
            Some(Opened::Cpu) => {
                if task.dtype != "f32" {
                    return Err(Refusal::unsupported(format!("no {} on a processor here", task.dtype)));
                }
                if task.wants("ndarray") {
                    ways.burn::<burn::backend::NdArray>("ndarray", task, &Default::default())?;
                }
                if task.wants("flex") {
                    ways.burn::<burn::backend::Flex>("flex", task, &Default::default())?;
                }
            }
            #[cfg(not(feature = "cuda"))]
            Some(Opened::Cuda(never)) => match *never {},
            #[cfg(feature = "cuda")]
            Some(Opened::Cuda(gpu)) => {
                if task.wants("burn") {
                    ways.burn::<burn::backend::Cuda>("burn", task, gpu.device())?;
                }
                if task.wants("cubek") {
                    ways.add(cubek::way(task), || cubek::run(task, gpu.device()));
                }
            }
        }
        Ok(ways.prepared())
    }
}

/// Something that can be called on each set.
pub trait Runs {
    fn call(&mut self, set: usize) -> Result<(), Refusal>;
    fn wait(&mut self) -> Result<(), Refusal>;
    fn read(&mut self, tensor: &str, indices: &[u64]) -> Result<Vec<f64>, Refusal>;
}

#[derive(Default)]
struct Ways {
    runs: Vec<Box<dyn Runs>>,
    ways: Vec<Way>,
    refused: Vec<RefusedWay>,
}

impl Ways {
    fn burn<B: Backend>(&mut self, name: &str, task: &Task, device: &B::Device) -> Result<(), Refusal> {
        let (how, covers, build) = ops::op::<B>(task)?;
        self.add(Way::part(name, how, covers), || {
            let calls = build(&ops::Source::<B>::new(task, device))?;
            Ok(Box::new(Calls::<B> { device: device.clone(), calls, kept: Vec::new(), kept_bytes: 0 }))
        });
        Ok(())
    }

    /// Adds a way when its first call works.
    fn add(&mut self, way: Way, make: impl FnOnce() -> Result<Box<dyn Runs>, Refusal>) {
        let made = Refusal::guard(|| {
            let mut runs = make()?;
            runs.call(0)?;
            runs.wait()?;
            Ok(runs)
        });
        match made {
            Ok(runs) => {
                self.runs.push(runs);
                self.ways.push(way);
            }
            Err(Refusal { kind, why, .. }) => self.refused.push(RefusedWay { way: way.way, kind, why }),
        }
    }

    fn prepared(self) -> Prepared {
        Prepared { work: Box::new(All(self.runs)), ways: self.ways, refused: self.refused }
    }
}

struct All(Vec<Box<dyn Runs>>);

impl All {
    fn at(&mut self, way: usize) -> Result<&mut Box<dyn Runs>, Refusal> {
        self.0.get_mut(way).ok_or_else(|| Refusal::failed(format!("no way {way}")))
    }
}

impl Work for All {
    fn call(&mut self, way: usize, set: usize) -> Result<(), Refusal> {
        let runs = self.at(way)?;
        Refusal::guard(|| runs.call(set))
    }

    fn wait(&mut self) -> Result<(), Refusal> {
        self.0.iter_mut().try_for_each(|runs| Refusal::guard(|| runs.wait()))
    }

    fn read(&mut self, way: usize, tensor: &str, indices: &[u64]) -> Result<Vec<f64>, Refusal> {
        let runs = self.at(way)?;
        Refusal::guard(|| runs.read(tensor, indices))
    }
}

/// The calls of an op on a backend of Burn.
struct Calls<B: Backend> {
    device: B::Device,
    calls: Vec<Call<B>>,
    /// Outputs of calls that may not have run yet: fusion leaves out what nobody holds.
    kept: Vec<Vec<(&'static str, Output<B>)>>,
    kept_bytes: usize,
}

impl<B: Backend> Calls<B> {
    fn outputs(&self, set: usize) -> Result<Vec<(&'static str, Output<B>)>, Refusal> {
        let call = self.calls.get(set).ok_or_else(|| Refusal::failed(format!("no set {set}")))?;
        Ok(call())
    }
}

impl<B: Backend> Runs for Calls<B> {
    fn call(&mut self, set: usize) -> Result<(), Refusal> {
        let outputs = self.outputs(set)?;
        self.kept_bytes += outputs.iter().map(|(_, output)| output.elements() * 4).sum::<usize>();
        self.kept.push(outputs);
        if self.kept_bytes > KEPT_BYTES { self.wait() } else { Ok(()) }
    }

    fn wait(&mut self) -> Result<(), Refusal> {
        let done = B::sync(&self.device).map_err(|e| Refusal::failed(format!("{e:?}")));
        self.kept.clear();
        self.kept_bytes = 0;
        done
    }

    fn read(&mut self, tensor: &str, indices: &[u64]) -> Result<Vec<f64>, Refusal> {
        let outputs = self.outputs(0)?;
        let Some((_, output)) = outputs.into_iter().find(|(name, _)| *name == tensor) else {
            return Err(Refusal::failed(format!("{tensor} is no output")));
        };
        let elements = output.elements() as u64;
        if let Some(beyond) = indices.iter().find(|&&i| i >= elements) {
            return Err(Refusal::failed(format!("{tensor} has {elements} elements, none at {beyond}")));
        }
        let wanted: Vec<i64> = indices.iter().map(|&i| i as i64).collect();
        let wanted = Tensor::<B, 1, Int>::from_data(TensorData::new(wanted, [indices.len()]), &self.device);
        let picked = match output {
            Output::Float(values) => values.select(0, wanted).into_data(),
            Output::Int(values) => values.select(0, wanted).into_data(),
        };
        Ok(picked.iter::<f64>().collect())
    }
}
