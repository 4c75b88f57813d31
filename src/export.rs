//! Export: which of the stored winners go into a bundle, and what goes with them. The file itself is `bundle`'s.

use crate::backend::BackendError;
use crate::bench::{Bench, BenchError, Here};
use crate::bundle::{Bundle, BundleError, Extras, Part};
use crate::device::{Device, Target};
use crate::journal;
use crate::key;
use crate::problem::Problem;
use crate::template::Library;
use crate::winner::Winner;
use jitune_db::{Db, FieldDiff, Record};
use std::collections::BTreeMap;
use std::fmt;

/// What to seal.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// The winners that are asked for; all by default.
    pub filter: &'a dyn Fn(&Winner) -> bool,
    /// The only compiler whose code goes in, as [`key::compiler`] names it; by default any: code that one compiler made
    /// is not worse when there is another.
    pub compiler: Option<&'a str>,
    /// Take winners too whose key is not today's: of other templates, another schema, another way of measuring.
    pub stale: bool,
    /// Add the code with which a GPU machine without NVRTC verifies the bundle. It needs NVRTC here.
    pub verifiable: bool,
    /// Take in a winner's place what whole steps of a model run instead of it, where that was found (`tune::in_steps`).
    pub in_steps: bool,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Options { filter: &|_| true, compiler: None, stale: false, verifiable: true, in_steps: true }
    }
}

/// A bundle, and what had to be left out.
#[derive(Debug)]
#[non_exhaustive]
pub struct Export {
    /// The bundle.
    pub bundle: Bundle<'static>,
    /// Asked winners that are not in it.
    pub left_out: Vec<LeftOut>,
    /// What whole steps chose and is not in it, while the winner in whose place it would run is.
    pub not_in_steps: Vec<LeftOut>,
    /// Why some winners can be verified only where NVRTC is; each reason once.
    pub unverifiable: Vec<String>,
}

/// A winner that is not in the bundle.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LeftOut {
    /// Its problem.
    pub problem: Problem,
    /// Why.
    pub why: Why,
}

/// Why a winner is left out.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Why {
    /// A look-up would not find it any more: the fields in which its key differs from today's.
    Stale(Vec<FieldDiff>),
    /// No template of the library takes its problem.
    NoTemplate,
    /// A merge brought it, and its code was not judged here.
    Merged {
        /// What does that.
        command: &'static str,
    },
    /// Whole steps chose it in the place of a winner that is none any more.
    OverAnother,
    /// Its artifact is missing or damaged.
    NoCode {
        /// The artifact's hash.
        artifact: String,
    },
    /// The bundle refuses it.
    Unfit(String),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Stale(fields) => {
                let fields: Vec<String> = fields.iter().map(FieldDiff::to_string).collect();
                write!(
                    f,
                    "its key is not today's ({}); tune it again, or give the templates it was tuned with",
                    fields.join("; ")
                )
            }
            Why::Merged { command } => write!(f, "{}; `{command}` does it", journal::MERGED),
            Why::OverAnother => {
                f.write_str("it was chosen in the place of another winner; `jitune tune --steps` chooses again")
            }
            Why::NoTemplate => f.write_str("no template takes it any more; give the templates it was tuned with"),
            Why::NoCode { artifact } => write!(f, "its artifact {artifact} is missing or damaged; tune it again"),
            Why::Unfit(why) => f.write_str(why),
        }
    }
}

