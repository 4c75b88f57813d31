//! What came close to a winner by itself and may make a whole step faster, and the records of what did (`engine::Timer::choose`).

use super::lanes::at_once;
use super::measurer::{Measurer, Place};
use super::problem::Tuning;
use super::{Event, JoinedSpace, Observer, Options, Report, TuneError, Tuner, with_tuner};
use crate::device::Device;
use crate::journal;
use crate::key::{self, Context};
use crate::problem::Problem;
use crate::recipe::{Config, Role};
use crate::template::Library;
use crate::verdict::Verdict;
use crate::winner::{Evidence, InStep, Winner};
use jitune_db::Db;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};

/// How many times the winner's time a rival may have taken.
const CLOSE: f64 = 1.12;

/// A candidate that was right and nearly as fast as a winner, with its code. Its evidence is that of its first timing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Rival {
    /// As a winner would be.
    pub winner: Winner,
    /// Its code.
    pub code: Vec<u8>,
}

/// A config that whole steps chose for a problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Settled {
    /// The problem, as it was tuned.
    pub problem: Problem,
    /// The template.
    pub template: String,
    /// The config.
    pub config: Config,
    /// Why.
    pub step: InStep,
}

/// Of each of these problems up to `most` candidates that earlier runs found right and close to the stored winner, the fastest first,
/// compiled again. Templates for whole steps alone are searched first. Problems without a winner have none.
pub fn rivals(
    db: &Db,
    library: &Library,
    device: &Device,
    problems: &[Problem],
    most: usize,
    options: &Options,
    stop: &AtomicBool,
) -> Result<Vec<Vec<Rival>>, TuneError> {
    let half = &Options { budget: options.budget.map(|budget| budget / 2), ..options.clone() };
    // What hangs may use up the time of one; what was tried by then serves.
    let searched = with_tuner(db, library, half, &Silent, stop, &[], |t| t.search_for_steps(problems, device));
    match searched {
        Err(TuneError::Interrupted) if !stop.load(Ordering::Relaxed) => {}
        other => other?,
    }
    with_tuner(db, library, half, &Silent, stop, &[], |tuner| {
        let lists = problems.iter().map(|problem| tuner.close(problem, device, most)).collect::<Result<Vec<_>, _>>()?;
        let (to, outcomes) = channel();
        let (mut sources, mut waiting) = (Vec::new(), Vec::new());
        for (number, (at, rival)) in
            lists.iter().enumerate().flat_map(|(at, list)| list.iter().map(move |r| (at, r))).enumerate()
        {
            let templates = library.for_steps(&rival.problem, device)?;
            let Some(template) = templates.iter().find(|t| t.name() == rival.template()) else { continue };
            if let Ok(source) = library.render(template, &rival.problem, device, &rival.config) {
                sources.push((number, source));
                waiting.push((number, at, rival.clone()));
            }
        }
        tuner.compilers.submit(&sources, &to);
        drop((to, sources));
        let mut found: Vec<Vec<Rival>> = vec![Vec::new(); problems.len()];
        for _ in 0..waiting.len() {
            // The compilers drop a sender when they are told to stop, and when the time is up: then what is there serves.
            let next = loop {
                match outcomes.recv_timeout(super::LOOK) {
                    Ok(next) => break Some(next),
                    Err(_) if tuner.stopped() => return Err(TuneError::Interrupted),
                    Err(RecvTimeoutError::Timeout) if !tuner.time_is_up() => {}
                    Err(_) => break None,
                }
            };
            let Some((number, outcome)) = next else { break };
            // What does not compile here any more is none.
            let (Ok(artifact), Some((_, at, rival))) = (outcome, waiting.iter().find(|(n, ..)| *n == number)) else {
                continue;
            };
            let code = artifact.bytes().map_err(|source| TuneError::Io { path: artifact.path.clone(), source })?;
            let mut winner = rival.clone();
            (winner.artifact, winner.evidence.compiler_report) = (artifact.hash, artifact.info);
            found[*at].push(Rival { winner, code });
        }
        if tuner.stopped() {
            return Err(TuneError::Interrupted);
        }
        for list in &mut found {
            list.sort_by(|a, b| a.winner.evidence.median_us.total_cmp(&b.winner.evidence.median_us));
        }
        Ok(found)
    })
}

/// Verifies and times what whole steps chose, as winners are, and stores each beside the winner in whose place steps run it.
pub fn in_steps(
    db: &Db,
    library: &Library,
    chosen: &[Settled],
    options: &Options,
    observer: &dyn Observer,
    stop: &AtomicBool,
) -> Result<Report, TuneError> {
    let problems: Vec<Problem> = chosen.iter().map(|s| s.problem).collect();
    with_tuner(db, library, options, observer, stop, chosen, |tuner| tuner.run_all(&problems))
}

