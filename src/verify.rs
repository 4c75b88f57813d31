//! Verification of a bundle's winners on this machine: results against the reference on fresh inputs, at the tuned sizes
//! and at those that the runtime answers with them, and times against the stored evidence or another bundle's answer.

use crate::artifact::{Artifact, ArtifactInfo};
use crate::backend::BackendError;
use crate::backend::session::{Doubt, Runnable, Series, Session, Setup, Timed, Tried};
use crate::bench::{Bench, Here};
use crate::bundle::{Bundle, Held};
use crate::device::DeviceId;
use crate::problem::{Part, Problem, hash_uniform};
use crate::recipe::{Config, Launch, Recipe};
use crate::runtime::{Runtime, launch_on, served_on};
use crate::template::Library;
use std::cell::OnceCell;
use std::collections::HashSet;

/// Rounds of timing, as the tuner's finals have.
const ROUNDS: u32 = 15;
/// Series that a winner may have before it counts as slower: another process may have taken the machine once.
const TRIES: u32 = 3;

/// How to verify.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Seed of the inputs.
    pub seed: u64,
    /// How many times the stored time a winner may take.
    pub slack: f64,
    /// Whether it is timed.
    pub timing: bool,
}

impl Default for Options {
    /// Times winners, and lets them take 1.3 times as long as stored.
    fn default() -> Options {
        Options { seed: 1, slack: 1.3, timing: true }
    }
}

/// What was found of one winner.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// Right, and about as fast as stored.
    Good,
    /// Right, and slower than the slack allows.
    Slower,
    /// Its results differ.
    Wrong {
        /// How.
        why: String,
    },
    /// Right at first, and not any more when it had run for a while.
    Unstable {
        /// How.
        why: String,
    },
    /// It does not run, or its time cannot be.
    Failed {
        /// Why.
        why: String,
    },
    /// It is not for this machine.
    Skipped {
        /// Why.
        why: String,
    },
}

impl Finding {
    /// Whether it speaks against the bundle.
    pub fn is_bad(&self) -> bool {
        matches!(self, Finding::Slower | Finding::Wrong { .. } | Finding::Unstable { .. } | Finding::Failed { .. })
    }

    /// The same, found on another workload.
    fn on(self, problem: &Problem) -> Finding {
        match self {
            Finding::Wrong { why } => Finding::Wrong { why: format!("{problem}: {why}") },
            Finding::Unstable { why } => Finding::Unstable { why: format!("{problem}: {why}") },
            other => other,
        }
    }

    /// What a check found.
    fn of(tried: Tried) -> Option<Finding> {
        tried.check.wrong.map(|why| Finding::Wrong { why }).or(tried.doubt.map(Finding::from))
    }
}

impl From<Doubt> for Finding {
    fn from(doubt: Doubt) -> Finding {
        match doubt {
            Doubt::Unstable(why) => Finding::Unstable { why },
            Doubt::Implausible(why) => Finding::Failed { why },
        }
    }
}

/// A winner, on a problem, and what was found.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// The problem.
    pub problem: Problem,
    /// The template.
    pub template: String,
    /// The architecture it was made for.
    pub arch: String,
    /// The problem that it was tuned for, where that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuned: Option<Problem>,
    /// The stored median in microseconds; absent for another problem than the tuned one.
    pub stored_us: Option<f64>,
    /// The median now; absent when it was not timed.
    pub now_us: Option<f64>,
    /// Root mean square error over that of the reference.
    pub error_rms: Option<f64>,
    /// The finding.
    #[serde(flatten)]
    pub finding: Finding,
}

/// A bundle's answers on one device, as production gets them.
pub struct Answers<'b> {
    bundle: &'b Bundle<'b>,
    runtime: Runtime,
}

