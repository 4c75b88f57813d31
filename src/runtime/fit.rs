//! Whether a winner's code may run on a device and for a problem: by its architecture, by its template's rules, and by
//! the constants that were compiled into it.

use crate::bundle::Held;
use crate::device::{Device, Target};
use crate::problem::{Part, Problem};
use crate::recipe::{Config, Description, Expr, Launch, Recipe, RecipeError};

/// Sizes among which the least that is answered is looked for.
const MOST_SCANNED: i64 = 4096;

/// A recipe with the constants of its code compiled as expressions.
pub(super) struct Described {
    pub recipe: Recipe,
    constants: Vec<(String, Expr)>,
}

/// A problem, a device and a config: what a description is evaluated for.
#[derive(Clone, Copy)]
pub(super) struct Case<'a> {
    pub problem: &'a Problem,
    pub device: &'a Device,
    pub config: &'a Config,
}

impl Described {
    pub fn new(description: Description) -> Result<Described, RecipeError> {
        let recipe = Recipe::new(description)?;
        let d = &recipe.description;
        let constant = |(name, text): (&String, &crate::recipe::ExprText)| {
            Ok((name.clone(), Expr::new(&d.name, &format!("defines {name}"), &text.0)?))
        };
        let constants = d.defines.iter().map(constant).collect::<Result<_, RecipeError>>()?;
        Ok(Described { recipe, constants })
    }

    /// The launch of a case.
    pub fn launch(&self, case: Case<'_>) -> Result<Launch, RecipeError> {
        self.recipe.launch(case.problem, case.device, case.config)
    }

    /// The launch of `asked` with the code made for `tuned`; none where the recipe says that it may not run it.
    pub fn answer(&self, tuned: Case<'_>, asked: &Problem) -> Result<Option<Launch>, String> {
        if !self.recipe.serves(tuned.problem, asked, tuned.device, tuned.config) {
            return Ok(None);
        }
        // The legality predicate is the template author's word; what was compiled in can be checked.
        let asked = Case { problem: asked, ..tuned };
        self.constants_agree(tuned, asked)?;
        self.launch(asked).map(Some).map_err(|e| e.to_string())
    }

    /// Says which constant that was compiled in for `made` has another value for `wanted`.
    pub fn constants_agree(&self, made: Case<'_>, wanted: Case<'_>) -> Result<(), String> {
        let scope = |c: Case<'_>| self.recipe.scope(c.problem, c.device, c.config).map_err(|e| e.to_string());
        let (before, after) = (scope(made)?, scope(wanted)?);
        for (name, expr) in &self.constants {
            let (a, b) = (expr.value(&before), expr.value(&after));
            let (a, b) = (a.map_err(|e| e.to_string())?, b.map_err(|e| e.to_string())?);
            if a != b {
                return Err(format!("its code was compiled with {name} = {a}, and {b} would be needed"));
            }
        }
        Ok(())
    }
}

/// Whether code made for `tuned` is code for `here`.
pub(super) fn arch(tuned: &Device, here: &Device) -> Result<(), String> {
    let differ = || format!("it is {} code for {}, and this is {}", tuned.target.name(), tuned.arch, here.arch);
    if tuned.target != here.target {
        return Err(format!("it is {} code", tuned.target.name()));
    }
    match here.target {
        // A cubin runs on its own architecture and on later ones of its family; one with an `a` suffix on its own alone.
        Target::Cuda => {
            let family = !tuned.arch.ends_with('a') && tuned.cc / 10 == here.cc / 10 && tuned.cc <= here.cc;
            (tuned.arch == here.arch || family).then_some(()).ok_or_else(differ)
        }
        // Compiled with -march=native: any instruction of that model may be in it.
        Target::Cpu if tuned.arch != here.arch => Err(differ()),
        Target::Cpu => {
            for field in ["vendor", "family", "model"] {
                let (a, b) = (tuned.silicon.get(field), here.silicon.get(field));
                if a != b {
                    let text = |v: Option<&String>| v.cloned().unwrap_or_default();
                    let (a, b) = (text(a), text(b));
                    return Err(format!("it was compiled for the processor with {field} {a}, and this one has {b}"));
                }
            }
            // Of one model, but a hypervisor may hide some of its instructions. Older bundles do not name them.
            let here: Vec<&str> = here.flags.split(' ').collect();
            let missing: Vec<&str> = tuned.flags.split_whitespace().filter(|f| !here.contains(f)).collect();
            match missing.is_empty() {
                true => Ok(()),
                false => Err(format!("its code may use instructions that this processor hides: {}", missing.join(" "))),
            }
        }
    }
}

