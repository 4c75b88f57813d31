//! How long a step takes, beside the sum of its kernels and what the device allows.

use super::core::{Core, Piece, Wanted};
use super::plan::Sizes;
use super::request::Token;
use super::schedule::{Id, Row, UNKNOWN};
use super::{EngineError, Options};
use crate::device::Target;
use crate::median::median;
use crate::model::Model;
use crate::problem::{Problem, hash};
use crate::runtime::Runtime;
use crate::weights::Weights;
use std::time::{Duration, Instant};

/// Most steps of a round.
const BURST: i64 = 16;
/// Tokens of a prompt that are computed at a time to fill a cache, at first: twice as many each time that it took no longer than this.
const FIRST_FILLED: i64 = 32;
const SHORT: Duration = Duration::from_millis(250);

/// A step that is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// One token each of so many sequences that see so many tokens, each token chosen by the step before it.
    Decode {
        /// Sequences.
        batch: i64,
        /// Tokens that a sequence sees in the last step.
        context: i64,
    },
    /// A whole prompt.
    Prompt {
        /// Its tokens.
        tokens: i64,
    },
}

/// The times of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTime {
    /// Which.
    pub case: Case,
    /// Microseconds of a step, round by round. Of a prompt, from what the kernels are told to the token on the host. Of a decode on a GPU
    /// the mean of a few that follow each other, from one's tokens on the host to the next one's, since each is launched while the one
    /// before it runs.
    pub us: Vec<f64>,
    /// Its kernels.
    pub kernels: Vec<KernelTime>,
    /// Microseconds by the roofline of each kernel, with the device's ceilings, summed. None on a processor whose ceilings nobody measured:
    /// they are a guess, which steps may beat.
    pub floor_us: Option<f64>,
}

/// The times of one kind of kernel of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// What it is in the model, first of all.
    pub role: String,
    /// What it computes.
    pub problem: Problem,
    /// The template that answers.
    pub template: String,
    /// Whether it is the portable one.
    pub portable: bool,
    /// How many the step has.
    pub calls: usize,
    /// Microseconds of all of them in a row, each on its own weights, between the other kinds of the step; on a GPU the mean of as many
    /// turns as make 32 launches and half a millisecond. What fits the last-level cache comes from there in all turns but the first.
    pub us: Vec<f64>,
}

impl KernelTime {
    /// The median of all of its kind in a row, in microseconds.
    pub fn median(&self) -> f64 {
        median(&self.us)
    }
}

impl StepTime {
    /// The median of the step, and the sum of the medians of its kernels, in microseconds.
    pub fn medians(&self) -> (f64, f64) {
        (median(&self.us), self.kernels.iter().map(KernelTime::median).sum())
    }
}

/// The rounds of a case: each begins where the last one did.
pub(super) struct Turns {
    rows: Vec<Row>,
    /// Steps of a round.
    burst: i64,
    /// Tokens of each sequence that are there before.
    from: i64,
    decodes: bool,
}

impl Turns {
    /// Back to where a round begins, with the tokens that the last one led to.
    pub fn back(&mut self, chosen: Vec<(Id, Token)>) {
        for (row, (_, token)) in self.rows.iter_mut().zip(chosen).filter(|_| self.decodes) {
            (row.from, row.tokens) = (self.from as usize, vec![token.id]);
        }
    }
}

/// Times the steps of a model.
pub struct Timer {
    pub(super) core: Core,
    /// Tokens of each sequence that the cache holds.
    held: Vec<i64>,
}

impl Timer {
    /// As [`super::Engine::open`], for steps of these options.
    pub fn open(
        runtime: Runtime,
        model: &Model,
        weights: &Weights,
        options: Options,
        mut loaded: impl FnMut(u64, u64),
    ) -> Result<Timer, EngineError> {
        let (core, _) = Core::new(runtime, model, weights, options, &mut loaded)?;
        Ok(Timer { held: vec![0; core.sizes.sequences as usize], core })
    }

    /// Times a step `rounds` times: a round takes the step, and then its kernels kind by kind, so that both meet the same machine. What a
    /// decode sees is computed before, of random tokens: a cache of zeros takes less power, so that a device runs faster on it.
    pub fn time(&mut self, case: Case, rounds: usize) -> Result<StepTime, EngineError> {
        let mut turns = self.turns(case)?;
        let mut time = StepTime { case, us: Vec::new(), kernels: Vec::new(), floor_us: None };
        // The first round is none: what it binds and wakes is not the step's.
        for round in 0..=rounds {
            let (us, chosen) = self.turn(&mut turns)?;
            let kinds = self.core.kinds(&pieces(&turns.rows))?;
            if round == 0 {
                let device = self.core.runtime.device();
                let known = device.ceilings.measured || device.target == Target::Cuda;
                time.floor_us =
                    known.then(|| kinds.iter().map(|k| k.calls as f64 * device.roofline(&k.problem).0 * 1e6).sum());
                time.kernels = kinds.into_iter().map(|k| KernelTime { us: Vec::new(), ..k }).collect();
            } else {
                time.us.push(us);
                time.kernels.iter_mut().zip(kinds).for_each(|(all, this)| all.us.extend(this.us));
            }
            turns.back(chosen);
        }
        Ok(time)
    }