impl<'b> Answers<'b> {
    /// Opens a runtime of its own on that device.
    pub fn new(bundle: &'b Bundle<'b>, device: DeviceId) -> Result<Answers<'b>, crate::runtime::RuntimeError> {
        let runtime = match device {
            DeviceId::Cuda(ordinal) => Runtime::cuda(bundle, ordinal)?,
            DeviceId::Cpu(0) => Runtime::cpu(bundle, None)?,
            DeviceId::Cpu(threads) => Runtime::cpu(bundle, Some(threads))?,
        };
        Ok(Answers { bundle, runtime })
    }

    /// The winner that answers for a problem, and its launch there.
    pub fn of(&self, problem: &Problem) -> Result<(Held<'b>, Launch), String> {
        let kernel = self.runtime.lookup(problem).map_err(|e| e.to_string())?;
        let held = self.bundle.winners().nth(kernel.winner()).ok_or("the winner that answers is not in the bundle")?;
        Ok((held, kernel.launch_spec().clone()))
    }

    /// The winner whose reference judges what `held` answers for a problem: one of the problem's contract, since the reference
    /// that goes with portable code is compiled for its probe.
    pub fn judge(&self, held: Held<'b>, problem: &Problem) -> Held<'b> {
        let same = |h: &Held<'_>| same_contract(&h.problem(), problem) && h.device().arch == held.device().arch;
        if same(&held) { held } else { self.bundle.winners().find(same).unwrap_or(held) }
    }

    /// The tuned problems that are not of portable winners.
    pub fn tuned(&self) -> impl Iterator<Item = Problem> + '_ {
        self.runtime.problems().filter(|p| !p.is_probe())
    }

    /// The same, each contract's together.
    fn contracts(&self) -> Vec<Vec<Problem>> {
        let mut list: Vec<Vec<Problem>> = Vec::new();
        for p in self.tuned() {
            match list.iter_mut().find(|l| same_contract(&l[0], &p)) {
                Some(of) => of.push(p),
                None => list.push(vec![p]),
            }
        }
        list
    }

    /// Each product of the bundle, `qkv` among them, at every m from 1 to `most`; what no portable code answers, such as a norm and a
    /// product in one, up to the largest that was tuned: beyond that nobody asks for it.
    pub fn every(&self, most: i64) -> Vec<Problem> {
        let products = self.contracts().into_iter().filter(|of| of[0].has("m"));
        let sizes = |of: Vec<Problem>| {
            let tuned = of.iter().map(|p| p.dim("m")).max().unwrap_or(0);
            let answered = if of[0].op().probe(of[0].types()).is_some() { most } else { most.min(tuned) };
            (1..=answered).filter_map(move |m| of[0].with(&[("m", m)]).ok())
        };
        products.flat_map(sizes).collect()
    }

    /// Problems whose contract the bundle has, at sizes drawn by a seed: an op, a contract of it, and of each size a number
    /// whose logarithm is uniform up to that of the largest tuned. No problem twice: where the sizes are few, there are fewer than `count`.
    pub fn drawn(&self, count: usize, seed: u64) -> Vec<Problem> {
        draw(&self.contracts(), count, seed)
    }
}

/// [`Answers::drawn`], of these contracts.
fn draw(contracts: &[Vec<Problem>], count: usize, seed: u64) -> Vec<Problem> {
    let mut ops: Vec<&str> = contracts.iter().map(|of| of[0].op().name).collect();
    ops.sort_unstable();
    ops.dedup();
    let mut draws = 0;
    let mut unit = || {
        draws += 1;
        (f64::from(hash_uniform(seed, draws)) + 1.0) / 2.0
    };
    let (mut list, mut seen) = (Vec::new(), HashSet::new());
    // Sizes that do not go together are drawn again.
    for _ in 0..count * 20 {
        if list.len() == count || ops.is_empty() {
            break;
        }
        let pick = |among: usize, unit: f64| ((unit * among as f64) as usize).min(among - 1);
        let op = ops[pick(ops.len(), unit())];
        let of: Vec<&Vec<Problem>> = contracts.iter().filter(|of| of[0].op().name == op).collect();
        let of = of[pick(of.len(), unit())];
        let size = |d: &crate::problem::DimDef| {
            let most = of.iter().map(|p| p.dim(d.name)).max().unwrap_or(1) as f64;
            (d.name, ((most + 1.0).ln() * unit()).exp() as i64)
        };
        let sizes: Vec<(&str, i64)> = of[0].op().dims.iter().filter(|d| d.part == Part::Size).map(size).collect();
        list.extend(of[0].with(&sizes).ok().filter(|p| seen.insert(*p)));
    }
    list
}

