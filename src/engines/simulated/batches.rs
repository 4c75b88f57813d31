//! A server that batches as the engine's scheduler does, on a clock of its own: a step takes a time of its own, more for each sequence that
//! decodes, and more for each token of a prompt.

use super::{end, tokens};
use crate::engines::random::Random;
use crate::engines::service::{Gone, Heard, Service, What};
use crate::setting::Setting;
use jitune_peer::engine::{Finish, Submit};
use std::collections::VecDeque;
use std::time::Duration;

/// Seconds of a step: itself, each sequence that decodes, each token of a prompt.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    pub step: f64,
    pub decode: f64,
    pub prompt: f64,
    /// The spread of a step's time, as a share.
    pub noise: f64,
}

struct Sequence {
    id: u64,
    /// Tokens of the prompt that are not computed.
    prompt: usize,
    /// Tokens of the answer that are not said.
    answer: usize,
}

pub struct Batches {
    costs: Costs,
    setting: Setting,
    random: Random,
    now: Duration,
    /// In the order in which they came, the first of them running.
    queue: VecDeque<Sequence>,
    /// When the step that runs is over, and the tokens of prompts that each sequence has in it (none of one that decodes).
    step: Option<(Duration, Vec<(u64, usize)>)>,
    coming: VecDeque<Heard>,
}

impl Batches {
    pub fn new(costs: Costs, setting: Setting, seed: u64) -> Batches {
        let (queue, coming) = (VecDeque::new(), VecDeque::new());
        Batches { costs, setting, random: Random::new(seed), now: Duration::ZERO, queue, step: None, coming }
    }

    /// Begins a step, where there is something to do.
    fn begin(&mut self) {
        let Setting { tokens, sequences, chunk } = self.setting;
        let mut budget = tokens.max(1) as usize;
        let running = || self.queue.iter().take(sequences.max(1) as usize);
        let mut rows: Vec<(u64, usize)> = running().filter(|s| s.prompt == 0).take(budget).map(|s| (s.id, 0)).collect();
        let decodes = rows.len();
        budget -= decodes;
        let mut prompts = if decodes > 0 { budget.min(chunk.max(1) as usize) } else { budget };
        for sequence in running().filter(|s| s.prompt > 0) {
            let part = sequence.prompt.min(prompts);
            prompts -= part;
            rows.extend((part > 0).then_some((sequence.id, part)));
        }
        if rows.is_empty() {
            return;
        }
        let Costs { step, decode, prompt, noise } = self.costs;
        let read: usize = rows.iter().map(|(_, part)| part).sum();
        let seconds =
            (step + decode * decodes as f64 + prompt * read as f64) * (1.0 + noise * self.random.normal()).max(0.1);
        self.step = Some((self.now + Duration::from_secs_f64(seconds), rows));
    }

    /// Ends a step: who decodes has a token, and who has read its prompt its first one.
    fn finish(&mut self, at: Duration, rows: &[(u64, usize)]) {
        for (id, part) in rows {
            let Some(sequence) = self.queue.iter_mut().find(|s| s.id == *id) else { continue };
            sequence.prompt -= part;
            if sequence.prompt > 0 {
                continue;
            }
            sequence.answer -= 1;
            let over = sequence.answer == 0;
            self.coming.push_back(Heard { id: *id, at, what: tokens(&[7]) });
            if over {
                self.coming.push_back(Heard { id: *id, at, what: end(Finish::Length) });
            }
        }
        self.queue.retain(|s| s.answer > 0);
    }
}

impl Service for Batches {
    fn now(&self) -> Duration {
        self.now
    }

    fn submit(&mut self, id: u64, request: Submit) -> Result<(), Gone> {
        self.queue.push_back(Sequence { id, prompt: request.prompt.len(), answer: request.most });
        Ok(())
    }

    fn cancel(&mut self, id: u64) -> Result<(), Gone> {
        self.queue.retain(|s| s.id != id);
        self.coming.push_back(Heard { id, at: self.now, what: What::End(Default::default()) });
        Ok(())
    }

    fn next(&mut self, until: Duration) -> Result<Option<Heard>, Gone> {
        loop {
            if let Some(heard) = self.coming.pop_front() {
                return Ok(Some(heard));
            }
            if self.step.is_none() {
                self.begin();
            }
            match self.step.take() {
                Some((at, rows)) if at <= until => {
                    self.now = at;
                    self.finish(at, &rows);
                }
                step => {
                    self.step = step;
                    self.now = self.now.max(until);
                    return Ok(None);
                }
            }
        }
    }
}
