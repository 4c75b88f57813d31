//! The engine: a step is one `llama_decode` of the last tokens of those that answer and of what fits of the prompts that wait, as
//! llama.cpp's own server puts them together.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use jitune_peer::{
    Device, Refusal,
    engine::{About, Batching, End, Engine, Finish, Load, Loaded as Told, Logits, Stats, Submit, Teller, choose},
};
use llama_cpp_2::{context::LlamaContext, llama_backend::LlamaBackend, llama_batch::LlamaBatch, token::LlamaToken};

use crate::load::{Opened, Settings, dtypes, gpu, open};

/// llama.cpp's own, as the crate's sources say.
const VERSION: &str = "0.6.0";
/// The versions that Cargo.lock pins.
const LIBRARIES: [(&str, &str); 2] = [("llama-cpp-2", "0.1.160"), ("llama-cpp-sys-2", "0.1.161")];
/// Positions of a prompt whose logits are computed at a time.
const LOGITS: usize = 128;

/// llama.cpp, with or without a model.
#[derive(Default)]
pub struct LlamaCpp {
    /// Before the backend, which it needs to the end.
    model: Option<Model>,
    opened: Option<(LlamaBackend, Device, Settings)>,
}

struct Model {
    opened: Opened,
    batch: LlamaBatch<'static>,
    most: usize,
    context: usize,
    waiting: VecDeque<(u64, Submit)>,
    rows: Vec<Row>,
    /// The numbers of sequences that nobody has.
    free: Vec<u32>,
    done: Stats,
}

struct Row {
    id: u64,
    request: Submit,
    sequence: u32,
    /// Tokens of the prompt that are computed.
    read: usize,
    /// The last token of the answer, and how many there are.
    last: u32,
    answered: usize,
}

impl LlamaCpp {
    fn model(&mut self) -> Result<&mut Model, Refusal> {
        self.model.as_mut().ok_or_else(|| Refusal::failed("no model is loaded"))
    }
}

impl Engine for LlamaCpp {
    fn hello(&mut self, device: Device, options: &BTreeMap<String, String>) -> Result<About, Refusal> {
        let settings = Settings::read(options)?;
        // There is one at a time.
        (self.model, self.opened) = (None, None);
        let backend = LlamaBackend::init().map_err(Refusal::failed)?;
        let name = match device {
            Device::Cpu(threads) => format!("the processor, {threads} threads"),
            Device::Cuda(ordinal) => gpu(ordinal)?.description,
        };
        self.opened = Some((backend, device, settings));
        let libraries = LIBRARIES.into_iter().map(|(name, version)| (name.into(), version.into())).collect();
        Ok(About { engine: "llama.cpp".into(), version: VERSION.into(), device: name, libraries, dtypes: dtypes() })
    }

    fn load(&mut self, load: &Load) -> Result<Told, Refusal> {
        // The first one's memory is free before the second one takes it.
        self.model = None;
        let (backend, device, settings) = self.opened.as_ref().ok_or_else(|| Refusal::failed("hello comes first"))?;
        let opened = open(backend, *device, settings, load)?;
        let told = Told {
            batching: Batching::Continuous,
            sequences: opened.sequences,
            memory_bytes: opened.memory_bytes,
            vocab: opened.vocab as u64,
            notes: opened.notes.clone(),
        };
        let most = opened.most;
        let free = (0..opened.sequences as u32).rev().collect();
        let (batch, context) = (LlamaBatch::new(most, 1), load.context);
        let (waiting, rows, done) = (VecDeque::new(), Vec::new(), Stats::default());
        self.model = Some(Model { opened, batch, most, context, waiting, rows, free, done });
        self.model()?.warm()?;
        Ok(told)
    }

    fn submit(&mut self, id: u64, request: Submit, _: &Teller) -> Result<(), Refusal> {
        let model = self.model()?;
        model.check(&request.prompt)?;
        let (prompt, most, context) = (request.prompt.len(), request.most, model.context);
        if most == 0 || most > context - prompt.min(context) {
            return Err(Refusal::failed(format!(
                "{prompt} tokens and {most} more, where at least 1 is asked for and {context} fit"
            )));
        }
        model.waiting.push_back((id, request));
        Ok(())
    }

