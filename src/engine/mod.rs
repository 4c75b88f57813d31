//! The engine: a model on a device, and many requests at a time.
//!
//! **Weights → Blocks → Schedule → Step → Graph → Events.** [`Engine::open`] plans the memory, puts the weights on the device of a
//! [`Runtime`] and starts a thread that takes one step after the other: the scheduler (`schedule.rs`) chooses which tokens of
//! which requests, `core.rs` makes tables of them, `step.rs` runs the kernels, and what comes of it is heard by those who
//! asked. Knows no file format (`weights`), no kernel (`runtime`), no tokenizer.
//!
//! ```no_run
//! use jitune::engine::{Engine, Event, Options, Request};
//! use jitune::{bundle::Bundle, model::Model, problem::Dtype, runtime::Runtime, weights::Weights};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (model, _) = Model::load("my-model")?;
//! let (weights, _) = Weights::open("my-model".as_ref(), &model)?;
//! let runtime = Runtime::cpu(&Bundle::open("my-model.jitune")?, None)?;
//! let engine = Engine::open(runtime, &model, &weights, Options::new(Dtype::F32, 2048), |_, _| ())?;
//! let request = Request { prompt: vec![1, 5, 7], most: 16, ..Request::default() };
//! for event in engine.submit(request)? {
//!     if let Event::Token(token) = event {
//!         println!("{}", token.id);
//!     }
//! }
//! # Ok(()) }
//! ```

mod arena;
mod blocks;
mod choose;
#[cfg(all(test, feature = "tuner"))]
mod coded;
mod core;
mod measure;
mod plan;
mod request;
mod schedule;
#[cfg(test)]
mod simulation;
mod step;
mod steps;

pub use choose::{Chosen, Compared, Go, StepChoice, Watch};
pub use measure::{Case, KernelTime, StepTime, Timer};
pub use plan::MemoryPlan;
pub use request::{End, Event, Finish, Logprobs, Request, Sampling, Stats, Token};
pub use schedule::Refused;

use crate::backend::BackendError;
use crate::model::{Buckets, Model, ModelError, Precision};
use crate::problem::MAX_DIM;
use crate::problem::decode::MAX_BATCH;
use crate::program::ProgramError;
use crate::runtime::{Runtime, RuntimeError};
use crate::sync::lock;
use crate::weights::{Weights, WeightsError};
use core::Core;
use schedule::{Room, fits};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Why a model does not run, or a request is not taken.
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
    /// The model with room for one sequence of the whole context is more than there is.
    #[error(
        "{needed} bytes are needed for one sequence of the whole context, and there are {most}: {} ({plan})", plan.remedy(*most)
    )]
    Memory {
        /// Bytes for it.
        needed: u64,
        /// Bytes that there are.
        most: u64,
        /// What they are for.
        plan: Box<MemoryPlan>,
    },
    /// Options that mean nothing.
    #[error("{0}")]
    Options(String),
    /// A request that means nothing to the model, or that the engine was not opened for.
    #[error("{0}")]
    Request(String),
    /// A request that there is no room for.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The engine has ended, after an error that each request heard of.
    #[error("the engine has ended: {why}")]
    Ended {
        /// Of what.
        why: String,
    },
}

/// How to run a model.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The type of activations and cache, and what the weights are stored as.
    pub precision: Precision,
    /// The most tokens of a prompt and its answer together.
    pub context: i64,
    /// Tokens of a page of the cache.
    pub page: i64,
    /// Most requests that steps work on at a time.
    pub sequences: i64,
    /// Most tokens of a step.
    pub tokens: i64,
    /// Most tokens of prompts in a step beside sequences that decode, whose next tokens wait for them; none for as many as the step has.
    pub chunk: Option<i64>,
    /// Most requests that wait.
    pub waiting: usize,
    /// Most bytes on the device; none for what is free there. The cache takes what the rest leaves, up to the whole
    /// context of as many sequences as steps work on.
    pub memory: Option<u64>,
    /// Whether what a page holds is used again by prompts that begin alike.
    pub prefix: bool,
    /// Whether requests may ask for the logits of a prompt; then none is used again, since a token that is not computed has none.
    pub logits: bool,
    /// Whether a step begins before the tokens of the one before are known; not said, it does on a GPU, where a step runs beside the
    /// host. With false nothing is done before it is needed: no step is bound as the engine starts either. The tokens are the same.
    pub ahead: Option<bool>,
}

