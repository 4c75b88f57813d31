//! An engine of a library that computes batches: those that wait are taken together, and run to their end.

use super::{About, Batching, End, Engine, Finish, Load, Loaded, Logits, Sampling, Stats, Submit, Teller};
use crate::{Device, Refusal};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::path::Path;

/// A library that computes whole batches of prompts of one length.
pub trait Batches {
    /// As [`Engine::hello`].
    fn hello(&mut self, device: Device, options: &BTreeMap<String, String>) -> Result<About, Refusal>;

    /// As [`Engine::load`]; `sequences` of what is returned is the most prompts of a batch.
    fn load(&mut self, load: &Load) -> Result<Loaded, Refusal>;

    /// Computes prompts of one length, after what the batch before them left is let go. Returns the first token of each, chosen as its
    /// settings say.
    fn begin(&mut self, prompts: &[&[u32]], sampling: &[Sampling]) -> Result<Vec<u32>, Refusal>;

    /// Computes the last token of each, which is the answer's number `place` (from 0), and returns the next.
    fn next(&mut self, last: &[u32], place: usize, sampling: &[Sampling]) -> Result<Vec<u32>, Refusal>;

    /// Logits of each position of a prompt, row by row.
    fn logits(&mut self, prompt: &[u32]) -> Result<Vec<f32>, Refusal>;

    /// Tokens that end answers.
    fn ends(&self) -> &[u32];

    /// What it has done and holds.
    fn stats(&mut self) -> Stats {
        Stats::default()
    }
}

/// [`Batches`] as an [`Engine`]: what waits makes a batch, prompts of the oldest one's length alone, which runs until the last of its answers
/// has ended. Answers that have ended are computed along, as such a library does.
pub struct Static<B> {
    library: B,
    most: usize,
    waiting: VecDeque<(u64, Submit)>,
    batch: Vec<Row>,
    /// Tokens of each answer so far.
    place: usize,
    last: Vec<u32>,
    sampling: Vec<Sampling>,
    done: Stats,
}

struct Row {
    id: u64,
    request: Submit,
    ended: bool,
}

impl<B: Batches> Static<B> {
    /// Nothing is loaded yet.
    pub fn new(library: B) -> Static<B> {
        let (waiting, batch, last, sampling) = (VecDeque::new(), Vec::new(), Vec::new(), Vec::new());
        Static { library, most: 1, waiting, batch, place: 0, last, sampling, done: Stats::default() }
    }

    /// Tells the tokens that came, and who has ended by them.
    fn tell(&mut self, tokens: Vec<u32>, teller: &Teller) -> Result<(), Refusal> {
        if tokens.len() != self.batch.len() {
            return Err(Refusal::failed(format!("{} tokens for {} answers", tokens.len(), self.batch.len())));
        }
        let ends = self.library.ends();
        self.place += 1;
        for (row, token) in self.batch.iter_mut().zip(&tokens).filter(|(row, _)| !row.ended) {
            teller.tokens(row.id, vec![*token]);
            let why = match () {
                _ if !row.request.ignore_eos && ends.contains(token) => Some(Finish::Stop),
                _ if self.place >= row.request.most => Some(Finish::Length),
                _ => None,
            };
            if let Some(why) = why {
                row.ended = true;
                teller.end(row.id, End { why, error: None, cached: None });
            }
        }
        self.last = tokens;
        if self.batch.iter().all(|row| row.ended) {
            self.batch.clear();
        }
        Ok(())
    }

    /// The next batch: the oldest that waits, and those of its length.
    fn gather(&mut self) {
        let Some(length) = self.waiting.front().map(|(_, r)| r.prompt.len()) else { return };
        let mut left = VecDeque::new();
        while let Some((id, request)) = self.waiting.pop_front() {
            if request.prompt.len() == length && self.batch.len() < self.most {
                self.batch.push(Row { id, request, ended: false });
            } else {
                left.push_back((id, request));
            }
        }
        self.waiting = left;
        self.place = 0;
        self.sampling = self.batch.iter().map(|row| row.request.sampling).collect();
    }

    fn step(&mut self, teller: &Teller) -> Result<(), Refusal> {
        let tokens = if self.batch.is_empty() {
            self.gather();
            let prompts: Vec<&[u32]> = self.batch.iter().map(|row| row.request.prompt.as_slice()).collect();
            self.library.begin(&prompts, &self.sampling)?
        } else {
            self.library.next(&self.last, self.place - 1, &self.sampling)?
        };
        self.done.steps = Some(self.done.steps.unwrap_or(0) + 1);
        self.tell(tokens, teller)
    }
}

impl<B: Batches> Engine for Static<B> {
    fn hello(&mut self, device: Device, options: &BTreeMap<String, String>) -> Result<About, Refusal> {
        self.library.hello(device, options)
    }

    fn load(&mut self, load: &Load) -> Result<Loaded, Refusal> {
        let loaded = self.library.load(load)?;
        self.most = loaded.sequences.max(1);
        Ok(Loaded { batching: Batching::Static, ..loaded })
    }

    fn submit(&mut self, id: u64, request: Submit, _: &Teller) -> Result<(), Refusal> {
        if request.prompt.is_empty() || request.most == 0 {
            return Err(Refusal::failed("a prompt and an answer have at least one token"));
        }
        self.waiting.push_back((id, request));
        Ok(())
    }

    fn cancel(&mut self, id: u64, teller: &Teller) {
        let end = End { why: Finish::Cancelled, error: None, cached: None };
        if let Some(at) = self.waiting.iter().position(|(waits, _)| *waits == id) {
            self.waiting.remove(at);
            teller.end(id, end);
        } else if let Some(row) = self.batch.iter_mut().find(|row| row.id == id && !row.ended) {
            row.ended = true;
            teller.end(id, end);
        }
        if self.batch.iter().all(|row| row.ended) {
            self.batch.clear();
        }
    }

    fn work(&mut self, teller: &Teller) -> Result<bool, Refusal> {
        if self.waiting.is_empty() && self.batch.is_empty() {
            return Ok(false);
        }
        if let Err(e) = self.step(teller) {
            // The batch is lost, and not who waits: the next may be smaller.
            for row in self.batch.drain(..).filter(|row| !row.ended) {
                teller.end(row.id, End { why: Finish::Failed, error: Some(e.why.clone()), cached: None });
            }
        }
        Ok(!(self.waiting.is_empty() && self.batch.is_empty()))
    }

    fn logits(&mut self, prompt: &[u32], file: &Path) -> Result<Logits, Refusal> {
        let logits = self.library.logits(prompt)?;
        let rows = prompt.len() as u64;
        if prompt.is_empty() || !logits.len().is_multiple_of(prompt.len()) {
            return Err(Refusal::failed(format!("{} logits for {rows} positions", logits.len())));
        }
        let write = || {
            let mut to = std::io::BufWriter::new(std::fs::File::create(file)?);
            logits.iter().try_for_each(|v| to.write_all(&v.to_le_bytes()))?;
            to.flush()
        };
        write().map_err(|e| Refusal::failed(format!("{}: {e}", file.display())))?;
        Ok(Logits { rows, vocab: logits.len() as u64 / rows })
    }

    fn stats(&mut self) -> Stats {
        let running = self.batch.iter().filter(|row| !row.ended).count() as u64;
        let waiting = self.waiting.len() as u64;
        Stats { steps: self.done.steps, waiting: Some(waiting), running: Some(running), ..self.library.stats() }
    }
}
