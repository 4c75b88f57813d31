//! The loop of the engine: what the scheduler chose, as one or a few steps on the device, and what came of it.
//!
//! On a GPU the next step is chosen and launched while one runs: it asks for tokens that nobody knows yet by the rows that choose them
//! ([`super::step`]), and the host hears them when the next step has begun. Where the host has a say in what comes next (a penalty of
//! tokens that were said, logits of a prompt), it waits.

use super::blocks::Blocks;
use super::measure::KernelTime;
use super::plan::{MemoryPlan, Sizes};
use super::request::{End, Event, Finish, Request, Sampling, Stats, Token};
use super::schedule::{self, Id, Limits, Row, Scheduler, UNKNOWN};
use super::step::{Answers, Choice, Instead, Stores, stream};
use super::steps::{Given, Steps};
use super::{EngineError, Options, Sink};
use crate::backend::cuda::Stream;
use crate::backend::{Tables, heap};
use crate::model::{Model, Pass, Precision, Shape, Tail};
use crate::problem::hash;
use crate::program::Program;
use crate::runtime::{Kernel, Runtime};
use crate::sync::lock;
use crate::weights::Weights;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long an engine on a GPU binds steps before it takes the first request.
const WARM: Duration = Duration::from_millis(500);

/// A model on a device, and who waits for its answers.
pub(super) struct Core {
    pub runtime: Runtime,
    /// Kernels in the places of the runtime's, while they are compared.
    instead: Instead,
    pub model: Model,
    precision: Precision,
    pub sizes: Sizes,
    stores: Stores,
    /// Where launches go on a GPU.
    stream: Option<Stream>,
    /// Whether a step begins before the tokens of the one before are known.
    ahead: bool,
    /// The number of the step that was launched last; 0 before the first.
    launched: i32,
    flight: Option<Flight>,
    steps: Steps,
    scheduler: Scheduler,
    live: HashMap<Id, Live>,
    stats: Stats,
    /// How long the host has waited for the device in steps.
    waited: Duration,
    /// What others see of them.
    published: Arc<Mutex<Stats>>,
}

/// A step that was launched, and whose tokens are not known yet.
pub(super) struct Flight {
    /// The row of the results for each that a token is chosen for.
    rows: Vec<(Id, usize)>,
    tail: Tail,
    /// Whether the next step may begin before these are known.
    blind: bool,
}

