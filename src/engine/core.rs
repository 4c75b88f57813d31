//! The loop of the engine: what the scheduler chose, as one or a few steps on the device, and what came of it.

use super::blocks::Blocks;
use super::measure::KernelTime;
use super::plan::{MemoryPlan, STEPS, Sizes};
use super::request::{End, Event, Finish, Request, Sampling, Stats, Token};
use super::schedule::{Id, Limits, Row, Scheduler};
use super::step::{Choice, Step, Stores, stream};
use super::{EngineError, Options, Sink};
use crate::backend::Tables;
use crate::backend::cuda::Stream;
use crate::model::{Model, Pass, Phase, Shape, Tail};
use crate::problem::{Dtype, hash};
use crate::runtime::Runtime;
use crate::sync::lock;
use crate::weights::Weights;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// A model on a device, and who waits for its answers.
pub(super) struct Core {
    pub runtime: Runtime,
    pub model: Model,
    dtype: Dtype,
    pub sizes: Sizes,
    stores: Stores,
    stream: Option<Stream>,
    steps: Bound,
    scheduler: Scheduler,
    live: HashMap<Id, Live>,
    stats: Stats,
    /// What others see of them.
    published: Arc<Mutex<Stats>>,
}

/// A request on its way.
struct Live {
    /// Without its prompt, which the scheduler has, of so many tokens.
    request: Request,
    prompt: usize,
    sink: Sink,
    heard: Instant,
    /// When the first step that it took part in began, and the tokens that the cache held then.
    begun: Option<(Instant, usize)>,
    answer: usize,
    /// Rows of logits that were given.
    rows: usize,
    /// Flags of the tokens of prompt and answer, 32 a number; nothing where none is penalised.
    seen: Vec<u32>,
}

/// Flags a token, where there are flags.
fn see(seen: &mut [u32], id: i32) {
    if let Some(word) = usize::try_from(id).ok().and_then(|id| seen.get_mut(id / 32)) {
        *word |= 1 << (id % 32);
    }
}

/// The number by which the token of that place of an answer is drawn, of 24 bits, so that it is the same in whatever company the
/// token is computed.
fn drawn(seed: u64, place: u64) -> f32 {
    (hash(seed, place) >> 40) as f32 / 16_777_216.0
}

impl Live {
    /// Whether somebody still hears.
    fn say(&mut self, event: Event) -> bool {
        (self.sink)(event)
    }

    fn end(mut self, why: Finish) {
        let (begun, cached) = self.begun.unwrap_or((Instant::now(), 0));
        let waited = begun.duration_since(self.heard);
        self.say(Event::End(End { why, cached, answer: self.answer, waited }));
    }
}

/// The steps that are bound, with the turn in which each ran last.
#[derive(Default)]
struct Bound {
    steps: HashMap<Shape, (Step, u64)>,
    turn: u64,
}

impl Bound {
    fn get(&self, shape: &Shape) -> Result<&Step, EngineError> {
        let unbound = || EngineError::Program { why: format!("{shape:?} is not bound") };
        self.steps.get(shape).map(|(step, _)| step).ok_or_else(unbound)
    }
}

/// What of a row is computed at once.
pub(super) struct Piece<'r> {
    pub row: &'r Row,
    /// The first of the row's tokens, and how many.
    pub at: usize,
    pub count: usize,
    /// Whether each of its tokens gets logits, or its last one does, or none.
    pub logits: Wanted,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    Last,
    None,
}

