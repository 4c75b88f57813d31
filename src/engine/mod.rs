//! The engine: a model's passes on tuned kernels, from token ids to token ids.
//!
//! [`Engine::open`] puts the weights on the device of a [`Runtime`] and makes the cache; [`Engine::generate`] reads a prompt as
//! one pass and then takes one step a token, the most likely one each time. One sequence at a time so far. Knows no file
//! format (`weights`), no kernel (`runtime`), no tokenizer.

mod arena;
#[allow(dead_code)]
mod blocks;
#[allow(dead_code)]
mod schedule;
#[cfg(test)]
mod simulation;
mod step;

use crate::backend::cuda::Stream;
use crate::backend::{BackendError, Bounds, Tables};
use crate::model::{Buckets, Cache, Logits, Model, ModelError, Pass, Phase};
use crate::problem::Dtype;
use crate::program::{Life, ProgramError};
use crate::runtime::{Memory, Runtime, RuntimeError};
use crate::weights::{Weights, WeightsError};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use step::Step;

/// Steps of a decode are bound for contexts of powers of two from here on.
const LEAST_CONTEXT: i64 = 256;

/// Why a model does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model cannot be planned for these sizes.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Its weights cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// No kernel, or it cannot be bound.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The device.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A pass whose steps do not chain.
    #[error(transparent)]
    Chain(#[from] ProgramError),
    /// A pass that is not a model's.
    #[error("the pass cannot run: {why}")]
    Program {
        /// What is missing.
        why: String,
    },
    /// A prompt that the engine was not opened for.
    #[error("{0}")]
    Prompt(String),
}

/// How to run a model.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The type of weights, activations and cache.
    pub dtype: Dtype,
    /// The most tokens of a prompt and its answer together.
    pub context: i64,
    /// Tokens of a page of the cache.
    pub page: i64,
}

/// What lies on the device as long as the engine does.
struct Stores {
    weights: BTreeMap<String, Memory>,
    states: BTreeMap<String, Memory>,
}

/// A model on a device.
pub struct Engine {
    runtime: Runtime,
    model: Model,
    options: Options,
    cache: Cache,
    stores: Stores,
    stream: Option<Stream>,
    /// The decode step that ran last, and the context that it is for.
    decode: Option<(i64, Step)>,
    /// Most bytes of steps at a time.
    most: u64,
    portable: (usize, usize),
}

/// What a prompt led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// The tokens after the prompt.
    pub ids: Vec<i32>,
    /// From the call to the first token.
    pub first: Duration,
    /// From the first token to the last.
    pub rest: Duration,
    /// The logits of each token of the prompt, row by row in f32, where they were asked for.
    pub logits: Option<Vec<f32>>,
}

impl Engine {
    /// Puts the weights of a model on the device of `runtime`, and makes the cache. `loaded` hears of the bytes that are there,
    /// and of all.
    pub fn open(
        runtime: Runtime,
        model: &Model,
        weights: &Weights,
        options: Options,
        mut loaded: impl FnMut(u64, u64),
    ) -> Result<Engine, EngineError> {
        let Options { dtype, context, page } = options;
        let buckets = Buckets { batch: vec![1], prefill: vec![context], chunk: Vec::new(), context, page };
        buckets.check(model)?;
        let pages = (context - 1) / page + 1;
        let cache = Cache { page, pages, max_pages: pages, max_pos: context };
        let pass = Pass::of(model, Phase::Decode, 1, context, cache, Logits::Last, dtype)?;
        let all: u64 = step::tensors(&pass.program, Life::Weight).values().sum();
        let mut stores = Stores { weights: BTreeMap::new(), states: BTreeMap::new() };
        let mut there = 0;
        for tensor in pass.program.tensors.iter().filter(|t| t.life == Life::Weight) {
            let memory = runtime.allocate(tensor.bytes())?;
            let mut bytes = vec![0; tensor.bytes() as usize];
            weights.fill(tensor, &mut bytes)?;
            memory.upload(&bytes)?;
            stores.weights.insert(tensor.name.clone(), memory);
            there += tensor.bytes();
            loaded(there, all);
        }
        // Zeros: what no token has written yet is finite.
        for (name, bytes) in step::tensors(&pass.program, Life::State) {
            stores.states.insert(name.into(), runtime.zeroed(bytes)?);
        }
        let stream = step::stream(&runtime)?;
        let model = model.clone();
        Ok(Engine { runtime, model, options, cache, stores, stream, decode: None, most: 0, portable: (0, 0) })
    }