impl Flight {
    fn row(&self, id: Id) -> Option<usize> {
        self.rows.iter().find(|(other, _)| *other == id).map(|(_, row)| *row)
    }
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
        let pass = Pass::of(model, sizes.decode(1, 1), cache, &options.precision)?;
        let stores = Stores::new(&runtime, &pass.program, weights.filler(&options.precision), &plan, loaded)?;
        let limits = Limits {
            tokens: sizes.tokens as usize,
            chunk: options.chunk.unwrap_or(sizes.tokens) as usize,
            sequences: sizes.sequences.min(options.sequences) as usize,
            // The engine has looked when it took them; those that steps put back since have their places.
            waiting: usize::MAX,
        };
        let blocks = Blocks::new(cache.pages as usize, cache.page as usize, options.prefix && !options.logits);
        let stream = stream(&runtime)?;
        let core = Core {
            // A processor computes a step before its launch returns.
            ahead: options.ahead.unwrap_or(stream.is_some()),
            launched: 0,
            flight: None,
            stream,
            runtime,
            instead: Instead::new(),
            model: model.clone(),
            precision: options.precision,
            sizes,
            stores,
            steps: Steps::new(sizes.expected()),
            scheduler: Scheduler::new(limits, blocks, options.context as usize),
            live: HashMap::new(),
            stats: Stats { pages: cache.pages as usize, ..Stats::default() },
            waited: Duration::ZERO,
            published: Arc::default(),
        };
        core.publish();
        heap::give_back();
        Ok((core, plan))
    }

    /// Binds steps that are expected. On a GPU each runs on tables of nobody: what a driver leaves to the first launch is done by then.
    /// It takes [`WARM`], and a step more.
    pub fn warm(&mut self) -> Result<(), EngineError> {
        let begun = Instant::now();
        while begun.elapsed() < WARM {
            let Some(shape) = self.with_steps(|steps, given| steps.prepare(given)) else { break };
            if self.stream.is_none() {
                continue;
            }
            let mut tables = Tables { q_starts: vec![0], ..Tables::default() };
            self.steps.get(&shape)?.pad(&mut tables);
            self.start(&shape, &tables)?;
        }
        self.stream.as_ref().map_or(Ok(()), Stream::synchronize)?;
        self.waited = Duration::ZERO;
        self.publish();
        Ok(())
    }

    /// Binds one more step that is expected, where steps are chosen ahead of what the device does; false where none is left.
    pub fn prepare(&mut self) -> bool {
        let done = self.ahead && self.with_steps(|steps, given| steps.prepare(given)).is_some();
        if done {
            self.publish();
        }
        done
    }

    fn with_steps<R>(&mut self, what: impl FnOnce(&mut Steps, &Given<'_>) -> R) -> R {
        let Core { runtime, instead, model, precision, sizes, stores, stream, steps, .. } = self;
        let answers = Answers { runtime, instead };
        what(steps, &Given { answers, stores, model, cache: sizes.cache, precision, stream: stream.as_ref() })
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
        self.scheduler.is_idle() && self.flight.is_none()
    }

    /// What it has to do and has done, as others see it; by the time a request ends, its end is counted there.
    pub fn stats(&self) -> Arc<Mutex<Stats>> {
        Arc::clone(&self.published)
    }

    fn publish(&self) {
        let (running, used, live) = (self.scheduler.running(), self.scheduler.blocks().used(), self.scheduler.live());
        let ((portable, kernels), counts) = (self.steps.kernels(), self.steps.counts());
        *lock(&self.published) = Stats {
            running,
            used,
            live,
            kernels,
            portable,
            portable_from: self.steps.portable_from(),
            bound: counts.all,
            binding: counts.took,
            bound_late: counts.late,
            binding_late: counts.late_took,
            ..self.stats
        };
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
        let (begun, waited) = (Instant::now(), self.waited);
        let done = self.turn();
        self.stats.host += begun.elapsed().saturating_sub(self.waited - waited);
        done
    }

    fn turn(&mut self) -> Result<(), EngineError> {
        let mut chosen = self.scheduler.next();
        self.stats.preempted += chosen.preempted as u64;
        let blind =
            |flight: &Flight| self.ahead && flight.blind && !chosen.rows.iter().any(|row| self.tells_all(row.id));
        if chosen.rows.is_empty() || !self.flight.as_ref().is_none_or(blind) {
            self.settle(&mut chosen)?;
        }
        if chosen.rows.is_empty() {
            return Ok(());
        }
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
        self.publish();
        self.scheduler.begun(&chosen);
        let before = self.flight.take();
        self.run(&chosen.rows, before.as_ref())?;
        if let Some(before) = before {
            let tokens = self.said(&before)?;
            self.land(tokens);
        }
        if !self.ahead {
            self.settle(&mut schedule::Step::default())?;
        }
        Ok(())
    }

    /// Waits for the step that runs, where one does, and puts its tokens in the place of those that were not known; who has ended
    /// with it has no row any more.
    fn settle(&mut self, chosen: &mut schedule::Step) -> Result<(), EngineError> {
        let Some(flight) = self.flight.take() else { return Ok(()) };
        let tokens = self.finished(&flight)?;
        for row in &mut chosen.rows {
            let known = tokens.iter().find(|(id, _)| *id == row.id).map(|(_, token)| token.id);
            let unknown = row.tokens.last_mut().filter(|token| **token == UNKNOWN);
            unknown.zip(known).into_iter().for_each(|(to, id)| *to = id);
        }
        self.land(tokens);
        chosen.rows.retain(|row| self.live.contains_key(&row.id));
        Ok(())
    }

    /// The tokens of a step, once it is done.
    pub fn finished(&mut self, flight: &Flight) -> Result<Vec<(Id, Token)>, EngineError> {
        let (ids, rows): (Vec<Id>, Vec<usize>) = flight.rows.iter().copied().unzip();
        let begun = Instant::now();
        let tokens = match rows.len() {
            // Whoever waits for nothing is still not to run ahead by two steps.
            0 => self.stream.as_ref().map_or(Ok(Vec::new()), |stream| stream.synchronize().map(|()| Vec::new()))?,
            _ => self.stores.chosen(flight.tail, &rows)?,
        };
        self.waited += begun.elapsed();
        Ok(ids.into_iter().zip(tokens).collect())
    }

    /// The tokens of a step, once the one behind it has begun, which was launched last.
    pub fn said(&mut self, flight: &Flight) -> Result<Vec<(Id, Token)>, EngineError> {
        let (ids, rows): (Vec<Id>, Vec<usize>) = flight.rows.iter().copied().unzip();
        let begun = Instant::now();
        let said = self.stores.said(self.launched, &rows, self.stream.as_ref())?;
        self.waited += begun.elapsed();
        let tokens = said.into_iter().map(|id| Token { id, logprobs: None });
        Ok(ids.into_iter().zip(tokens).collect())
    }

    /// Says tokens to those who wait for them.
    fn land(&mut self, tokens: Vec<(Id, Token)>) {
        let ids: Vec<(Id, i32)> = tokens.iter().map(|(id, token)| (*id, token.id)).collect();
        self.scheduler.known(&ids);
        for (id, mut token) in tokens {
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
    }

    /// From now on steps run these kernels in the places of the runtime's.
    pub fn answer_by(&mut self, instead: &Instead) -> Result<(), EngineError> {
        self.stream.as_ref().map_or(Ok(()), Stream::synchronize)?;
        self.steps.clear();
        self.instead.clone_from(instead);
        Ok(())
    }

    /// Whether there is scratch for a kernel.
    pub fn has_room(&self, kernel: &Kernel) -> bool {
        self.stores.has_room(kernel)
    }

    /// What a decode step of so many sequences of which the longest sees so many tokens computes, with a kernel for each of its steps.
    pub fn decode(&self, batch: i64, context: i64) -> Result<Program, EngineError> {
        let shape = self.sizes.decode(batch, context);
        Ok(Pass::of(&self.model, shape, self.sizes.cache, &self.precision)?.program)
    }

    /// Whether a step begins before the tokens of the one before are known.
    pub fn ahead(&self) -> bool {
        self.ahead
    }

    /// Whether logits of all of a request's prompt are still to be given.
    fn tells_all(&self, id: Id) -> bool {
        self.live.get(&id).is_some_and(|l| l.request.logits && l.rows < l.prompt)
    }

    /// Launches what computes rows, behind the step `before`. What is launched last is in flight.
    fn run(&mut self, rows: &[Row], before: Option<&Flight>) -> Result<(), EngineError> {
        let mut together = Vec::with_capacity(rows.len());
        for row in rows {
            if !self.tells_all(row.id) {
                let logits = if row.samples { Wanted::Last } else { Wanted::None };
                together.push(Piece { row, at: 0, count: row.tokens.len(), logits });
                continue;
            }
            // A prompt whose logits are wanted runs alone, in as many pieces as the memory for them asks for.
            for at in (0..row.tokens.len()).step_by(self.sizes.rows as usize) {
                let count = (row.tokens.len() - at).min(self.sizes.rows as usize);
                let piece = Piece { row, at, count, logits: Wanted::All };
                let mut flight = self.launch(std::slice::from_ref(&piece), before)?;
                let last = at + count == row.tokens.len() && row.samples;
                flight.rows.drain(..flight.rows.len() - usize::from(last));
                let tokens = self.finished(&flight)?;
                self.land(tokens);
            }
        }
        if !together.is_empty() {
            self.flight = Some(self.launch(&together, before)?);
        }
        Ok(())
    }

    /// Launches one step on the device, behind the step `before`, whose tokens it may ask for.
    pub fn launch(&mut self, pieces: &[Piece<'_>], before: Option<&Flight>) -> Result<Flight, EngineError> {
        let mut tables = self.tables(pieces, before);
        let wanted = tables.last_rows.len();
        let shape = self.bound(self.shape(pieces, &tables))?;
        let step = self.steps.get(&shape)?;
        step.pad(&mut tables);
        step.choose(&mut tables, &self.choices(pieces, before))?;
        self.start(&shape, &tables)?;
        let step = self.steps.get(&shape)?;
        self.stats.launches += step.launches();
        self.stats.told += step.told();
        self.stats.heard += 4 * (wanted as u64 + 1);
        let mut entries = 0..wanted;
        let mut rows = Vec::with_capacity(wanted);
        for piece in pieces {
            let count = match piece.logits {
                Wanted::All => piece.count,
                Wanted::Last => 1,
                Wanted::None => 0,
            };
            rows.extend(entries.by_ref().take(count).map(|entry| (piece.row.id, step.row(&tables, entry))));
        }
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
        let sampling = |id| self.live.get(id).map(|live: &Live| live.request.sampling);
        let blind = rows.iter().filter_map(|(id, _)| sampling(id));
        let blind = blind.fold(true, |all, s| all && s.logprobs.is_none() && s.repetition_penalty == 1.0);
        Ok(Flight { rows, tail: shape.tail, blind })
    }

    /// Launches the step of a shape with these tables, once those of the step before were read.
    fn start(&mut self, shape: &Shape, tables: &Tables) -> Result<(), EngineError> {
        let (step, begun) = (self.steps.get(shape)?, Instant::now());
        self.stores.heard(self.launched, self.stream.as_ref())?;
        self.waited += begun.elapsed();
        // Another number than the last one's is enough.
        let number = self.launched % i32::MAX + 1;
        let begun = Instant::now();
        step.run(tables, number, self.stream.as_ref())?;
        // A processor computes in its launches.
        self.waited += if self.stream.is_none() { begun.elapsed() } else { Duration::ZERO };
        self.launched = number;
        Ok(())
    }

    /// The kernels of the step of these pieces, kind by kind, with the times that they take now.
    pub fn kinds(&mut self, pieces: &[Piece<'_>]) -> Result<Vec<KernelTime>, EngineError> {
        let tables = self.tables(pieces, None);
        let shape = self.bound(self.shape(pieces, &tables))?;
        self.steps.get(&shape)?.kinds(self.stream.as_ref())
    }

    /// By what the token of each row with logits is chosen.
    fn choices<'a>(&'a self, pieces: &[Piece<'a>], before: Option<&Flight>) -> Vec<Choice<'a>> {
        let mut list = Vec::new();
        // Whether a token before it is still on its way.
        let said = |id| before.is_some_and(|flight| flight.row(id).is_some());
        for piece in pieces {
            let live = self.live.get(&piece.row.id);
            let greedy = Choice { sampling: &Sampling::GREEDY, u: 0.0, seen: &[] };
            let last = live.map_or(greedy, |live| Choice {
                sampling: &live.request.sampling,
                u: drawn(live.request.sampling.seed, live.answer as u64 + u64::from(said(piece.row.id))),
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
        let roomy = self.sizes.roomy(shape);
        self.with_steps(|steps, given| steps.need(given, shape, roomy))
    }

    /// What the kernels are told, behind the step `before`.
    fn tables(&self, pieces: &[Piece<'_>], before: Option<&Flight>) -> Tables {
        let (page, max_pages) = (self.sizes.cache.page as usize, self.sizes.cache.max_pages as usize);
        let mut tables = Tables { q_starts: vec![0], ..Tables::default() };
        for (number, Piece { row, at, count, logits }) in pieces.iter().enumerate() {
            let from = row.from + at;
            for (position, id) in (from..).zip(&row.tokens[*at..at + count]) {
                let asked = || before.and_then(|flight| flight.row(row.id));
                // What nobody chooses is refused with the tables.
                let known = if *id == UNKNOWN { asked().map_or(i32::MIN, |row| -1 - row as i32) } else { *id };
                tables.ids.push(known);
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

impl Drop for Core {
    fn drop(&mut self) {
        // What runs uses memory that is about to be given back. A lost device has nothing to wait for.
        if let Some(stream) = &self.stream {
            let _ = stream.synchronize();
        }
    }
}