impl Core {
    pub fn new(
        runtime: Runtime,
        model: &Model,
        weights: &Weights,
        options: Options,
        loaded: &mut dyn FnMut(u64, u64),
    ) -> Result<(Core, MemoryPlan), EngineError> {
        options.check(model)?;
        let mut sizes = Sizes::of(&options);
        let most = match options.memory {
            Some(most) => most,
            // What others on the device do in the meantime needs some, and so does the driver for its graphs.
            None => runtime.available()? / 10 * 9,
        };
        let plan = sizes.plan(&runtime, model, &options, most)?;
        let cache = sizes.cache;
        let pass = Pass::of(model, sizes.decode(1, 1), cache, options.dtype)?;
        let stores = Stores::new(&runtime, &pass.program, weights, &plan, loaded)?;
        let limits = Limits {
            tokens: sizes.tokens as usize,
            sequences: sizes.sequences.min(options.sequences) as usize,
            // The engine has looked when it took them; those that steps put back since have their places.
            waiting: usize::MAX,
        };
        let blocks = Blocks::new(cache.pages as usize, cache.page as usize, options.prefix && !options.logits);
        let core = Core {
            stream: stream(&runtime)?,
            runtime,
            model: model.clone(),
            dtype: options.dtype,
            sizes,
            stores,
            steps: Bound::default(),
            scheduler: Scheduler::new(limits, blocks, options.context as usize),
            live: HashMap::new(),
            stats: Stats { pages: cache.pages as usize, ..Stats::default() },
            published: Arc::default(),
        };
        core.publish();
        Ok((core, plan))
    }

    pub fn submit(&mut self, id: Id, mut request: Request, sink: Sink) {
        let heard = Instant::now();
        let penalised = request.sampling.repetition_penalty != 1.0;
        let mut seen = vec![0; if penalised { self.model.vocab.unsigned_abs().div_ceil(32) as usize } else { 0 }];
        request.prompt.iter().for_each(|id| see(&mut seen, *id));
        let (tokens, most) = (std::mem::take(&mut request.prompt), request.most);
        let live = Live { request, prompt: tokens.len(), sink, heard, begun: None, answer: 0, rows: 0, seen };
        match self.scheduler.submit(id, tokens, most) {
            Ok(()) => drop(self.live.insert(id, live)),
            Err(why) => {
                self.stats.ended += 1;
                self.publish();
                live.end(Finish::Failed(why.to_string()));
            }
        }
    }

    pub fn cancel(&mut self, id: Id) {
        self.scheduler.cancel(id);
        self.end(id, Finish::Cancelled);
    }

    /// Ends whatever is not done.
    pub fn end_all(&mut self, why: &Finish) {
        for id in self.live.keys().copied().collect::<Vec<_>>() {
            self.scheduler.cancel(id);
            self.end(id, why.clone());
        }
    }

    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// What it has to do and has done, as others see it; by the time a request ends, its end is counted there.
    pub fn stats(&self) -> Arc<Mutex<Stats>> {
        Arc::clone(&self.published)
    }

    fn publish(&self) {
        let (running, used) = (self.scheduler.running(), self.scheduler.blocks().used());
        let bound = self.steps.steps.values().map(|(step, _)| step.kernels());
        let (portable, kernels) = bound.fold((0, 0), |(p, k), (portable, all)| (p + portable, k + all));
        *lock(&self.published) = Stats { running, used, kernels, portable, ..self.stats };
    }

    fn end(&mut self, id: Id, why: Finish) {
        if let Some(live) = self.live.remove(&id) {
            self.stats.ended += 1;
            self.publish();
            live.end(why);
        }
    }

    /// One step for those that the scheduler chooses.
    pub fn step(&mut self) -> Result<(), EngineError> {
        let chosen = self.scheduler.next();
        let now = Instant::now();
        for row in &chosen.rows {
            let Some(live) = self.live.get_mut(&row.id) else { continue };
            if live.begun.is_none() {
                live.begun = Some((now, row.cached));
                self.stats.cached_tokens += row.cached as u64;
            }
            if row.from < live.prompt {
                self.stats.prompt_tokens += row.tokens.len() as u64;
            }
        }
        self.stats.steps += 1;
        self.stats.preempted += chosen.preempted as u64;
        self.publish();
        let sampled = self.run(&chosen.rows)?;
        let ids: Vec<(Id, i32)> = sampled.iter().map(|(id, token)| (*id, token.id)).collect();
        self.scheduler.done(&chosen, &ids);
        for (id, mut token) in sampled {
            let Some(live) = self.live.get_mut(&id) else { continue };
            live.answer += 1;
            self.stats.answer_tokens += 1;
            see(&mut live.seen, token.id);
            let ends = live.request.ends.contains(&token.id);
            // A neighbour's wish makes the step compute them for all.
            match live.request.sampling.logprobs {
                Some(most) => token.logprobs.iter_mut().for_each(|l| l.top.truncate(most)),
                None => token.logprobs = None,
            }
            let heard = live.say(Event::Token(token));
            let why = if ends {
                Finish::Stop
            } else if live.answer >= live.request.most {
                Finish::Length
            } else if !heard {
                Finish::Cancelled
            } else {
                continue;
            };
            self.scheduler.finish(id);
            self.end(id, why);
        }
        self.publish();
        Ok(())
    }