    fn cancel(&mut self, id: u64, teller: &Teller) {
        let Some(model) = &mut self.model else { return };
        if let Some(at) = model.waiting.iter().position(|(waits, _)| *waits == id) {
            model.waiting.remove(at);
            teller.end(id, End { why: Finish::Cancelled, error: None, cached: None });
        } else if let Some(at) = model.rows.iter().position(|row| row.id == id) {
            model.end(at, Finish::Cancelled, None, teller);
        }
    }

    fn work(&mut self, teller: &Teller) -> Result<bool, Refusal> {
        let Some(model) = &mut self.model else { return Ok(false) };
        if let Err(e) = model.step(teller) {
            // What a failed step left in the cache is of no use to anybody.
            while !model.rows.is_empty() {
                model.end(0, Finish::Failed, Some(e.why.clone()), teller);
            }
            model.clear();
        }
        Ok(!(model.rows.is_empty() && model.waiting.is_empty()))
    }

    fn logits(&mut self, prompt: &[u32], file: &Path) -> Result<Logits, Refusal> {
        let model = self.model()?;
        model.check(prompt)?;
        let io = |e: std::io::Error| Refusal::failed(format!("{}: {e}", file.display()));
        let sequence = model.free.pop().ok_or_else(|| Refusal::failed("all sequences are taken"))?;
        let mut to = BufWriter::new(File::create(file).map_err(io)?);
        let written = model.logits(prompt, sequence, &mut |row| {
            row.iter().try_for_each(|v| to.write_all(&v.to_le_bytes())).map_err(io)
        });
        model.forget(sequence);
        written?;
        to.flush().map_err(io)?;
        Ok(Logits { rows: prompt.len() as u64, vocab: model.opened.vocab as u64 })
    }

    fn stats(&mut self) -> Stats {
        let Some(model) = &self.model else { return Stats::default() };
        let (waiting, running) = (model.waiting.len() as u64, model.rows.len() as u64);
        Stats { waiting: Some(waiting), running: Some(running), memory_bytes: model.opened.memory_bytes, ..model.done }
    }

    fn reset(&mut self) -> Result<(), Refusal> {
        if let Some(model) = &mut self.model {
            model.clear();
        }
        Ok(())
    }
}

impl Model {
    fn with<T>(&mut self, f: impl FnOnce(&mut LlamaContext<'_>, &mut LlamaBatch<'static>) -> T) -> T {
        let batch = &mut self.batch;
        self.opened.loaded.with_dependent_mut(|_, context| f(context, batch))
    }

    /// Whether it is a prompt for this model.
    fn check(&self, prompt: &[u32]) -> Result<(), Refusal> {
        if prompt.is_empty() || prompt.len() > self.context {
            return Err(Refusal::failed(format!(
                "a prompt of {} tokens, where 1 to {} fit",
                prompt.len(),
                self.context
            )));
        }
        match prompt.iter().find(|token| **token as usize >= self.opened.vocab) {
            Some(token) => Err(Refusal::failed(format!("token {token} of {}", self.opened.vocab))),
            None => Ok(()),
        }
    }

    /// One token, computed and forgotten: the first call of all plans and pins memory.
    fn warm(&mut self) -> Result<(), Refusal> {
        self.logits(&[0], 0, &mut |_| Ok(()))?;
        self.clear();
        Ok(())
    }

    /// Nothing is kept of any sequence.
    fn clear(&mut self) {
        self.with(|context, _| context.clear_kv_cache());
    }

    /// A sequence that is free again.
    fn forget(&mut self, sequence: u32) {
        // Of whole sequences it always succeeds.
        let _ = self.with(|context, _| context.clear_kv_cache_seq(Some(sequence), None, None));
        self.free.push(sequence);
    }

