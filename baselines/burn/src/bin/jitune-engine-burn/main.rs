//! Burn as an engine: a model of our own in its public modules, since it publishes none, in batches of prompts of one length.

mod net;
mod weights;

use std::{collections::BTreeMap, process::ExitCode};

use burn::tensor::{DType, backend::Backend};
use jitune_peer::engine::{
    About, Batches, Config, Folder, Load, Loaded, Sampling, Static, Stats, choose, process_memory, serve,
};
use jitune_peer::{Device, Refusal};
use jitune_peer_burn::{Gpu, VERSION, libraries, processor};

use net::{Model, Net};
use weights::{Files, Weights};

/// Tokens of the prompt that is tried at load on a GPU, where that many fit.
const TRIED: usize = 512;

fn main() -> ExitCode {
    let stats = Stats::default();
    serve(Static::new(Burn { place: Place::Flex, model: None, vocab: 0, ends: Vec::new(), stats }))
}

struct Burn {
    place: Place,
    model: Option<Box<dyn Model>>,
    vocab: usize,
    ends: Vec<u32>,
    stats: Stats,
}

enum Place {
    NdArray,
    Flex,
    Cuda(Gpu),
}

impl Burn {
    fn model(&mut self) -> Result<&mut Box<dyn Model>, Refusal> {
        self.model.as_mut().ok_or_else(|| Refusal::failed("no model is loaded"))
    }

    /// The next token of each sequence.
    fn chosen(&mut self, tokens: &[u32], sampling: &[Sampling], place: usize) -> Result<Vec<u32>, Refusal> {
        let (model, vocab) = (self.model.as_mut(), self.vocab);
        let model = model.ok_or_else(|| Refusal::failed("no model is loaded"))?;
        if sampling.iter().all(|s| s.temperature <= 0.0) {
            return model.best(tokens, sampling.len());
        }
        let logits = model.logits(tokens, sampling.len(), false)?;
        let rows = logits.chunks_exact(vocab.max(1));
        Ok(rows.zip(sampling).map(|(row, sampling)| choose(row, sampling, place as u64)).collect())
    }
}

/// Refuses what this model does not compute.
fn fits(config: &Config, context: usize) -> Result<(), Refusal> {
    if let Some(window) = config.window.filter(|window| context > *window) {
        return Err(Refusal::unsupported(format!("a context of {context} beyond the sliding window of {window}")));
    }
    if context > config.positions {
        let why = format!("a context of {context}, where the model has {}", config.positions);
        return Err(Refusal::unsupported(why));
    }
    Ok(())
}

fn net<B: Backend>(
    config: &Config,
    files: &Files,
    device: &B::Device,
    dtype: DType,
    context: usize,
) -> Result<Box<dyn Model>, Refusal> {
    let weights = Weights::<B>::new(files, device, dtype)?;
    let net = Refusal::guard(|| Net::<B>::load(config, &weights, context.max(2), device))?;
    Ok(Box::new(net))
}

impl Batches for Burn {
    fn hello(&mut self, device: Device, options: &BTreeMap<String, String>) -> Result<About, Refusal> {
        let mut dtypes = vec!["f32".to_owned()];
        let (place, device, libraries) = match device {
            Device::Cpu(threads) => {
                let place = match options.get("backend").map_or("flex", String::as_str) {
                    "ndarray" => Place::NdArray,
                    "flex" => Place::Flex,
                    other => return Err(Refusal::unsupported(format!("no backend {other}: ndarray or flex"))),
                };
                (place, processor(threads), BTreeMap::new())
            }
            Device::Cuda(ordinal) => {
                let (gpu, name) = Gpu::open(ordinal)?;
                dtypes.extend(["bf16", "f16"].map(String::from));
                (Place::Cuda(gpu), name, libraries())
            }
        };
        self.place = place;
        Ok(About { engine: "burn".into(), version: VERSION.into(), device, libraries, dtypes })
    }