impl Options {
    /// One request at a time, of at most `context` tokens.
    pub fn new(precision: impl Into<Precision>, context: i64) -> Options {
        Options {
            precision: precision.into(),
            context,
            page: Buckets::default().page,
            sequences: 1,
            tokens: 512,
            chunk: None,
            waiting: 1024,
            memory: None,
            prefix: true,
            logits: false,
            ahead: None,
        }
    }

    /// Whether they mean something, and the model is what it is within them: beyond a sliding window it would be another.
    pub fn check(&self, model: &Model) -> Result<(), EngineError> {
        let sizes = [
            ("context", self.context, MAX_DIM),
            ("page", self.page, MAX_DIM),
            ("sequences", self.sequences, MAX_BATCH),
            ("tokens", self.tokens, MAX_DIM),
            ("chunk", self.chunk.unwrap_or(self.tokens), MAX_DIM),
        ];
        if let Some((name, v, most)) = sizes.iter().find(|(_, v, most)| !(1..=*most).contains(v)) {
            return Err(EngineError::Options(format!("{name}: {v} is no size; 1 is the least, and {most} the most")));
        }
        match model.sliding_window {
            // The last token of an answer is never read.
            Some(window) if self.context - 1 > window => Err(EngineError::Options(format!(
                "{} sees only the last {window} tokens (sliding_window), and no kernel here has a window: {} tokens of prompt and answer \
                 would be computed as another model; up to {} together are exact, the last of which is never read",
                model.name,
                self.context,
                window + 1
            ))),
            _ => Ok(()),
        }
    }
}

/// Who hears of a request. What it returns says whether it still listens; when not, the request is cancelled.
type Sink = Box<dyn FnMut(Event) -> bool + Send>;

enum Command {
    Submit(u64, Request, Sink),
    Cancel(u64),
}

/// What the threads of an engine share.
#[derive(Default)]
struct Shared {
    stats: Arc<Mutex<Stats>>,
    ended: Mutex<Option<String>>,
}

/// A model on a device. Threads may share it. Dropping it cancels what is not done.
pub struct Engine {
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    /// The number of the next request, and so how many were taken.
    next: AtomicU64,
    plan: MemoryPlan,
    options: Options,
    room: Room,
    vocab: i64,
    /// Most tokens whose log-probabilities a request may ask for; none where no kernel samples.
    top: Option<i64>,
}

impl Engine {
    /// Plans the memory, puts the weights of a model on the device of `runtime`, and begins to wait for requests. `loaded` hears
    /// of the bytes that are there, and of all.
    pub fn open(
        runtime: Runtime,
        model: &Model,
        weights: &Weights,
        options: Options,
        mut loaded: impl FnMut(u64, u64),
    ) -> Result<Engine, EngineError> {
        let room = Room { context: options.context as usize, page: options.page as usize, pages: 0 };
        let (mut core, plan) = Core::new(runtime, model, weights, options.clone(), &mut loaded)?;
        if options.ahead != Some(false) {
            core.warm()?;
        }
        let shared = Arc::new(Shared { stats: core.stats(), ..Shared::default() });
        let top = core.sizes.top;
        let (commands, heard) = channel();
        let thread = {
            let shared = Arc::clone(&shared);
            let spawned =
                std::thread::Builder::new().name("jitune-engine".into()).spawn(move || run(core, &heard, &shared));
            spawned.map_err(|e| BackendError::Threads { asked: 1, why: e.to_string() })?
        };
        let (next, vocab, room) = (AtomicU64::new(0), model.vocab, Room { pages: plan.pages as usize, ..room });
        Ok(Engine { commands: Some(commands), thread: Some(thread), shared, next, plan, options, room, vocab, top })
    }