/// Why nothing is exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The database.
    #[error(transparent)]
    Db(#[from] jitune_db::Error),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A folder for what is compiled cannot be made.
    #[error(transparent)]
    Target(#[from] BackendError),
}

/// Seals stored winners: of several for one problem and kind of device, the newest that can be sealed of those whose key is still
/// the one that a look-up with `library` asks for.
pub fn seal(db: &Db, library: &Library, options: Options<'_>) -> Result<Export, ExportError> {
    let mut slots: BTreeMap<_, Vec<Choice>> = BTreeMap::new();
    for record in db.winners()? {
        let record = record?;
        // Records of another version may not read as winners; they are kept there, and not exported.
        let Some(winner) = journal::winner(&record) else { continue };
        if !(options.filter)(&winner) || (winner.evidence.step.is_some() && !options.in_steps) {
            continue;
        }
        let against = against(library, &record, &winner, &options);
        let d = &winner.device;
        let slot = (d.target, d.arch.clone(), winner.problem, d.silicon.clone());
        slots.entry(slot).or_default().push(Choice { at: record.at, winner, against });
    }
    let here = if options.verifiable { Some(Here::new()?) } else { None };
    let (mut parts, mut left_out, mut unverifiable) = (Vec::new(), Vec::new(), Vec::new());
    let mut not_in_steps = Vec::new();
    for mut choices in slots.into_values() {
        choices.sort_by(|a, b| b.rank().cmp(&a.rank()));
        let passed_over = in_their_places(&mut choices);
        let mut left = None;
        for choice in choices {
            let problem = choice.winner.problem;
            match choice.part(db)? {
                Ok(mut part) => {
                    let extras = here.as_ref().map(|here| extras(library, here, &problem, &part.winner.device));
                    part.extras = extras.transpose().map(Option::flatten).unwrap_or_else(|why| {
                        if !unverifiable.contains(&why) {
                            unverifiable.push(why);
                        }
                        None
                    });
                    parts.push(part);
                    left = None;
                    not_in_steps.extend(passed_over);
                    break;
                }
                // What speaks against the best of them is what there is to say.
                Err(why) => drop(left.get_or_insert(LeftOut { problem, why })),
            }
        }
        left_out.extend(left);
    }
    Ok(Export { bundle: Bundle::seal(parts)?, left_out, not_in_steps, unverifiable })
}

/// Leaves of what whole steps run in the places of winners only what runs in that of the winner that is sealed, and puts it first;
/// gives the best of the others, if there are any and none stays.
fn in_their_places(choices: &mut Vec<Choice>) -> Option<LeftOut> {
    let over = |c: &Choice| c.winner.evidence.step.as_ref().map(|step| step.over.clone());
    let won = choices.iter().find(|c| over(c).is_none()).map(|c| c.winner.artifact.clone());
    let stays = |c: &Choice| over(c).is_none() || (c.against.is_none() && over(c) == won);
    let (kept, others): (Vec<Choice>, Vec<Choice>) = std::mem::take(choices).into_iter().partition(stays);
    *choices = kept;
    choices.sort_by_key(|c| over(c).is_none());
    let first = others.into_iter().next().filter(|_| choices.iter().all(|c| over(c).is_none()));
    first.map(|c| LeftOut { problem: c.winner.problem, why: c.against.unwrap_or(Why::OverAnother) })
}

/// A winner of a slot, the date of its record, and what speaks against it.
struct Choice {
    at: u64,
    winner: Winner,
    against: Option<Why>,
}

impl Choice {
    /// The greatest that can be sealed is. Of records of one second that goes before which was measured later.
    fn rank(&self) -> (bool, u64, u64, &str) {
        (self.against.is_none(), self.at, self.winner.evidence.at, &self.winner.artifact)
    }

    /// What is sealed of it, or why nothing is.
    fn part(self, db: &Db) -> Result<Result<Part, Why>, ExportError> {
        if let Some(why) = self.against {
            return Ok(Err(why));
        }
        let code = self.winner.artifact.parse().ok().map(|hash| db.artifact(&hash)).transpose()?.flatten();
        let Some(code) = code else { return Ok(Err(Why::NoCode { artifact: self.winner.artifact })) };
        let part = Part { extras: None, winner: self.winner, code };
        Ok(part.check().map(|()| part).map_err(|e| Why::Unfit(e.to_string())))
    }
}

/// Why a look-up on the device of a winner would not take its record.
fn against(library: &Library, record: &Record, winner: &Winner, options: &Options<'_>) -> Option<Why> {
    if record.merged {
        let command = if winner.evidence.step.is_some() { "jitune tune --steps" } else { "jitune tune" };
        return Some(Why::Merged { command });
    }
    let Ok(templates) = library.for_steps(&winner.problem, &winner.device) else {
        return (!options.stale).then_some(Why::NoTemplate);
    };
    let compiler = options.compiler.or(record.key.get("compiler")).unwrap_or_default().to_string();
    let context = key::Context { device: winner.device.clone(), compiler };
    let fields =
        context.of_winner(library, &winner.problem, &templates, key::is_in_steps(&record.key)).diff(&record.key);
    match fields.is_empty() {
        true => journal::winner_of(record, &templates).err().map(|why| Why::Unfit(why.into())),
        false => (!options.stale).then_some(Why::Stale(fields)),
    }
}

/// The support code and the reference of a CUDA problem. The CPU needs neither: its reference is the host's own.
fn extras(library: &Library, here: &Here, problem: &Problem, device: &Device) -> Result<Option<Extras>, String> {
    if device.target == Target::Cpu {
        return Ok(None);
    }
    let setup = Bench::new(library, here).setup(problem, device, 0).map_err(|e: BenchError| e.to_string())?;
    let (Some(support), Some(reference)) = (setup.support, setup.reference) else { return Ok(None) };
    let description = library.reference(problem, device).map_err(|e| e.to_string())?.recipe.description.clone();
    let code = |artifact: crate::artifact::Artifact| artifact.bytes().map_err(|e| e.to_string());
    Ok(Some(Extras { support: code(support)?, reference: (code(reference.artifact)?, description) }))
}