    /// What the rounds of a case begin with, where the engine has room for it.
    fn turns(&mut self, case: Case) -> Result<Turns, EngineError> {
        let turns = self.turns_where(case, &mut || true)?;
        turns.ok_or_else(|| EngineError::Program { why: format!("{case:?} was not filled") })
    }

    /// The same; nothing where it is not gone on.
    pub(super) fn turns_where(
        &mut self,
        case: Case,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Turns>, EngineError> {
        // Steps that follow each other without a word from the host, where the device runs ahead of it.
        let (batch, tokens, burst) = match case {
            Case::Decode { batch, context } if self.core.ahead() => (batch, 1, (context - 1).clamp(1, BURST)),
            Case::Decode { batch, .. } => (batch, 1, 1),
            Case::Prompt { tokens } => (1, tokens, 1),
        };
        // Each round ends at the context, so that all of them see as much.
        let (from, further) = match case {
            Case::Decode { context, .. } => (context - burst, burst - 1),
            Case::Prompt { .. } => (0, 0),
        };
        let Sizes { cache, tokens: most, sequences, .. } = self.core.sizes;
        let last = (from + tokens + further - 1) / cache.page + 1;
        if from < 0
            || last > cache.max_pages
            || cache.max_pages * batch > cache.pages
            || tokens > most
            || batch > sequences
        {
            let why = format!("{case:?} does not fit what the engine was opened for");
            return Err(EngineError::Request(why));
        }
        if !self.fill(batch, from, goes_on)? {
            return Ok(None);
        }
        let row = |number: i64| self.row(number, from, tokens);
        let decodes = matches!(case, Case::Decode { .. });
        Ok(Some(Turns { rows: (0..batch).map(row).collect(), burst, from, decodes }))
    }

    /// Microseconds of a step, as the mean of a few that follow each other where there are more than two, and the tokens of the last one.
    pub(super) fn turn(&mut self, turns: &mut Turns) -> Result<(f64, Vec<(Id, Token)>), EngineError> {
        let Turns { rows, burst, .. } = turns;
        let mut begun = Instant::now();
        let mut before = None;
        for step in 0..*burst {
            let flight = self.core.launch(&pieces(rows), before.as_ref())?;
            if let Some(before) = &before {
                self.core.said(before)?;
                // From the first step's tokens on: the device has been given the next one already.
                begun = if step == 1 { Instant::now() } else { begun };
            }
            before = Some(flight);
            if step + 1 < *burst {
                rows.iter_mut().for_each(|row| (row.from, row.tokens) = (row.from + 1, vec![UNKNOWN]));
            }
        }
        let chosen = before.map_or(Ok(Vec::new()), |flight| self.core.finished(&flight))?;
        Ok((begun.elapsed().as_secs_f64() * 1e6 / (*burst - 1).max(1) as f64, chosen))
    }

    /// Some tokens of a sequence, which has pages of its own.
    fn row(&self, number: i64, from: i64, count: i64) -> Row {
        let pages = self.core.sizes.cache.max_pages;
        let token = |at: i64| (hash(number as u64, at as u64) % self.core.model.vocab.max(1) as u64) as i32;
        Row {
            id: number as u64,
            from: from as usize,
            tokens: (from..from + count).map(token).collect(),
            pages: (number * pages..(number + 1) * pages).map(|page| page as u32).collect(),
            samples: true,
            cached: 0,
        }
    }

    /// Computes what the cache lacks of so many tokens of so many sequences; whether it went on to the end. What takes long is asked
    /// for in smaller pieces.
    fn fill(&mut self, sequences: i64, tokens: i64, goes_on: &mut dyn FnMut() -> bool) -> Result<bool, EngineError> {
        let mut most = FIRST_FILLED.min(self.core.sizes.tokens);
        for number in 0..sequences {
            while let Some(held) = self.held.get(number as usize).copied().filter(|held| *held < tokens) {
                if !goes_on() {
                    return Ok(false);
                }
                let begun = Instant::now();
                let count = (tokens - held).min(most);
                let row = self.row(number, held, count);
                let piece = Piece { row: &row, at: 0, count: count as usize, logits: Wanted::None };
                let flight = self.core.launch(&[piece], None)?;
                self.core.finished(&flight)?;
                self.held[number as usize] = held + count;
                if begun.elapsed() < SHORT && count == most {
                    most = (2 * most).min(self.core.sizes.tokens);
                }
            }
        }
        Ok(true)
    }
}

fn pieces(rows: &[Row]) -> Vec<Piece<'_>> {
    rows.iter().map(|row| Piece { row, at: 0, count: row.tokens.len(), logits: Wanted::Last }).collect()
}