    /// Asks for an answer. Dropping what is returned cancels it.
    pub fn submit(&self, request: Request) -> Result<Answer<'_>, EngineError> {
        let (said, events) = channel();
        let id = self.submit_to(request, move |event| said.send(event).is_ok())?;
        Ok(Answer { engine: self, id, events, ended: false })
    }

    /// Asks for an answer, every event of which is given to `sink`, on the engine's thread: it must not wait for anything.
    /// When it returns false nobody listens any more, and the request is cancelled. What is returned names the request to
    /// [`Engine::cancel`].
    pub fn submit_to(
        &self,
        request: Request,
        sink: impl FnMut(Event) -> bool + Send + 'static,
    ) -> Result<u64, EngineError> {
        self.check(&request)?;
        // A thread that ends is heard of before it hears no more.
        if self.failure().is_some() {
            return Err(self.ended());
        }
        let id = {
            // Those who ask at the same time are counted one after the other.
            let stats = lock(&self.shared.stats);
            let waiting = self.waiting(&stats);
            if waiting >= self.options.waiting {
                return Err(Refused::Full { waiting }.into());
            }
            self.next.fetch_add(1, Ordering::Relaxed)
        };
        match &self.commands {
            Some(commands) if commands.send(Command::Submit(id, request, Box::new(sink))).is_ok() => Ok(id),
            _ => Err(self.ended()),
        }
    }

    /// Ends a request, wherever it is; nothing happens to one that has ended. Its last event says so.
    pub fn cancel(&self, id: u64) {
        if let Some(commands) = &self.commands {
            // Where nobody hears it, all have ended.
            let _ = commands.send(Command::Cancel(id));
        }
    }

    /// What it does and has done.
    pub fn stats(&self) -> Stats {
        let stats = *lock(&self.shared.stats);
        Stats { waiting: self.waiting(&stats), ..stats }
    }

    /// What was taken and has neither ended nor runs, whether the engine's thread has heard of it or not.
    fn waiting(&self, stats: &Stats) -> usize {
        self.next.load(Ordering::Relaxed).saturating_sub(stats.ended + stats.running as u64) as usize
    }

    /// What it was opened with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// How many tokens the model has; their ids go from 0 on.
    pub fn vocab(&self) -> i64 {
        self.vocab
    }

    /// What lies on the device.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// Why it takes no more requests, if it does not.
    pub fn failure(&self) -> Option<String> {
        lock(&self.shared.ended).clone()
    }

    fn ended(&self) -> EngineError {
        EngineError::Ended { why: self.failure().unwrap_or_else(|| "its thread is gone".into()) }
    }

    /// Whether it can take a request.
    fn check(&self, request: &Request) -> Result<(), EngineError> {
        let refused = |why: String| Err(EngineError::Request(why));
        fits(request.prompt.len(), request.most, &self.room)?;
        request.check(self.vocab)?;
        request.sampling.check(self.top).map_err(EngineError::Request)?;
        if request.logits && !self.options.logits {
            return refused("the engine has no room for the logits of a prompt".into());
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take() {
            // What it had to say, it said to those who wait.
            let _ = thread.join();
        }
    }
}

/// The events of a request, as they come; it ends after [`Event::End`].
pub struct Answer<'e> {
    engine: &'e Engine,
    id: u64,
    events: Receiver<Event>,
    ended: bool,
}

impl Iterator for Answer<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let event = if self.ended { None } else { self.events.recv().ok() };
        self.ended = matches!(event, None | Some(Event::End(_)));
        event
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.engine.cancel(self.id);
        }
    }
}

/// Says that the engine has ended where its thread panics, a listener's fault say; who waits hears no more.
struct Thread<'s>(&'s Shared);

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *lock(&self.0.ended) = Some("its thread panicked".into());
        }
    }
}

/// The engine's thread: hears what is asked, and takes steps as long as there is something to do.
fn run(mut core: Core, heard: &Receiver<Command>, shared: &Shared) {
    let _thread = Thread(shared);
    loop {
        let command = match core.is_idle() {
            true => match heard.try_recv() {
                // Whoever comes meanwhile waits for one binding at most.
                Err(TryRecvError::Empty) if core.prepare() => continue,
                Err(TryRecvError::Empty) => heard.recv().map_err(|RecvError| TryRecvError::Disconnected),
                command => command,
            },
            false => heard.try_recv(),
        };
        match command {
            Ok(Command::Submit(id, request, sink)) => {
                core.submit(id, request, sink);
                continue;
            }
            Ok(Command::Cancel(id)) => {
                core.cancel(id);
                continue;
            }
            Err(TryRecvError::Disconnected) => return core.end_all(&Finish::Cancelled),
            Err(TryRecvError::Empty) => (),
        }
        if let Err(e) = core.step() {
            *lock(&shared.ended) = Some(e.to_string());
            core.end_all(&Finish::Failed(e.to_string()));
            // Who asked meanwhile hears it too.
            while let Ok(command) = heard.try_recv() {
                if let Command::Submit(id, request, sink) = command {
                    core.submit(id, request, sink);
                    core.end_all(&Finish::Failed(e.to_string()));
                }
            }
            return;
        }
    }
}
