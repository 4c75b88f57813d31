//! Lanes: who is tuned beside whom, what they share, and what one hands to the next.

use super::{OfKind, TuneError};
use crate::backend::BackendError;
use crate::device::{Device, Target};
use crate::problem::{DimDef, Part, Problem};
use crate::recipe::Config;
use crate::sync::lock;
use crate::template::Template;
use crate::winner::Winner;
use indexmap::IndexMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

/// About how many launches trying a problem comes to: a GPU's rounds hold many, a processor's few.
const LAUNCHES: Launches = Launches { cuda: 400.0, cpu: 12.0 };
/// Configs of neighbours that are tried first.
const REMEMBERED: usize = 4;

struct Launches {
    cuda: f64,
    cpu: f64,
}

/// A winner whose config is tried first for its neighbours.
#[derive(Clone)]
pub(super) struct Remembered {
    problem: Problem,
    template: String,
    config: Config,
}

impl Remembered {
    pub(super) fn of(winner: &Winner) -> Remembered {
        let template = winner.template().to_string();
        Remembered { problem: winner.problem, template, config: winner.config.clone() }
    }
}

/// Configs of what won for neighbours of a problem: same op and template, any shape; the latest first.
pub(super) fn remembered(won: &[Remembered], problem: &Problem, templates: &[Arc<Template>]) -> Vec<(usize, Config)> {
    let near = |r: &&Remembered| r.problem.op().name == problem.op().name && r.problem.types() == problem.types();
    let mut list: Vec<(usize, Config)> = Vec::new();
    for r in won.iter().rev().filter(near) {
        let Some(place) = templates.iter().position(|t| t.name() == r.template) else { continue };
        let known = (place, r.config.clone());
        if !list.contains(&known) {
            list.push(known);
        }
        if list.len() == REMEMBERED {
            break;
        }
    }
    list
}

/// The problems of one kind of device, and what it gave so far; shared by the lanes of its devices.
pub(super) struct Queue<'a> {
    pub problems: &'a [Problem],
    /// The positions of those that are tuned, by who is tuned one after the other.
    pub lanes: Vec<Vec<usize>>,
    /// The next lane that nobody has taken.
    pub next: AtomicUsize,
    /// The positions of those that are not begun yet.
    pub waiting: Mutex<Vec<usize>>,
    /// How many devices are of the kind.
    pub devices: usize,
    pub report: Mutex<OfKind>,
}

impl Queue<'_> {
    /// Takes a problem off those that wait. The share of the remaining time that it gets: by what it costs to try it, which
    /// is a constant, taken as a second, and a number of launches.
    pub(super) fn begin(&self, index: usize, device: &Device) -> f64 {
        let launches = if device.target == Target::Cpu { LAUNCHES.cpu } else { LAUNCHES.cuda };
        let weight = |i: &usize| 1.0 + device.roofline(&self.problems[*i]).0 * launches;
        let mut waiting = lock(&self.waiting);
        let share = weight(&index) / waiting.iter().map(weight).sum::<f64>();
        waiting.retain(|i| *i != index);
        share
    }
}

/// The problems of `todo` by who shares code, in the order in which they stand there: what won for one is tried first for
/// the next, whatever the others do meanwhile, so that two runs try the same.
pub(super) fn families(problems: &[Problem], todo: &[usize]) -> Vec<Vec<usize>> {
    let family = |p: &Problem| {
        let fixed = |d: &&DimDef| d.part == Part::Contract;
        let contract: Vec<i64> = p.op().dims.iter().filter(fixed).map(|d| p.dim(d.name)).collect();
        (p.op().name, p.types(), contract)
    };
    let mut list: IndexMap<_, Vec<usize>> = IndexMap::new();
    for &index in todo {
        list.entry(family(&problems[index])).or_default().push(index);
    }
    list.into_values().collect()
}

/// Runs `work` on each of a list at the same time, on threads of their own. The first error of them, once all have ended.
pub(super) fn at_once<T: Send>(
    list: impl Iterator<Item = T>,
    work: impl Fn(T) -> Result<(), TuneError> + Sync,
) -> Result<(), TuneError> {
    let ended: Vec<Result<(), TuneError>> = std::thread::scope(|scope| {
        let work = &work;
        let spawn = |item| std::thread::Builder::new().spawn_scoped(scope, move || work(item));
        let threads: Vec<_> = list.map(spawn).collect();
        let refused = |e: std::io::Error| BackendError::Threads { asked: 1, why: e.to_string() };
        let end = |t: std::io::Result<std::thread::ScopedJoinHandle<'_, _>>| match t {
            // A panic is nobody's verdict: it goes on in the thread that waits.
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(e) => Err(refused(e).into()),
        };
        threads.into_iter().map(end).collect()
    });
    ended.into_iter().collect()
}
