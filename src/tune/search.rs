//! Search strategies: which candidates to try next, given what became of the earlier ones. Pure.

use crate::problem::hash_uniform;
use crate::recipe::Config;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// A config of one of the problem's templates.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Position of the template in the problem's list.
    pub template: usize,
    /// The config.
    pub config: Config,
    /// Predicted microseconds.
    pub cost_us: f64,
}

/// How the next candidates are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Search {
    /// Exhaustive where the budget covers the space, evolutionary otherwise.
    #[default]
    Auto,
    /// Every candidate, in the order of predicted cost.
    Exhaustive,
    /// Candidates at random.
    Random,
    /// Starts from the predicted and remembered best, then mutates and crosses what measured best.
    Evolve,
}

/// Candidates that one generation adds.
const GENERATION: usize = 8;
/// Parents of a generation.
const PARENTS: usize = 4;
/// Candidates that every template gets at least in the first batch.
const PER_TEMPLATE: usize = 3;

/// The state of a search over the joined space of a problem's templates.
pub struct Searcher {
    points: Arc<[Point]>,
    by_config: HashMap<(usize, String), usize>,
    given: BTreeSet<usize>,
    results: Vec<(usize, f64)>,
    search: Search,
    trials: usize,
    remembered: Vec<usize>,
    seed: u64,
    draws: u64,
}

impl Searcher {
    /// A search over `points` (cheapest first) for at most `trials` candidates. `remembered` configs, such as the winners
    /// of neighbouring shapes, are tried first.
    pub fn new(
        points: Arc<[Point]>,
        search: Search,
        trials: usize,
        remembered: &[(usize, Config)],
        seed: u64,
    ) -> Searcher {
        let by_config: HashMap<_, _> =
            points.iter().enumerate().map(|(i, p)| ((p.template, p.config.to_string()), i)).collect();
        let found = |(t, c): &(usize, Config)| by_config.get(&(*t, c.to_string())).copied();
        let remembered = remembered.iter().filter_map(found).collect();
        let search = match search {
            Search::Auto if points.len() <= trials => Search::Exhaustive,
            Search::Auto => Search::Evolve,
            chosen => chosen,
        };
        Searcher {
            points,
            by_config,
            given: BTreeSet::new(),
            results: Vec::new(),
            search,
            trials,
            remembered,
            seed,
            draws: 0,
        }
    }

    /// How many candidates were given out.
    pub fn given(&self) -> usize {
        self.given.len()
    }

    /// Tells what a candidate took, in microseconds; failures are not told.
    pub fn tell(&mut self, point: &Point, us: f64) {
        if let Some(&i) = self.by_config.get(&(point.template, point.config.to_string())) {
            self.results.push((i, us));
        }
    }

    /// The next candidates; empty when the budget or the space is used up.
    pub fn next_batch(&mut self) -> Vec<Point> {
        let left = self.trials.saturating_sub(self.given.len());
        let chosen = match self.search {
            Search::Exhaustive | Search::Auto => self.untried().take(left.min(32)).collect(),
            Search::Random => self.random(left.min(GENERATION)),
            Search::Evolve if self.given.is_empty() => self.first(left),
            Search::Evolve => self.generation(left.min(GENERATION)),
        };
        self.given.extend(&chosen);
        chosen.into_iter().map(|i| self.points[i].clone()).collect()
    }