    fn end(&mut self, at: usize, why: Finish, error: Option<String>, teller: &Teller) {
        let row = self.rows.remove(at);
        self.forget(row.sequence);
        teller.end(row.id, End { why, error, cached: None });
    }

    fn step(&mut self, teller: &Teller) -> Result<(), Refusal> {
        while let Some(sequence) = self.free.pop() {
            let Some((id, request)) = self.waiting.pop_front() else {
                self.free.push(sequence);
                break;
            };
            self.rows.push(Row { id, request, sequence, read: 0, last: 0, answered: 0 });
        }
        if self.rows.is_empty() {
            return Ok(());
        }
        self.batch.clear();
        // A place in the batch, and the row whose next token it makes.
        let mut makes: Vec<(i32, usize)> = Vec::new();
        for (at, row) in self.rows.iter().enumerate().filter(|(_, row)| row.answered > 0) {
            makes.push((self.batch.n_tokens(), at));
            put(&mut self.batch, row.last, row.request.prompt.len() + row.answered - 1, row.sequence, true)?;
        }
        for (at, row) in self.rows.iter_mut().enumerate().filter(|(_, row)| row.answered == 0) {
            let room = self.most - self.batch.n_tokens().unsigned_abs() as usize;
            let length = row.request.prompt.len();
            let upto = length.min(row.read + room);
            for place in row.read..upto {
                let last = place + 1 == length;
                if last {
                    makes.push((self.batch.n_tokens(), at));
                }
                put(&mut self.batch, row.request.prompt[place], place, row.sequence, last)?;
            }
            let read = (upto - row.read) as u64;
            self.done.prompt_tokens = Some(self.done.prompt_tokens.unwrap_or(0) + read);
            row.read = upto;
        }
        self.with(|context, batch| context.decode(batch)).map_err(Refusal::failed)?;
        self.done.steps = Some(self.done.steps.unwrap_or(0) + 1);
        self.done.answer_tokens = Some(self.done.answer_tokens.unwrap_or(0) + makes.len() as u64);
        let rows = &mut self.rows;
        self.opened.loaded.with_dependent_mut(|_, context| {
            for (place, at) in &makes {
                let row = &mut rows[*at];
                row.last = choose(context.get_logits_ith(*place), &row.request.sampling, row.answered as u64);
                row.answered += 1;
                teller.tokens(row.id, vec![row.last]);
            }
        });
        let end = self.opened.end;
        for at in (0..self.rows.len()).rev() {
            let row = &self.rows[at];
            if row.answered > 0 && !row.request.ignore_eos && end == Some(row.last) {
                self.end(at, Finish::Stop, None, teller);
            } else if row.answered >= row.request.most {
                self.end(at, Finish::Length, None, teller);
            }
        }
        Ok(())
    }

    /// Hands the logits of each position of a prompt to `row`, in a sequence that nobody has.
    fn logits(
        &mut self,
        prompt: &[u32],
        sequence: u32,
        row: &mut impl FnMut(&[f32]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        for (part, tokens) in prompt.chunks(LOGITS.min(self.most)).enumerate() {
            self.batch.clear();
            for (at, token) in tokens.iter().enumerate() {
                put(&mut self.batch, *token, part * LOGITS.min(self.most) + at, sequence, true)?;
            }
            self.with(|context, batch| {
                context.decode(batch).map_err(Refusal::failed)?;
                (0..tokens.len() as i32).try_for_each(|at| row(context.get_logits_ith(at)))
            })?;
        }
        Ok(())
    }
}

/// Adds a token to a batch.
fn put(batch: &mut LlamaBatch, token: u32, position: usize, sequence: u32, logits: bool) -> Result<(), Refusal> {
    let number = |n: usize| i32::try_from(n).map_err(Refusal::failed);
    let token = LlamaToken::new(number(token as usize)?);
    batch.add(token, number(position)?, &[number(sequence as usize)?], logits).map_err(Refusal::failed)
}
