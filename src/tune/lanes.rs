//! Lanes: who is tuned beside whom, what they share, and what one hands to the next.

use super::narrow::{Parts, in_parts};
use super::{OfKind, TuneError};
use crate::backend::BackendError;
use crate::device::{Device, Target};
use crate::problem::{DimDef, Part, Problem};
use crate::recipe::Config;
use crate::sync::lock;
use crate::template::Template;
use crate::winner::Winner;
use indexmap::IndexMap;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// About how many launches trying a problem comes to: a GPU's rounds hold many, a processor's few.
const LAUNCHES: Launches = Launches { cuda: 400.0, cpu: 24.0 };
/// What trying a narrow problem comes to, of what it would be.
const NARROW: f64 = 0.25;
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
    /// Those that are tuned, by who is tuned one after the other.
    pub lanes: Vec<Lane>,
    /// The next lane that nobody has taken.
    pub next: AtomicUsize,
    /// The positions of those that are not begun yet.
    pub waiting: Mutex<Vec<usize>>,
    /// How many devices are of the kind.
    pub devices: usize,
    pub report: Mutex<OfKind>,
}

/// Problems of one family that are tuned one after the other.
pub(super) struct Lane {
    turn: Turn,
    /// What comes once all lanes of the family have ended.
    rest: Arc<Rest>,
}

/// Problems to be tuned in turn, by their positions.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Turn {
    pub order: Vec<usize>,
    /// Others of the family of which nothing is looked at, since how far those are that are tuned beside these is chance.
    pub beside: Vec<usize>,
}

struct Rest {
    turn: Turn,
    /// The lanes that have not ended.
    open: AtomicUsize,
}

impl Lane {
    pub(super) fn new(order: Vec<usize>) -> Lane {
        let rest = Rest { turn: Turn::default(), open: AtomicUsize::new(1) };
        Lane { turn: Turn { order, ..Turn::default() }, rest: Arc::new(rest) }
    }

    /// What it begins with.
    pub(super) fn turn(&self) -> &Turn {
        &self.turn
    }

    /// To be asked once that has ended: what its family's lanes left, for who ends last.
    pub(super) fn rest(&self) -> Option<&Turn> {
        (self.rest.open.fetch_sub(1, Ordering::AcqRel) == 1).then_some(&self.rest.turn)
    }

    /// Everything that lanes tune.
    pub(super) fn all(lanes: &[Lane]) -> Vec<usize> {
        let all = lanes.iter().flat_map(|lane| lane.turn.order.iter().chain(&lane.rest.turn.order));
        all.copied().collect::<BTreeSet<usize>>().into_iter().collect()
    }
}

/// The lanes of what is to be tuned, by families, the longest first: whoever ends last works alone, and waits for compilers.
pub(super) fn lanes(problems: &[Problem], todo: &[usize], is_narrow: impl Fn(&Problem) -> bool + Copy) -> Vec<Lane> {
    let mut lanes: Vec<Lane> = Vec::new();
    for family in families(problems, todo) {
        let Parts { parts, rest, far } = in_parts(family, problems, is_narrow);
        let rest = Arc::new(Rest { turn: Turn { order: rest, beside: far }, open: AtomicUsize::new(parts.len()) });
        for (i, order) in parts.iter().enumerate() {
            let others = parts.iter().enumerate().filter(|(j, _)| *j != i);
            let turn = Turn { order: order.clone(), beside: others.flat_map(|(_, other)| other).copied().collect() };
            lanes.push(Lane { turn, rest: rest.clone() });
        }
    }
    lanes.sort_by_key(|lane| std::cmp::Reverse(lane.turn.order.len()));
    lanes
}

impl Queue<'_> {
    /// Takes a problem off those that wait. The share of the remaining time that it gets: by what it costs to try it, which
    /// is a constant, taken as a second, and a number of launches; less of both where nothing but what was measured for others is
    /// tried, which is compiled already.
    pub(super) fn begin(&self, index: usize, device: &Device, is_narrow: impl Fn(&Problem) -> bool) -> f64 {
        let launches = if device.target == Target::Cpu { LAUNCHES.cpu } else { LAUNCHES.cuda };
        let weight = |i: &usize| {
            let problem = &self.problems[*i];
            (1.0 + device.roofline(problem).0 * launches) * if is_narrow(problem) { NARROW } else { 1.0 }
        };
        let mut waiting = lock(&self.waiting);
        let share = weight(&index) / waiting.iter().map(weight).sum::<f64>();
        waiting.retain(|i| *i != index);
        share
    }
}

/// The problems of `todo` by who shares code, in the order in which they stand there: what won for one is tried first for
/// the next, whatever the others do meanwhile, so that two runs try the same.
fn families(problems: &[Problem], todo: &[usize]) -> Vec<Vec<usize>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_parts_leave_is_for_who_ends_last_and_nothing_is_left_out() {
        let product = |m: i64, k: i64| format!("matmul m={m} n=64 k={k} dtype=f32").parse::<Problem>().unwrap();
        let sizes: Vec<i64> = (0..5).flat_map(|i| (0..6).map(move |j| (8 << i) + (j << i))).collect();
        let mut problems: Vec<Problem> = sizes.iter().map(|&m| product(m, 64)).collect();
        problems.extend(sizes[..6].iter().map(|&m| product(m, 128)));
        let is_narrow = |p: &Problem| !p.dim("m").unsigned_abs().is_power_of_two();
        let todo: Vec<usize> = (1..problems.len()).collect();
        let lanes = lanes(&problems, &todo, is_narrow);
        assert_eq!(Lane::all(&lanes), todo);
        assert_eq!(lanes.len(), 3);
        assert!(lanes.is_sorted_by_key(|lane| std::cmp::Reverse(lane.turn.order.len())));
        let parts: Vec<&Lane> = lanes.iter().filter(|lane| !lane.turn.beside.is_empty()).collect();
        assert_eq!(parts.len(), 2);
        assert_eq!((&parts[0].turn.beside, &parts[1].turn.beside), (&parts[1].turn.order, &parts[0].turn.order));
        // Of 16 and 32 one part, of 64 and 128 the other: what lies between 32 and 64 is of neither, and does not look at 128.
        let left: Vec<&Turn> = lanes.iter().filter_map(Lane::rest).filter(|turn| !turn.order.is_empty()).collect();
        assert_eq!(left.len(), 1);
        let rows = |list: &[usize]| list.iter().map(|&i| problems[i].dim("m")).collect::<Vec<_>>();
        assert_eq!((rows(&left[0].order), rows(&left[0].beside)), (vec![36, 40, 44, 48, 52], vec![128]));
    }
}
