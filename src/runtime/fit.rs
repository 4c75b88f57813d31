//! Whether a winner's code may run on a device and for a problem: by its architecture, by its template's rules, and by
//! the constants that were compiled into it.

use crate::bundle::Held;
use crate::device::{Device, Target};
use crate::problem::{Part, Problem};
use crate::recipe::{Constants, Launch, Recipe};

/// Sizes among which the least that is answered is looked for.
const MOST_SCANNED: i64 = 4096;

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
    let recipe = Recipe::new(held.description().clone()).map_err(|e| e.to_string())?;
    fitted(&recipe, held, here).map(|f| f.launch)
}

/// Sizes beside the tuned one that a winner answers for on a device, with their launches: of each dimension that its code
/// takes at run time the least, and some around the tuned one.
pub fn served_on(held: &Held<'_>, here: &Device) -> Result<Vec<(Problem, Launch)>, String> {
    arch(held.device(), here)?;
    let recipe = Recipe::new(held.description().clone()).map_err(|e| e.to_string())?;
    let Fitted { device, constants, .. } = fitted(&recipe, held, here)?;
    let problem = held.problem();
    let dynamic = &recipe.description.reuse.dynamic;
    let sizes = problem.op().dims.iter().filter(|d| d.part == Part::Size && dynamic.iter().any(|n| n == d.name));
    let mut found = Vec::new();
    for d in sizes {
        let t = problem.dim(d.name);
        let answer = |v: i64| {
            let asked = problem.with(&[(d.name, v)]).ok()?;
            let launch = recipe.answer(&problem, &constants, &asked, &device, held.config()).ok()?;
            Some((asked, launch))
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

/// A winner on the device at hand.
pub(super) struct Fitted {
    /// What its expressions are evaluated for.
    pub device: Device,
    /// What its code was compiled with.
    pub constants: Constants,
    /// The launch of the problem that it was tuned for.
    pub launch: Launch,
}

/// A winner on the device at hand.
///
/// Its expressions are evaluated for the device at hand with the ceilings of the tuned one (they are measurements, and made
/// the winner). A CPU kernel whose template refuses other numbers of cores falls back to those it was tuned with: the pool
/// takes the tasks of any launch.
pub(super) fn fitted(recipe: &Recipe, held: &Held<'_>, here: &Device) -> Result<Fitted, String> {
    let (problem, config, tuned) = (held.problem(), held.config(), held.device());
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let constants = recipe.instance(&problem, tuned, config).and_then(|i| i.constants()).map_err(|e| text(&e))?;
    let fits = |on: &Device| -> Result<Launch, String> {
        if !recipe.takes(&problem, on).map_err(|e| text(&e))? {
            return Err("its template does not take the problem on this device".into());
        }
        recipe.answer(&problem, &constants, &problem, on, config).map_err(|e| text(&e))
    };
    let on = Device { ceilings: tuned.ceilings, ..here.clone() };
    let (device, launch) = match fits(&on) {
        Ok(launch) => (on, launch),
        Err(_) if here.target == Target::Cpu => (tuned.clone(), fits(tuned)?),
        Err(why) => return Err(why),
    };
    Ok(Fitted { device, constants, launch })
}