fn same_contract(a: &Problem, b: &Problem) -> bool {
    let kept = |d: &&crate::problem::DimDef| d.part == Part::Contract;
    let fixed = |p: &Problem| p.op().dims.iter().filter(kept).map(|d| p.dim(d.name)).collect::<Vec<_>>();
    a.op().name == b.op().name && a.types() == b.types() && fixed(a) == fixed(b)
}

/// The times of two bundles' answers for a problem, interleaved.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Beside {
    /// The problem.
    pub problem: Problem,
    /// Template and config of the one's answer, and of the other's.
    pub answers: [String; 2],
    /// Their medians in microseconds.
    pub us: [f64; 2],
}

impl Beside {
    /// How many times the other's time the one's answer takes.
    pub fn ratio(&self) -> f64 {
        self.us[0] / self.us[1]
    }
}

/// Verifies winners on one device.
pub struct Verifier<'a> {
    session: &'a mut dyn Session,
    options: Options,
    here: Here,
    /// For winners whose bundle holds no reference.
    library: OnceCell<Library>,
}

impl<'a> Verifier<'a> {
    /// On the device of this session.
    pub fn new(session: &'a mut dyn Session, options: Options) -> Result<Verifier<'a>, BackendError> {
        Ok(Verifier { session, options, here: Here::new()?, library: OnceCell::new() })
    }

    /// Verifies a winner on the problem that it was tuned for.
    pub fn tuned(&mut self, held: &Held<'_>) -> Verified {
        let mut line = Verified { stored_us: Some(held.evidence().median_us), ..blank(held, held.problem()) };
        line.finding = match launch_on(held, self.session.device()) {
            Err(why) => Finding::Skipped { why },
            Ok(launch) => self.check(held, held, launch, &mut line).unwrap_or_else(|why| why),
        };
        line
    }

    /// Verifies the results of a winner at other sizes that it answers for: the least, and some around its own. Nothing
    /// of a winner that is not for this device.
    pub fn served(&mut self, held: &Held<'_>) -> Vec<Verified> {
        let served = served_on(held, self.session.device()).unwrap_or_default();
        let one = |(asked, launch)| {
            let mut line = Verified { tuned: Some(held.problem()), ..blank(held, asked) };
            line.finding = self.check(held, held, launch, &mut line).unwrap_or_else(|why| why);
            line
        };
        served.into_iter().map(one).collect()
    }

    /// Verifies the results of what a bundle answers for a problem. Where it has no answer that is what is found.
    pub fn asked(&mut self, answers: &Answers<'_>, problem: &Problem) -> Verified {
        let (held, launch) = match answers.of(problem) {
            Ok(found) => found,
            Err(why) => return refused(*problem, self.session.device().arch.clone(), why),
        };
        let tuned = Some(held.problem()).filter(|t| t.bucket() != problem.bucket());
        let mut line = Verified { tuned, ..blank(&held, *problem) };
        let judge = answers.judge(held, problem);
        line.finding = self.check(&judge, &held, launch, &mut line).unwrap_or_else(|why| why);
        line
    }

    /// Times two bundles' answers for a problem in turn, after checking both. A round runs the one, the other, the other and the
    /// one, so that neither has the better place.
    pub fn beside(&mut self, one: &Answers<'_>, other: &Answers<'_>, problem: &Problem) -> Result<Beside, Finding> {
        let unanswered = |why| Finding::Failed { why };
        let found = [one.of(problem).map_err(unanswered)?, other.of(problem).map_err(unanswered)?];
        let setup = self.setup(&other.judge(found[1].0, problem), *problem, true)?;
        self.session.prepare(&setup).map_err(|e| failed(&e))?;
        let mut runnables = Vec::new();
        let mut names = Vec::new();
        for (held, launch) in found {
            let runnable = Runnable { artifact: self.put(held.artifact().bytes)?, launch };
            let tried = self.session.attempt(&runnable, 0).map_err(|e| failed(&e))?;
            let name = format!("{} [{}]", held.description().name, held.config());
            match Finding::of(tried) {
                Some(Finding::Wrong { why }) => return Err(Finding::Wrong { why: format!("{name}: {why}") }),
                Some(Finding::Unstable { why }) => return Err(Finding::Unstable { why: format!("{name}: {why}") }),
                Some(other) => return Err(other),
                None => {}
            }
            runnables.push(runnable);
            names.push(format!("{} {}", held.description().name, held.config()));
        }
        let turns = [0, 1, 1, 0].map(|i| runnables[i].clone());
        let mut timed = self.session.finals(&turns, ROUNDS).map_err(|e| failed(&e))?;
        if let Some(doubt) = timed.iter_mut().find_map(|t| t.doubt.take()) {
            return Err(doubt.into());
        }
        let series: Vec<Series> = timed.into_iter().map(|t| t.series).collect();
        let (Ok(answers), [a, b, c, d]) = (names.try_into(), &series[..]) else {
            return Err(Finding::Failed { why: "four series were asked for".into() });
        };
        let median = |x: &Series, y: &Series| Series { us: [&x.us[..], &y.us].concat(), ..Series::default() }.median();
        Ok(Beside { problem: *problem, answers, us: [median(a, d), median(b, c)] })
    }

    /// Runs `launch` on the problem of `line`, and compares with the reference of `judge`.
    fn check(
        &mut self,
        judge: &Held<'_>,
        held: &Held<'_>,
        launch: Launch,
        line: &mut Verified,
    ) -> Result<Finding, Finding> {
        let stored_us = line.stored_us.filter(|_| self.options.timing);
        let setup = self.setup(judge, line.problem, stored_us.is_some())?;
        self.session.prepare(&setup).map_err(|e| match e {
            e @ BackendError::OutOfMemory { .. } => Finding::Skipped { why: e.to_string() },
            e => failed(&e),
        })?;
        let runnable = Runnable { artifact: self.put(held.artifact().bytes)?, launch };
        let (tried, _) = self.session.verify(&runnable, &[]).map_err(|e| failed(&e))?;
        line.error_rms = Some(tried.check.rms);
        if let Some(found) = Finding::of(tried) {
            return Ok(found);
        }
        let found = match stored_us {
            Some(stored_us) => self.timed(&runnable, stored_us, line)?,
            None => Finding::Good,
        };
        // No look-up tells workloads apart: the same code meets the others too.
        for variant in line.problem.variants() {
            if found.is_bad() {
                break;
            }
            self.session.prepare(&self.setup(judge, variant, false)?).map_err(|e| failed(&e))?;
            let (tried, _) = self.session.verify(&runnable, &[]).map_err(|e| failed(&e))?;
            if let Some(found) = Finding::of(tried) {
                return Ok(found.on(&variant));
            }
        }
        Ok(found)
    }

    /// Holds a winner's time against the stored one.
    fn timed(&mut self, runnable: &Runnable, stored_us: f64, line: &mut Verified) -> Result<Finding, Finding> {
        for _ in 0..TRIES {
            let timed = self.session.finals(std::slice::from_ref(runnable), ROUNDS).map_err(|e| failed(&e))?;
            let Some(Timed { series, doubt }) = timed.into_iter().next() else {
                return Err(Finding::Failed { why: "one series was asked for".into() });
            };
            if let Some(doubt) = doubt {
                return Ok(doubt.into());
            }
            let median = series.median();
            let best = line.now_us.map_or(median, |us| us.min(median));
            line.now_us = Some(best);
            if !is_slower(best, stored_us, self.options.slack) {
                return Ok(Finding::Good);
            }
        }
        Ok(Finding::Slower)
    }

    /// What the session needs to check a problem, from the bundle, else made here, which for a GPU needs NVRTC; to time it, it needs more
    /// memory than the caches hold.
    fn setup(&self, held: &Held<'_>, problem: Problem, timed: bool) -> Result<Setup, Finding> {
        let (device, seed) = (self.session.device(), self.options.seed);
        let (Some(support), Some((code, description))) = (held.support(), held.reference()) else {
            let skipped = |e: &dyn std::fmt::Display| Finding::Skipped {
                why: format!("the bundle holds no reference for it: {e}"),
            };
            let library = match self.library.get() {
                Some(library) => library,
                None => {
                    let library = Library::built_in().map_err(|e| skipped(&e))?;
                    self.library.get_or_init(|| library)
                }
            };
            let setup = Bench::new(library, &self.here).setup(&problem, device, seed).map_err(|e| skipped(&e))?;
            return Ok(Setup { single: !timed, ..setup });
        };
        let recipe = Recipe::new(description.clone()).map_err(|e| failed(&e))?;
        if problem != held.problem() && recipe.serves(&held.problem(), &problem, device, &Config::default()).is_err() {
            return Err(Finding::Skipped { why: "the bundle's reference does not answer for this size".into() });
        }
        let launch = recipe.launch(&problem, device, &Config::default()).map_err(|e| failed(&e))?;
        let reference = Some(Runnable { artifact: self.put(code.bytes)?, launch });
        Ok(Setup { problem, seed, support: Some(self.put(support.bytes)?), reference, single: !timed })
    }

    fn put(&self, code: &[u8]) -> Result<Artifact, Finding> {
        Artifact::put(self.here.folder(), code, ArtifactInfo::default()).map_err(|e| failed(&e))
    }
}

/// Whether a time is longer than a stored one by more than noise. A share of a microsecond is noise: what takes less than
/// two is slower only when it is half a microsecond slower too.
fn is_slower(now_us: f64, stored_us: f64, slack: f64) -> bool {
    now_us > stored_us * slack && (stored_us >= 2.0 || now_us > stored_us + 0.5)
}

fn failed(e: &dyn std::fmt::Display) -> Finding {
    Finding::Failed { why: e.to_string() }
}

fn refused(problem: Problem, arch: String, why: String) -> Verified {
    let finding = Finding::Failed { why };
    let template = String::new();
    Verified { problem, template, arch, tuned: None, stored_us: None, now_us: None, error_rms: None, finding }
}

fn blank(held: &Held<'_>, problem: Problem) -> Verified {
    Verified {
        problem,
        template: held.description().name.clone(),
        arch: held.device().arch.clone(),
        tuned: None,
        stored_us: None,
        now_us: None,
        error_rms: None,
        finding: Finding::Good,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a list that is looked through for each, a hundred thousand sizes would take minutes.
    #[test]
    fn many_sizes_are_drawn_once_each() {
        let contract = "attention batch=64 q=4096 kv=4096 heads=2 kv_heads=1 head_dim=8 dtype=f32";
        let contracts = vec![vec![contract.parse().unwrap()]];
        let begun = std::time::Instant::now();
        let many = draw(&contracts, 100_000, 7);
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{:?}", begun.elapsed());
        assert_eq!((many.len(), many.iter().collect::<HashSet<_>>().len()), (100_000, 100_000));
        assert_eq!(draw(&contracts, 1000, 7), many[..1000]);
        // Where the sizes are few, so are they.
        assert_eq!(draw(&[vec!["gelu rows=2 cols=2".parse().unwrap()]], 1000, 7).len(), 2);
    }

    #[test]
    fn a_share_of_a_microsecond_is_noise() {
        for (now, stored, slower) in [
            (0.97, 0.70, false),
            (1.19, 0.70, false),
            (1.21, 0.70, true),
            (2.40, 1.90, false),
            (2.60, 2.00, false),
            (2.61, 2.00, true),
            (13.1, 10.0, true),
            (12.9, 10.0, false),
            (f64::INFINITY, 0.5, true),
        ] {
            assert_eq!(is_slower(now, stored, 1.3), slower, "{now} {stored}");
        }
    }
}