/// Withdraws what earlier runs here stored for whole steps to run in the place of these problems' winners, where it was compared again;
/// of how many.
pub fn not_in_steps(
    db: &Db,
    library: &Library,
    device: &Device,
    problems: &[Problem],
    compared: &dyn Fn(&Winner) -> bool,
) -> Result<usize, TuneError> {
    let context = Context { compiler: key::compiler(device.target)?, device: device.clone() };
    let mut withdrawn = 0;
    for problem in problems {
        let key = context.in_steps(library, problem, &library.for_steps(problem, device)?);
        let stored = db.winner(&key)?.filter(|record| !record.merged);
        if stored.and_then(|record| journal::winner(&record)).is_some_and(|w| compared(&w)) {
            db.withdraw_winner(&key, serde_json::json!({ "why": "whole steps are not faster with it any more" }))?;
            withdrawn += 1;
        }
    }
    Ok(withdrawn)
}

/// Nobody hears.
struct Silent;

impl Observer for Silent {
    fn event(&self, _: &Event) {}
}

impl Tuner<'_> {
    /// Tries candidates of the templates that are for whole steps alone: as winners are looked for, going on where an earlier run stopped,
    /// and nothing wins.
    fn search_for_steps(&self, problems: &[Problem], device: &Device) -> Result<(), TuneError> {
        let mut spaces = Vec::new();
        for problem in problems {
            let mut templates = self.library.for_steps(problem, device)?;
            templates.retain(|t| t.recipe.description.role == Role::Step);
            spaces.extend(self.space_of(problem, device, templates)?);
        }
        if spaces.is_empty() {
            return Ok(());
        }
        let place = Place::new(Measurer::start(self.exe.clone(), self.devices[0], self.halt.clone())?);
        let each = self.left() / 2;
        at_once(spaces.into_iter(), |space| match Tuning::open(self, &place, space, &[], each)?.try_only() {
            Err(TuneError::Prepare(_)) | Ok(()) => Ok(()),
            Err(e) => Err(e),
        })
    }

    /// Candidates that were right and came close to a problem's winner, as winners without code.
    fn close(&self, problem: &Problem, device: &Device, most: usize) -> Result<Vec<Winner>, TuneError> {
        let Some(won) = self.look_up(problem, device)? else { return Ok(Vec::new()) };
        let context = self.context(device);
        let mut list = Vec::new();
        for template in self.library.for_steps(problem, device)? {
            for (config, verdict) in journal::verdicts(self.db, &context.trials(self.library, problem, &template))? {
                let (Verdict::Measured { samples_us, .. }, Some(us)) = (&verdict, verdict.median_us()) else {
                    continue;
                };
                let is_it = template.name() == won.template() && config == won.config;
                if is_it || us > won.evidence.median_us * CLOSE {
                    continue;
                }
                let mut description = template.recipe.description.clone();
                description.keep(&config);
                let evidence = Evidence { samples_us: samples_us.clone(), median_us: us, ..Evidence::default() };
                let (problem, device, artifact) = (*problem, device.clone(), String::new());
                list.push(Winner { problem, config, artifact, description, device, evidence });
            }
        }
        list.sort_by(|a, b| a.evidence.median_us.total_cmp(&b.evidence.median_us));
        // The best of each template before the second of another.
        let mut seen = vec![won.template().to_string()];
        let (mut firsts, rest): (Vec<Winner>, Vec<Winner>) = list.into_iter().partition(|w| {
            let new = !seen.iter().any(|name| name == w.template());
            seen.extend(new.then(|| w.template().to_string()));
            new
        });
        firsts.extend(rest);
        firsts.truncate(most);
        Ok(firsts)
    }

    /// The one config that whole steps chose for a problem, if they did.
    pub(super) fn settled_on(&self, problem: &Problem, device: &Device) -> Option<Result<JoinedSpace, TuneError>> {
        let settled = self.settled.iter().find(|s| s.problem == *problem)?;
        let space = || {
            let templates = self.library.for_steps(problem, device)?;
            let space = self.of_one(problem, device, templates, &settled.template, &settled.config)?;
            let space = space.ok_or(TuneError::EmptySpace { problem: *problem })?;
            Ok(JoinedSpace { step: Some(settled.step.clone()), ..space })
        };
        Some(space())
    }
}
