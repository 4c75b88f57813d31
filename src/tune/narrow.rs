//! Problems that are searched only among what was measured for others of their family: how far these are, what their
//! measurements say of a prediction, and when it is their turn.

use super::search::Point;
use super::{JoinedSpace, TuneError, Tuner, Won};
use crate::device::Device;
use crate::journal;
use crate::problem::{DimDef, Part, Problem};
use crate::recipe::Config;
use crate::winner::Evidence;
use std::collections::BTreeMap;

/// What a search among what was measured for others tries.
const OF_OTHERS: usize = 24;
/// A family of more problems than this is tuned in two parts beside each other: five of 37 tuned alone at the end, in turn, kept a GPU
/// waiting for compilers for a sixth of the time.
const IN_PARTS: usize = 24;

impl Tuner<'_> {
    /// Of what was measured for others of the problems that differ from one in one size, the best by prediction, what only
    /// spares the search a slow config included; nothing where nothing was. The prediction is the analytic one, corrected by
    /// what it was worth at the nearest sizes below and above. The positions `beside` are not looked at.
    pub(super) fn narrowed(
        &self,
        problem: &Problem,
        problems: &[Problem],
        beside: &[usize],
        device: &Device,
    ) -> Result<Option<JoinedSpace>, TuneError> {
        let templates = self.library.for_problem(problem, device)?;
        let others = problems.iter().enumerate().filter(|(i, p)| !beside.contains(i) && !self.is_narrow(p));
        let others: Vec<(&Problem, f64)> = others.filter_map(|(_, p)| Some((p, apart(problem, p)?))).collect();
        let mut points = Vec::new();
        for (template, t) in templates.iter().enumerate() {
            // Of each config: how far the problem lies where it was measured, and the logarithm of time over prediction.
            let mut measured: BTreeMap<String, (Config, Vec<(f64, f64)>)> = BTreeMap::new();
            for &(other, far) in &others {
                let key = self.context(device).trials(self.library, other, t);
                for (config, verdict) in journal::verdicts(self.db, &key)? {
                    let Some(us) = verdict.median_us() else { continue };
                    let cost = |p: &Problem| t.recipe.instance(p, device, &config).and_then(|i| i.cost_us());
                    let serves = t.recipe.serves(other, problem, device, &config).is_ok();
                    if let (true, Ok(predicted)) = (serves, cost(other)) {
                        let held = measured.entry(config.to_string()).or_insert_with(|| (config, Vec::new()));
                        held.1.push((far, (us / predicted).ln()));
                    }
                }
            }
            for (config, worth) in measured.into_values() {
                let cost_us = t.recipe.instance(problem, device, &config)?.cost_us()? * correction(&worth).exp();
                points.push(Point { template, config, cost_us });
            }
        }
        points.sort_by(|a, b| a.cost_us.total_cmp(&b.cost_us));
        points.truncate(OF_OTHERS);
        let evidence = Evidence { space: points.len() as u64, narrow: true, ..Evidence::default() };
        let won = Some(Won { evidence, most_us: f64::INFINITY });
        let narrowed = JoinedSpace { problem: *problem, templates, points: points.into(), won, step: None };
        Ok(Some(narrowed).filter(|space| !space.points.is_empty()))
    }
}

/// The logarithm of the ratio of the one size in which another problem differs; nothing where it differs in none or in more.
fn apart(problem: &Problem, other: &Problem) -> Option<f64> {
    let differ = |d: &&DimDef| d.part == Part::Size && other.dim(d.name) != problem.dim(d.name);
    let d = problem.op().dims.iter().filter(|_| other.op().name == problem.op().name).find(differ)?;
    let alike = other.with(&[(d.name, problem.dim(d.name))]).map(|p| p.bucket()) == Ok(problem.bucket());
    alike.then(|| (other.dim(d.name).max(1) as f64 / problem.dim(d.name).max(1) as f64).ln())
}