    /// The tokens that follow a prompt, the most likely one each time (the lowest id of equals): `most` of them, or fewer
    /// where `last` says that one is the last. With `logits` those of every token of the prompt are kept.
    pub fn generate(
        &mut self,
        prompt: &[i32],
        most: usize,
        logits: bool,
        mut last: impl FnMut(i32) -> bool,
    ) -> Result<Generated, EngineError> {
        let begun = Instant::now();
        let count = prompt.len() as i64;
        if prompt.is_empty() {
            return Err(EngineError::Prompt("the prompt has no token".into()));
        }
        if let Some(id) = prompt.iter().find(|id| !(0..self.model.vocab).contains(&i64::from(**id))) {
            return Err(EngineError::Prompt(format!(
                "the prompt has the token {id}, and the model's go from 0 to {}",
                self.model.vocab - 1
            )));
        }
        if count + most as i64 > self.options.context {
            let why = format!("{count} tokens and {most} more are over the context of {}", self.options.context);
            return Err(EngineError::Prompt(why));
        }
        let (mut next, logits) = self.prompt(prompt, logits)?;
        let first = begun.elapsed();
        let mut ids = Vec::new();
        for at in count..count + most as i64 {
            if at > count {
                next = self.token(next, at - 1)?;
            }
            ids.push(next);
            if last(next) {
                break;
            }
        }
        Ok(Generated { ids, first, rest: begun.elapsed() - first, logits })
    }

    /// Bytes on the device: weights, caches, and the steps that needed most.
    pub fn bytes(&self) -> u64 {
        let stores = self.stores.weights.values().chain(self.stores.states.values());
        stores.map(Memory::len).sum::<u64>() + self.most
    }

    /// Kernels of the steps so far that nothing tuned answers for, of all.
    pub fn portable(&self) -> (usize, usize) {
        self.portable
    }

    /// Reads a prompt: the token after it, and the logits of all of its tokens.
    fn prompt(&mut self, prompt: &[i32], logits: bool) -> Result<(i32, Option<Vec<f32>>), EngineError> {
        let count = prompt.len() as i64;
        let wanted = if logits { Logits::All } else { Logits::Last };
        let pass = Pass::of(&self.model, Phase::Prefill, count, count, self.cache, wanted, self.options.dtype)?;
        let tables = self.tables(prompt, 0);
        let step = self.step(&pass, count, &tables, false)?;
        let tokens = step.run(&tables, self.stream.as_ref())?;
        let kept = if logits { Some(step.logits()?) } else { None };
        let held = self.decode.as_ref().map_or(0, |(_, decode)| decode.bytes);
        self.most = self.most.max(held + step.bytes);
        tokens.last().map(|next| (*next, kept)).ok_or_else(|| EngineError::Program { why: "it gives no token".into() })
    }

    /// Takes one step: the token after `id`, which stands at `at`.
    fn token(&mut self, id: i32, at: i64) -> Result<i32, EngineError> {
        let tables = self.tables(&[id], at);
        let context = u64::try_from(at + 1).unwrap_or(1).next_power_of_two() as i64;
        let context = context.max(LEAST_CONTEXT).min(self.cache.max_pages * self.cache.page);
        if self.decode.as_ref().is_none_or(|(bound, _)| *bound != context) {
            self.decode = None;
            let dtype = self.options.dtype;
            let pass = Pass::of(&self.model, Phase::Decode, 1, context, self.cache, Logits::Last, dtype)?;
            let step = self.step(&pass, context, &tables, true)?;
            self.most = self.most.max(step.bytes);
            self.decode = Some((context, step));
        }
        let tokens = match &self.decode {
            Some((_, step)) => step.run(&tables, self.stream.as_ref())?,
            None => Vec::new(),
        };
        tokens.first().copied().ok_or_else(|| EngineError::Program { why: "it gives no token".into() })
    }

    fn step(&mut self, pass: &Pass, context: i64, tables: &Tables, again: bool) -> Result<Step, EngineError> {
        let Cache { page, pages, max_pages, max_pos } = self.cache;
        let bounds = Bounds {
            tokens: tables.ids.len() as i64,
            sequences: 1,
            vocab: self.model.vocab,
            max_pos,
            page,
            pages,
            max_pages,
            context,
        };
        let step = Step::new(&self.runtime, &self.stores, pass, bounds, tables, self.stream.as_ref(), again)?;
        self.portable.0 += step.portable.0;
        self.portable.1 += step.portable.1;
        Ok(step)
    }

    /// What the kernels are told of the tokens `ids` of the sequence, the first of which stands at `from`.
    fn tables(&self, ids: &[i32], from: i64) -> Tables {
        let (from, count) = (from as i32, ids.len() as i32);
        // The pages lie in the order of the tokens, so a token's slot is its position.
        let positions: Vec<i32> = (from..from + count).collect();
        Tables {
            ids: ids.to_vec(),
            slots: positions.clone(),
            positions,
            block_table: (0..self.cache.max_pages as i32).collect(),
            q_starts: vec![0, count],
            kv_lens: vec![from + count],
            last_rows: vec![count - 1],
        }
    }
}