/// The launch of a winner on a device as the runtime would do it, or why it cannot be used there.
pub fn launch_on(held: &Held<'_>, here: &Device) -> Result<Launch, String> {
    arch(held.device(), here)?;
    let described = Described::new(held.description().clone()).map_err(|e| e.to_string())?;
    device_for(&described, held, here).map(|(_, launch)| launch)
}

/// Sizes beside the tuned one that a winner answers for on a device, with their launches: of each dimension that its code
/// takes at run time the least, and some around the tuned one.
pub fn served_on(held: &Held<'_>, here: &Device) -> Result<Vec<(Problem, Launch)>, String> {
    arch(held.device(), here)?;
    let described = Described::new(held.description().clone()).map_err(|e| e.to_string())?;
    let (device, _) = device_for(&described, held, here)?;
    let problem = held.problem();
    let tuned = Case { problem: &problem, device: &device, config: held.config() };
    let dynamic = &described.recipe.description.reuse.dynamic;
    let sizes = problem.op().dims.iter().filter(|d| d.part == Part::Size && dynamic.iter().any(|n| n == d.name));
    let mut found = Vec::new();
    for d in sizes {
        let t = problem.dim(d.name);
        let answer = |v: i64| {
            let asked = problem.with(&[(d.name, v)]).ok()?;
            Some((asked, described.answer(tuned, &asked).ok()??))
        };
        let mut tried = vec![1, 2, 3, t / 2, t / 2 + 1, t - 1, t + 1, 2 * t];
        tried.extend((1..t.min(MOST_SCANNED)).find(|v| answer(*v).is_some()));
        tried.sort_unstable();
        tried.dedup();
        found.extend(tried.into_iter().filter(|v| *v > 0 && *v != t).filter_map(answer));
    }
    Ok(found)
}

/// Whether `a` is closer to the device at hand than `b`: the same silicon before the same architecture before the
/// nearest one.
pub(super) fn closer(a: &Device, b: &Device, here: &Device) -> bool {
    let rank = |d: &Device| {
        (d.silicon != here.silicon, d.arch != here.arch, here.cc.abs_diff(d.cc), here.units.abs_diff(d.units))
    };
    rank(a) < rank(b)
}

/// The device that a winner's expressions are evaluated for, and its launch there.
///
/// That is the device at hand with the ceilings of the tuned one (they are measurements, and made the winner). A CPU
/// kernel whose template refuses other numbers of cores falls back to those it was tuned with: the pool takes the tasks
/// of any launch.
pub(super) fn device_for(described: &Described, held: &Held<'_>, here: &Device) -> Result<(Device, Launch), String> {
    let (problem, config) = (held.problem(), held.config());
    let tuned = held.device();
    let fits = |on: &Device| -> Result<Launch, String> {
        let case = |device| Case { problem: &problem, device, config };
        if !described.recipe.takes(&problem, on).map_err(|e| e.to_string())? {
            return Err("its template does not take the problem on this device".into());
        }
        described.recipe.check(&problem, on, config).map_err(|e| e.to_string())?;
        described.constants_agree(case(tuned), case(on))?;
        described.launch(case(on)).map_err(|e| e.to_string())
    };
    let on = Device { ceilings: tuned.ceilings, ..here.clone() };
    match fits(&on) {
        Ok(launch) => Ok((on, launch)),
        Err(_) if here.target == Target::Cpu => fits(tuned).map(|launch| (tuned.clone(), launch)),
        Err(why) => Err(why),
    }
}