    /// Computes rows, and gives the token after each that has one.
    fn run(&mut self, rows: &[Row]) -> Result<Vec<(Id, Token)>, EngineError> {
        let mut sampled = Vec::with_capacity(rows.len());
        let mut together = Vec::with_capacity(rows.len());
        for row in rows {
            let all = self.live.get(&row.id).is_some_and(|l| l.request.logits && l.rows < l.prompt);
            if !all {
                let logits = if row.samples { Wanted::Last } else { Wanted::None };
                together.push(Piece { row, at: 0, count: row.tokens.len(), logits });
                continue;
            }
            // A prompt whose logits are wanted runs alone, in as many pieces as the memory for them asks for.
            for at in (0..row.tokens.len()).step_by(self.sizes.rows as usize) {
                let count = (row.tokens.len() - at).min(self.sizes.rows as usize);
                let piece = Piece { row, at, count, logits: Wanted::All };
                let tokens = self.execute(std::slice::from_ref(&piece))?;
                let last = at + count == row.tokens.len() && row.samples;
                sampled.extend(tokens.into_iter().next_back().filter(|_| last).map(|t| (row.id, t)));
            }
        }
        if !together.is_empty() {
            let tokens = self.execute(&together)?;
            let those = together.iter().filter(|p| p.logits == Wanted::Last);
            sampled.extend(those.zip(tokens).map(|(p, token)| (p.row.id, token)));
        }
        Ok(sampled)
    }