    fn untried(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.points.len()).filter(|i| !self.given.contains(i))
    }

    fn draw(&mut self, below: usize) -> usize {
        self.draws += 1;
        let unit = (f64::from(hash_uniform(self.seed, self.draws)) + 1.0) / 2.0;
        ((unit * below as f64) as usize).min(below.saturating_sub(1))
    }

    fn random(&mut self, count: usize) -> Vec<usize> {
        let mut pool: Vec<usize> = self.untried().collect();
        let mut chosen = Vec::new();
        while chosen.len() < count && !pool.is_empty() {
            let at = self.draw(pool.len());
            chosen.push(pool.swap_remove(at));
        }
        chosen
    }

    /// What is remembered, a few of every template, and the cheapest by prediction, up to 60% of the budget.
    fn first(&mut self, left: usize) -> Vec<usize> {
        let count = (left * 3).div_ceil(5).max(1);
        let mut chosen: Vec<usize> = Vec::new();
        let take = |i: usize, chosen: &mut Vec<usize>| {
            if chosen.len() < count && !chosen.contains(&i) {
                chosen.push(i);
            }
        };
        for &i in &self.remembered {
            take(i, &mut chosen);
        }
        let templates: BTreeSet<usize> = self.points.iter().map(|p| p.template).collect();
        for rank in 0..PER_TEMPLATE {
            for &t in &templates {
                if let Some(i) = (0..self.points.len()).filter(|&i| self.points[i].template == t).nth(rank) {
                    take(i, &mut chosen);
                }
            }
        }
        for i in 0..self.points.len() {
            take(i, &mut chosen);
        }
        chosen
    }

    /// Neighbours of the best so far, in the order of the parent's time scaled by the predicted change.
    fn generation(&mut self, count: usize) -> Vec<usize> {
        self.results.sort_by(|a, b| a.1.total_cmp(&b.1));
        let parents: Vec<(usize, f64)> = self.results.iter().take(PARENTS).copied().collect();
        if parents.is_empty() {
            return self.untried().take(count).collect();
        }
        let mut scored: Vec<(f64, usize)> = Vec::new();
        for i in self.untried() {
            let p = &self.points[i];
            for &(parent, us) in &parents {
                let q = &self.points[parent];
                if q.template != p.template {
                    continue;
                }
                let differ = q.config.0.iter().filter(|(n, v)| p.config.get(n) != Some(**v)).count();
                // One changed tunable is a mutation; two are what crossing two good parents gives.
                if differ <= 2 {
                    let change = (p.cost_us.max(1e-3) / q.cost_us.max(1e-3)).powf(0.5);
                    scored.push((us * change * (1.0 + 0.02 * differ as f64), i));
                }
            }
        }
        scored.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut chosen: Vec<usize> = Vec::new();
        for (_, i) in scored {
            if chosen.len() < count.saturating_sub(1) && !chosen.contains(&i) {
                chosen.push(i);
            }
        }
        // One at random keeps the search from standing still where the prediction misleads.
        let pool: Vec<usize> = self.untried().filter(|i| !chosen.contains(i)).collect();
        while chosen.len() < count && !pool.is_empty() {
            let i = pool[self.draw(pool.len())];
            if chosen.contains(&i) {
                break;
            }
            chosen.push(i);
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> Arc<[Point]> {
        let mut points = Vec::new();
        for template in 0..2 {
            for a in 0..12i64 {
                for b in 0..12i64 {
                    let config = format!("a={a} b={b}").parse().unwrap();
                    points.push(Point { template, config, cost_us: 50.0 + (a + b) as f64 });
                }
            }
        }
        points.sort_by(|a, b| a.cost_us.total_cmp(&b.cost_us));
        points.into()
    }

    /// The true time, far from what the costs predict.
    fn truth(p: &Point) -> f64 {
        let (a, b) = (p.config.get("a").unwrap(), p.config.get("b").unwrap());
        10.0 + ((a - 7).pow(2) + (b - 4).pow(2)) as f64 + 5.0 * p.template as f64
    }

    fn best(search: Search, trials: usize) -> (f64, usize) {
        let mut s = Searcher::new(space(), search, trials, &[], 1);
        let mut best = f64::INFINITY;
        loop {
            let batch = s.next_batch();
            if batch.is_empty() {
                return (best, s.given());
            }
            for p in batch {
                best = best.min(truth(&p));
                s.tell(&p, truth(&p));
            }
        }
    }

    #[test]
    fn budgets_hold_and_no_candidate_comes_twice() {
        for search in [Search::Auto, Search::Exhaustive, Search::Random, Search::Evolve] {
            assert_eq!(best(search, 40).1, 40, "{search:?}");
        }
        assert_eq!(best(Search::Exhaustive, 1000), (10.0, 288));
    }

    #[test]
    fn learning_beats_the_prediction_and_chance() {
        let evolved = best(Search::Evolve, 80).0;
        assert!(evolved < best(Search::Exhaustive, 80).0);
        assert!(evolved <= best(Search::Random, 80).0, "{evolved}");
    }

    #[test]
    fn remembered_configs_come_first() {
        let seven: Config = "a=7 b=4".parse().unwrap();
        let mut s = Searcher::new(space(), Search::Evolve, 20, &[(0, seven.clone())], 1);
        assert_eq!(s.next_batch()[0].config, seven);
    }
}