/// The nearest below 0 and the nearest above it.
fn nearest<T: Copy>(list: impl Iterator<Item = (f64, T)> + Clone) -> [Option<(f64, T)>; 2] {
    [false, true].map(|above| {
        let side = list.clone().filter(|(far, _)| (*far > 0.0) == above);
        side.min_by(|a, b| a.0.abs().total_cmp(&b.0.abs()))
    })
}

/// What lies between the nearest of these below 0 and above it, in proportion; the nearest where there is one side alone.
fn correction(worth: &[(f64, f64)]) -> f64 {
    match nearest(worth.iter().copied()) {
        [Some((below, low)), Some((above, high))] => low + (high - low) * below / (below - above),
        [low, high] => low.or(high).map_or(0.0, |(_, worth)| worth),
    }
}

/// A family's problems, by who is tuned beside whom.
pub(super) struct Parts {
    /// Those that may be tuned beside each other, each in turn.
    pub parts: Vec<Vec<usize>>,
    /// What comes after all parts, and what it does not look at: larger sizes than the next, whose many configs would keep
    /// those of the nearest from being tried.
    pub rest: Vec<usize>,
    pub far: Vec<usize>,
}

/// A family in two parts where it is long, its wide problems' first half and the others. Those that try what was measured for others
/// are of the part that the nearest of these are in; where these are in both, they come after.
pub(super) fn in_parts(family: Vec<usize>, problems: &[Problem], is_narrow: impl Fn(&Problem) -> bool + Copy) -> Parts {
    let (narrow, wide): (Vec<usize>, Vec<usize>) = family.iter().partition(|&&i| is_narrow(&problems[i]));
    if family.len() <= IN_PARTS || wide.len() < 2 {
        return Parts { parts: vec![in_turn(family, problems, is_narrow)], rest: Vec::new(), far: Vec::new() };
    }
    // By their places in the plan, whatever stands first here: in a run that goes on with another that is what has no winner.
    let mut places = wide.clone();
    places.sort_unstable();
    let middle = places[wide.len() / 2];
    let (low, high): (Vec<usize>, Vec<usize>) = wide.iter().partition(|&&i| i < middle);
    let (mut parts, mut rest, mut far) = ([low.clone(), high.clone()], Vec::new(), high.clone());
    for index in narrow {
        let apart = wide.iter().filter_map(|&i| Some((apart(&problems[index], &problems[i])?, i)));
        let near: Vec<usize> = nearest(apart).into_iter().flatten().map(|(_, i)| i).collect();
        let of_high = near.iter().any(|i| high.contains(i));
        if of_high && near.iter().any(|i| low.contains(i)) {
            rest.push(index);
            far.retain(|i| !near.contains(i));
        } else {
            parts[usize::from(of_high)].push(index);
        }
    }
    Parts { parts: parts.map(|part| in_turn(part, problems, is_narrow)).into(), rest, far }
}

