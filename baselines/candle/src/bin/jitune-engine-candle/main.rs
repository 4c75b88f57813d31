//! Candle's models as an engine, driven as its own examples drive them: batches of prompts of one length, a cache that grows by
//! concatenation, the next token by argmax on the device, or by the host from logits where it is drawn.

mod nets;

use std::{collections::BTreeMap, process::ExitCode};

use candle_core::{DType, Device as Place, Tensor};
use candle_nn::VarBuilder;
use jitune_peer::engine::{
    About, Batches, Folder, Load, Loaded, Sampling, Static, Stats, choose, process_memory, serve,
};
use jitune_peer::{Device, Refusal};
use jitune_peer_candle::VERSION;

use nets::{Net, best, fits};

fn main() -> ExitCode {
    serve(Static::new(Candle { place: Place::Cpu, model: None, ends: Vec::new(), stats: Stats::default() }))
}

struct Candle {
    place: Place,
    model: Option<Model>,
    ends: Vec<u32>,
    stats: Stats,
}

struct Model {
    net: Net,
    vocab: usize,
    place: Place,
    /// Tokens of each sequence in the cache.
    held: usize,
}

impl Model {
    /// Logits `[sequences, vocab]` after these tokens, sequence by sequence, which come after what the cache holds.
    fn forward(&mut self, tokens: Vec<u32>, sequences: usize) -> Result<Tensor, Refusal> {
        // On a GPU the embedding would read beyond its table.
        if let Some(beyond) = tokens.iter().find(|&&t| t as usize >= self.vocab) {
            return Err(Refusal::failed(format!("token {beyond} of a vocabulary of {}", self.vocab)));
        }
        let each = tokens.len() / sequences.max(1);
        let tokens = Tensor::from_vec(tokens, (sequences, each), &self.place).map_err(Refusal::failed)?;
        let logits = self.net.forward(&tokens, self.held).map_err(Refusal::failed)?;
        self.held += each;
        Ok(logits)
    }

    fn forget(&mut self) {
        self.net.forget();
        self.held = 0;
    }
}

/// The next token of each row. Of equal logits on a GPU, Candle's argmax takes any.
fn chosen(logits: &Tensor, sampling: &[Sampling], place: usize) -> Result<Vec<u32>, Refusal> {
    if sampling.iter().all(|s| s.temperature <= 0.0) {
        return best(logits).map_err(Refusal::failed);
    }
    let rows = logits.to_vec2::<f32>().map_err(Refusal::failed)?;
    Ok(rows.iter().zip(sampling).map(|(row, sampling)| choose(row, sampling, place as u64)).collect())
}

impl Candle {
    fn model(&mut self) -> Result<&mut Model, Refusal> {
        self.model.as_mut().ok_or_else(|| Refusal::failed("no model is loaded"))
    }
}

impl Batches for Candle {
    fn hello(&mut self, device: Device, _: &BTreeMap<String, String>) -> Result<About, Refusal> {
        let device = match device {
            Device::Cpu(threads) => {
                // SAFETY: the threads that read and write the protocol's lines never look at the environment, and there are no others yet.
                unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
                format!("the processor, {threads} threads")
            }
            Device::Cuda(ordinal) => {
                let (place, name) = gpu(ordinal)?;
                self.place = place;
                name
            }
        };
        let dtypes = ["f32", "bf16", "f16"].map(String::from).to_vec();
        Ok(About { engine: "candle".into(), version: VERSION.into(), device, libraries: BTreeMap::new(), dtypes })
    }