    /// One step on the device: the tokens after those that get logits, in their order.
    pub fn execute(&mut self, pieces: &[Piece<'_>]) -> Result<Vec<Token>, EngineError> {
        let mut tables = self.tables(pieces);
        let wanted = tables.last_rows.len();
        let shape = self.bound(self.shape(pieces, &tables))?;
        let step = self.steps.get(&shape)?;
        step.pad(&mut tables);
        step.choose(&tables, &self.choices(pieces))?;
        step.run(&tables, self.stream.as_ref())?;
        if let [Piece { row, at, logits: Wanted::All, .. }] = pieces {
            let mut logits = step.logits(&tables, wanted)?;
            if let Some(live) = self.live.get_mut(&row.id) {
                // One that lost its pages is computed again, with its answer so far.
                let (first, vocab) = (row.from + at, self.model.vocab as usize);
                logits.truncate(live.prompt.saturating_sub(first) * vocab);
                logits.drain(..logits.len().min(live.rows.saturating_sub(first) * vocab));
                live.rows += logits.len() / vocab;
                live.say(Event::Logits(logits));
            }
        }
        match wanted {
            0 => Ok(Vec::new()),
            _ => step.chosen(&tables, wanted),
        }
    }

    /// The kernels of the step of these pieces, kind by kind, with the times that they take now.
    pub fn kinds(&mut self, pieces: &[Piece<'_>]) -> Result<Vec<KernelTime>, EngineError> {
        let tables = self.tables(pieces);
        let shape = self.bound(self.shape(pieces, &tables))?;
        self.steps.get(&shape)?.kinds(self.stream.as_ref())
    }

    /// By what the token of each row with logits is chosen.
    fn choices<'a>(&'a self, pieces: &[Piece<'a>]) -> Vec<Choice<'a>> {
        let mut list = Vec::new();
        for piece in pieces {
            let live = self.live.get(&piece.row.id);
            let greedy = Choice { sampling: &Sampling::GREEDY, u: 0.0, seen: &[] };
            let last = live.map_or(greedy, |live| Choice {
                sampling: &live.request.sampling,
                u: drawn(live.request.sampling.seed, live.answer as u64),
                seen: &live.seen,
            });
            // Of a prompt whose logits are wanted the last row alone is a token's.
            let before = if piece.logits == Wanted::All { piece.count - 1 } else { 0 };
            list.extend(std::iter::repeat_n(greedy, before));
            list.extend((piece.logits != Wanted::None).then_some(last));
        }
        list
    }

    /// How the step of these pieces chooses tokens.
    fn tail(&self, pieces: &[Piece<'_>]) -> Tail {
        let those = pieces.iter().filter(|p| p.logits != Wanted::None).filter_map(|p| self.live.get(&p.row.id));
        let mut tail = Tail::Argmax;
        for sampling in those.map(|live| live.request.sampling).filter(|sampling| !sampling.is_greedy()) {
            match (sampling.logprobs, self.sizes.top) {
                (Some(1..), Some(top)) => return Tail::Sample { top },
                _ => tail = Tail::Sample { top: 0 },
            }
        }
        tail
    }

    /// The shape of the step of these pieces.
    fn shape(&self, pieces: &[Piece<'_>], tables: &Tables) -> Shape {
        let longest = tables.kv_lens.iter().copied().max().unwrap_or(1).into();
        let (tokens, sequences, wanted) = (tables.ids.len(), pieces.len(), tables.last_rows.len());
        let decodes = pieces.iter().all(|p| p.count == 1 && p.logits == Wanted::Last);
        let shape = match decodes {
            true => self.sizes.decode(sequences as i64, longest),
            false => self.sizes.mixed(tokens as i64, sequences as i64, wanted as i64, longest),
        };
        Shape { tail: self.tail(pieces), ..shape }
    }

    /// Binds the step of a shape, unless it is bound; gives the shape under which it is.
    fn bound(&mut self, shape: Shape) -> Result<Shape, EngineError> {
        self.steps.turn += 1;
        let turn = self.steps.turn;
        let roomy = self.sizes.roomy(shape);
        for shape in [shape, roomy] {
            if let Some((_, last)) = self.steps.steps.get_mut(&shape) {
                *last = turn;
                return Ok(shape);
            }
            let cache = self.sizes.cache;
            let pass = Pass::of(&self.model, shape, cache, self.dtype)?;
            // What decodes runs again and again.
            let capture = self.stream.as_ref().filter(|_| shape.phase == Phase::Decode);
            let Some(step) = Step::new(&self.runtime, &self.stores, &self.model, cache, &pass, capture)? else {
                continue;
            };
            if self.steps.steps.len() >= STEPS {
                let oldest = self.steps.steps.iter().min_by_key(|(_, (_, last))| *last).map(|(shape, _)| *shape);
                oldest.and_then(|shape| self.steps.steps.remove(&shape));
            }
            self.steps.steps.insert(shape, (step, turn));
            return Ok(shape);
        }
        Err(EngineError::Program { why: format!("{roomy:?} needs more scratch than was planned") })
    }

    /// What the kernels are told.
    fn tables(&self, pieces: &[Piece<'_>]) -> Tables {
        let (page, max_pages) = (self.sizes.cache.page as usize, self.sizes.cache.max_pages as usize);
        let mut tables = Tables { q_starts: vec![0], ..Tables::default() };
        for (number, Piece { row, at, count, logits }) in pieces.iter().enumerate() {
            let from = row.from + at;
            for (position, id) in (from..).zip(&row.tokens[*at..at + count]) {
                tables.ids.push(*id);
                tables.positions.push(position as i32);
                tables.slots.push(
                    row.pages.get(position / page).map_or(-1, |p| *p as i32 * page as i32 + (position % page) as i32),
                );
            }
            let (first, end) = (tables.ids.len() - count, tables.ids.len());
            match logits {
                Wanted::All => tables.last_rows.extend((first..end).map(|row| row as i32)),
                Wanted::Last => tables.last_rows.push(end as i32 - 1),
                Wanted::None => (),
            }
            tables.block_table.extend(row.pages.iter().take(max_pages).map(|p| *p as i32));
            tables.block_table.resize((number + 1) * max_pages, 0);
            tables.q_starts.push(end as i32);
            tables.kv_lens.push((from + count) as i32);
        }
        tables
    }
}