/// A lane's problems in the order in which they are tuned: those that try what was measured for others right after the
/// nearest of these, while the compilers work for other lanes.
pub(super) fn in_turn(lane: Vec<usize>, problems: &[Problem], is_narrow: impl Fn(&Problem) -> bool) -> Vec<usize> {
    let (narrow, mut order): (Vec<usize>, Vec<usize>) = lane.into_iter().partition(|&i| is_narrow(&problems[i]));
    let wide = order.clone();
    for index in narrow {
        let far = wide.iter().filter_map(|&i| Some((apart(&problems[index], &problems[i])?, i)));
        let place = |(_, i): (f64, usize)| order.iter().position(|o| *o == i);
        // Behind those that stand there already.
        let after = nearest(far).into_iter().flatten().filter_map(place).max();
        let at = after.map_or(order.len(), |at| {
            at + 1 + order[at + 1..].iter().take_while(|i| is_narrow(&problems[**i])).count()
        });
        order.insert(at, index);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn products(list: &[i64]) -> Vec<Problem> {
        list.iter().map(|m| format!("matmul m={m} n=64 k=64 dtype=f32").parse().unwrap()).collect()
    }

    #[test]
    fn problems_are_apart_in_one_size_alone() {
        let p = products(&[100, 200]);
        assert_eq!(apart(&p[0], &p[1]), Some(2f64.ln()));
        assert_eq!(apart(&p[1], &p[0]), Some(0.5f64.ln()));
        assert_eq!(apart(&p[0], &p[0]), None);
        for other in ["matmul m=200 n=128 k=64 dtype=f32", "matmul m=200 n=64 k=64 dtype=bf16", "argmax rows=9 cols=64"]
        {
            assert_eq!(apart(&p[0], &other.parse().unwrap()), None, "{other}");
        }
        let decode = |text: &str| format!("decode {text} heads=8 kv_heads=2 head_dim=64").parse::<Problem>().unwrap();
        assert!(apart(&decode("batch=4 context=512"), &decode("batch=4 context=4096")).is_some());
        assert_eq!(apart(&decode("batch=4 context=512"), &decode("batch=1 context=4096")), None);
    }

    #[test]
    fn a_correction_lies_between_the_nearest_on_both_sides() {
        assert_eq!(correction(&[]), 0.0);
        assert_eq!(correction(&[(0.5, 3.0), (0.7, 9.0)]), 3.0);
        assert_eq!(correction(&[(-2.0, 9.0), (-1.0, 4.0)]), 4.0);
        assert_eq!(correction(&[(-1.0, 4.0), (3.0, 8.0), (-2.0, 100.0), (5.0, 100.0)]), 5.0);
    }

    #[test]
    fn what_is_narrow_comes_right_after_the_nearest_of_the_others() {
        let p = products(&[1, 4, 16, 64, 2, 8, 5, 100]);
        let narrow = |q: &Problem| [2, 8, 5, 100].contains(&q.dim("m"));
        let order: Vec<i64> = in_turn((0..8).collect(), &p, narrow).into_iter().map(|i| p[i].dim("m")).collect();
        assert_eq!(order, [1, 4, 2, 16, 8, 5, 64, 100]);
        // Of another family than all others: at the end.
        let alone = in_turn(vec![4, 0, 1], &p, narrow);
        assert_eq!(alone, [0, 1, 4]);
        assert_eq!(in_turn(vec![4], &p, narrow), [4]);
    }

    #[test]
    fn a_long_family_has_two_parts_and_what_lies_between_them_comes_after() {
        let wide: Vec<i64> = (0..12).map(|i| 1 << i).collect();
        let between: Vec<i64> = wide[2..].iter().flat_map(|m| [m + m / 4, m + m / 2]).collect();
        let p = products(&[wide.clone(), between.clone()].concat());
        let narrow = |q: &Problem| between.contains(&q.dim("m"));
        let rows = |part: &[usize]| part.iter().map(|&i| p[i].dim("m")).collect::<Vec<_>>();
        let Parts { parts, rest, far } = in_parts((0..p.len()).collect(), &p, narrow);
        assert_eq!(rows(&parts[0]), [1, 2, 4, 8, 5, 6, 16, 10, 12, 32, 20, 24]);
        assert_eq!(rows(&parts[1])[..7], [64, 128, 80, 96, 256, 160, 192]);
        assert_eq!((rows(&rest), rows(&far)), (vec![40, 48], vec![128, 256, 512, 1024, 2048]));
        assert_eq!(parts.iter().flatten().chain(&rest).count(), p.len());
        // In a run that goes on with another the same parts have another order.
        let turned: Vec<usize> = (5..p.len()).chain(0..5).collect();
        let Parts { parts, rest, far } = in_parts(turned, &p, narrow);
        assert_eq!(rows(&parts[0]), [32, 1, 2, 4, 8, 5, 6, 16, 10, 12, 20, 24]);
        assert_eq!((rows(&rest), rows(&far)), (vec![40, 48], vec![128, 256, 512, 1024, 2048]));
        // A few are one part, as are many that all try what others measured.
        let few = in_parts((0..20).collect(), &p, narrow);
        assert_eq!((few.parts.len(), few.parts[0].len(), few.rest.len()), (1, 20, 0));
        let all = in_parts((0..p.len()).collect(), &p, |_| true);
        assert_eq!((all.parts.len(), all.parts[0].len(), all.rest.len()), (1, p.len(), 0));
    }
}