    fn load(&mut self, load: &Load) -> Result<Loaded, Refusal> {
        let dtype = match load.dtype.as_str() {
            "f32" => DType::F32,
            "bf16" => DType::BF16,
            "f16" => DType::F16,
            other => return Err(Refusal::unsupported(format!("no {other} here: f32, bf16 or f16"))),
        };
        self.model = None;
        let Folder { config, files, ends } = Folder::open(&load.folder)?;
        fits(&config, load.context)?;
        let place = self.place.clone();
        let net = Refusal::guard(|| {
            // SAFETY: nobody writes the files meanwhile.
            let weights = unsafe { VarBuilder::from_mmaped_safetensors(&files, dtype, &place) };
            weights.and_then(|weights| Net::load(&config, weights, &place)).map_err(Refusal::failed)
        })?;
        let mut model = Model { net, vocab: config.vocab, place, held: 0 };
        // A prompt and a token, so that what is loaded at first use is loaded now.
        for tokens in [vec![0, 0], vec![0]] {
            best(&model.forward(tokens, 1)?).map_err(Refusal::failed)?;
        }
        model.forget();
        (self.model, self.ends, self.stats) = (Some(model), ends, Stats::default());
        let mut notes = vec!["attention without flash kernels; the cache is copied whole at each token".into()];
        if load.memory.is_some() {
            notes.push("a limit of memory is passed over: memory is taken as it is needed".into());
        }
        Ok(Loaded { sequences: load.sequences.max(1), vocab: config.vocab as u64, notes, ..Loaded::default() })
    }

    fn begin(&mut self, prompts: &[&[u32]], sampling: &[Sampling]) -> Result<Vec<u32>, Refusal> {
        let model = self.model()?;
        model.forget();
        let logits = model.forward(prompts.concat(), prompts.len())?;
        let tokens = chosen(&logits, sampling, 0)?;
        let prompt_tokens = prompts.iter().map(|p| p.len() as u64).sum::<u64>();
        *self.stats.prompt_tokens.get_or_insert(0) += prompt_tokens;
        Ok(tokens)
    }

    fn next(&mut self, last: &[u32], place: usize, sampling: &[Sampling]) -> Result<Vec<u32>, Refusal> {
        let logits = self.model()?.forward(last.to_vec(), last.len())?;
        chosen(&logits, sampling, place + 1)
    }

    /// These models give the logits of the last position alone. So the prompt goes through the cache token by token; its last row is of the
    /// prompt as a whole, which shows that both ways say the same.
    fn logits(&mut self, prompt: &[u32]) -> Result<Vec<f32>, Refusal> {
        let model = self.model()?;
        model.forget();
        let mut rows = Vec::new();
        let mut add = |logits: Tensor| -> Result<(), Refusal> {
            rows.extend(logits.flatten_all().and_then(|row| row.to_vec1::<f32>()).map_err(Refusal::failed)?);
            Ok(())
        };
        for token in prompt.iter().take(prompt.len().saturating_sub(1)) {
            add(model.forward(vec![*token], 1)?)?;
        }
        model.forget();
        add(model.forward(prompt.to_vec(), 1)?)?;
        model.forget();
        Ok(rows)
    }

    fn ends(&self) -> &[u32] {
        &self.ends
    }

    fn stats(&mut self) -> Stats {
        let (memory_bytes, peak_bytes) = memory(&self.place);
        Stats { memory_bytes, peak_bytes, ..self.stats }
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu(_: usize) -> Result<(Place, String), Refusal> {
    Err(jitune_peer_candle::gpu().err().unwrap_or_default())
}

#[cfg(feature = "cuda")]
fn gpu(ordinal: usize) -> Result<(Place, String), Refusal> {
    jitune_peer_candle::gpu()?;
    let place = Place::new_cuda(ordinal).map_err(Refusal::failed)?;
    let device = place.as_cuda_device().map_err(Refusal::failed)?;
    let name = device.cuda_stream().context().name().map_err(Refusal::failed)?;
    Ok((place, name))
}

/// Bytes now and at most: of the process on a processor, of all that use the device on a GPU, which knows no most.
fn memory(place: &Place) -> (Option<u64>, Option<u64>) {
    #[cfg(feature = "cuda")]
    if let Ok(device) = place.as_cuda_device() {
        let info = device.cuda_stream().context().mem_get_info();
        return (info.ok().map(|(free, total)| (total - free) as u64), None);
    }
    match place {
        Place::Cpu => process_memory(),
        _ => (None, None),
    }
}
