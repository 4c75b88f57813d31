//! The steps that are bound: some before they are needed, the others when they are.
//!
//! A step that a request waits for delays all who are served, so what is known to come is bound while nobody waits: as the engine
//! starts, for a bounded time, and then whenever it has nothing to do, one step at a time.

use super::EngineError;
use super::step::{Answers, Step, Stores};
use crate::backend::cuda::Stream;
use crate::model::{Cache, Model, Pass, Phase, Precision, Shape, Tail};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Steps that are kept bound; of more the one that was not needed for longest is bound again when it is. All read their tables at one
/// place, so that none takes memory of the device but what its driver needs for a graph.
const STEPS: usize = 256;
/// Those that are bound before they are needed, so that room is left for others.
const EXPECTED: usize = 192;

/// What steps are bound to.
pub(super) struct Given<'c> {
    pub answers: Answers<'c>,
    pub stores: &'c Stores,
    pub model: &'c Model,
    pub cache: Cache,
    pub precision: &'c Precision,
    /// Where decodes are captured.
    pub stream: Option<&'c Stream>,
}

/// How many steps were bound, and what that took.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub all: u64,
    pub took: Duration,
    /// Those that a request waited for.
    pub late: u64,
    pub late_took: Duration,
}

/// The steps that are bound, with the turn in which each ran last.
#[derive(Default)]
pub(super) struct Steps {
    bound: HashMap<Shape, (Step, u64)>,
    /// Shapes whose kernels need more scratch than was planned.
    roomless: HashSet<Shape>,
    turn: u64,
    /// Shapes that are expected, the next one last.
    expected: Vec<Shape>,
    /// Portable kernels of those that are bound, and all.
    kernels: (usize, usize),
    /// Fewest sequences of a greedy decode that was bound with portable kernels.
    portable_from: Option<i64>,
    counts: Counts,
}

impl Steps {
    /// None is bound; these shapes are expected, the first of them first.
    pub fn new(expected: Vec<Shape>) -> Steps {
        Steps { expected: expected.into_iter().rev().collect(), ..Steps::default() }
    }

    /// Lets all go that are bound, since other kernels are to answer; the device is done with them.
    pub fn clear(&mut self) {
        self.bound.clear();
        self.roomless.clear();
        (self.kernels, self.portable_from) = ((0, 0), None);
    }

    /// The step of a shape that is bound.
    pub fn get(&self, shape: &Shape) -> Result<&Step, EngineError> {
        let unbound = || EngineError::Program { why: format!("{shape:?} is not bound") };
        self.bound.get(shape).map(|(step, _)| step).ok_or_else(unbound)
    }

    /// Portable kernels of the steps that are bound, and all.
    pub fn kernels(&self) -> (usize, usize) {
        self.kernels
    }

    /// Fewest sequences of a greedy decode that has portable kernels, of those that were bound.
    pub fn portable_from(&self) -> Option<i64> {
        self.portable_from
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Binds the step of a shape that somebody waits for, unless it is bound, or else the roomy one of the same tokens; gives the one of
    /// the two under which it is.
    pub fn need(&mut self, given: &Given<'_>, shape: Shape, roomy: Shape) -> Result<Shape, EngineError> {
        self.turn += 1;
        for shape in [shape, roomy] {
            if let Some((_, last)) = self.bound.get_mut(&shape) {
                *last = self.turn;
                return Ok(shape);
            }
            let before = self.counts;
            let bound = self.bind(given, shape, self.turn)?;
            self.counts.late += self.counts.all - before.all;
            self.counts.late_took += self.counts.took - before.took;
            if bound {
                return Ok(shape);
            }
        }
        Err(EngineError::Program { why: format!("{roomy:?} needs more scratch than was planned") })
    }

    /// Binds the next step that is expected; none where no other is. What cannot be bound is left to whoever needs it, who hears why.
    pub fn prepare(&mut self, given: &Given<'_>) -> Option<Shape> {
        while self.bound.len() < EXPECTED {
            let shape = self.expected.pop()?;
            if !self.bound.contains_key(&shape) && self.bind(given, shape, 0).unwrap_or(false) {
                return Some(shape);
            }
        }
        None
    }

    /// Whether there was room for it.
    fn bind(&mut self, given: &Given<'_>, shape: Shape, turn: u64) -> Result<bool, EngineError> {
        if self.roomless.contains(&shape) {
            return Ok(false);
        }
        let begun = Instant::now();
        let pass = Pass::of(given.model, shape, given.cache, given.precision)?;
        // What decodes runs again and again.
        let capture = given.stream.filter(|_| shape.phase == Phase::Decode);
        let step = Step::new(given.answers, given.stores, given.model, given.cache, &pass, capture)?;
        self.counts.took += begun.elapsed();
        let Some(step) = step else {
            self.roomless.insert(shape);
            return Ok(false);
        };
        self.counts.all += 1;
        if self.bound.len() >= STEPS {
            let oldest = self.bound.iter().min_by_key(|(_, (_, last))| *last).map(|(shape, _)| *shape);
            if let Some((gone, _)) = oldest.and_then(|shape| self.bound.remove(&shape)) {
                let (portable, all) = gone.kernels();
                self.kernels = (self.kernels.0 - portable, self.kernels.1 - all);
            }
        }
        let (portable, all) = step.kernels();
        self.kernels = (self.kernels.0 + portable, self.kernels.1 + all);
        if (shape.phase, shape.tail) == (Phase::Decode, Tail::Argmax) && portable > 0 {
            self.portable_from = self.portable_from.map(|from| from.min(shape.sequences)).or(Some(shape.sequences));
        }
        self.bound.insert(shape, (step, turn));
        Ok(true)
    }
}