    fn load(&mut self, load: &Load) -> Result<Loaded, Refusal> {
        let dtype = match (load.dtype.as_str(), &self.place) {
            ("f32", _) => DType::F32,
            ("bf16", Place::Cuda(_)) => DType::BF16,
            ("f16", Place::Cuda(_)) => DType::F16,
            (other, Place::Cuda(_)) => return Err(Refusal::unsupported(format!("no {other} here: f32, bf16 or f16"))),
            (other, _) => return Err(Refusal::unsupported(format!("no {other} on a processor here: f32"))),
        };
        self.model = None;
        let Folder { config, files, ends } = Folder::open(&load.folder)?;
        fits(&config, load.context)?;
        let files = Files::open(files)?;
        let mut notes = vec!["the cache is copied whole at each token".to_owned()];
        let (mut batches, mut tried) = (vec![1], 1);
        if let Place::Cuda(_) = self.place {
            tried = TRIED.min(load.context.saturating_sub(1)).max(1);
            batches.extend((load.sequences > 1).then_some(load.sequences));
            notes.push(format!("tuned at load for {tried} tokens, batches of {batches:?}; for others when they come"));
        }
        let mut model = match &self.place {
            Place::NdArray => net::<burn::backend::NdArray>(&config, &files, &Default::default(), dtype, load.context)?,
            Place::Flex => net::<burn::backend::Flex>(&config, &files, &Default::default(), dtype, load.context)?,
            #[cfg(not(feature = "cuda"))]
            Place::Cuda(never) => match *never {},
            #[cfg(feature = "cuda")]
            Place::Cuda(gpu) => {
                tried = TRIED.min(load.context.saturating_sub(2)).max(2);
                batches.extend((load.sequences > 1).then_some(load.sequences));
                notes.push(format!(
                    "tuned at load for {tried} tokens, batches of {batches:?}; for others when they come"
                ));
                net::<burn::backend::Cuda>(&config, &files, gpu.device(), dtype, load.context)?
            }
        };
        if load.memory.is_some() {
            notes.push("a limit of memory is passed over: memory is taken as it is needed".into());
        }
        // A prompt and tokens after it, so that what is compiled and tuned at first use is so now.
        for batch in batches {
            model.best(&vec![0; batch * tried], batch)?;
            model.best(&vec![0; batch], batch)?;
            model.forget();
        }
        (self.model, self.vocab, self.ends, self.stats) = (Some(model), config.vocab, ends, Stats::default());
        Ok(Loaded { sequences: load.sequences.max(1), vocab: config.vocab as u64, notes, ..Loaded::default() })
    }

    fn begin(&mut self, prompts: &[&[u32]], sampling: &[Sampling]) -> Result<Vec<u32>, Refusal> {
        self.model()?.forget();
        let tokens = self.chosen(&prompts.concat(), sampling, 0)?;
        *self.stats.prompt_tokens.get_or_insert(0) += prompts.iter().map(|p| p.len() as u64).sum::<u64>();
        Ok(tokens)
    }

    fn next(&mut self, last: &[u32], place: usize, sampling: &[Sampling]) -> Result<Vec<u32>, Refusal> {
        self.chosen(last, sampling, place + 1)
    }

    fn logits(&mut self, prompt: &[u32]) -> Result<Vec<f32>, Refusal> {
        let model = self.model()?;
        model.forget();
        let logits = model.logits(prompt, 1, true);
        model.forget();
        logits
    }

    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn stats(&mut self) -> Stats {
        let (memory_bytes, peak_bytes) = match &self.place {
            #[cfg(not(feature = "cuda"))]
            Place::Cuda(never) => match *never {},
            #[cfg(feature = "cuda")]
            Place::Cuda(gpu) => (gpu.memory(), None),
            Place::NdArray | Place::Flex => process_memory(),
        };
        Stats { memory_bytes, peak_bytes, ..self.stats }
    }
}
