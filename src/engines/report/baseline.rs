//! The CPU engine that a GPU is held against.

use super::costs;
use super::entry::{Entry, entries};
use super::noise::Metric;
use super::rankings::workload;
use super::read::Runs;
use crate::engines::rows::Run;
use crate::engines::workload::Workload;

/// Where the CPU baseline is to be found.
#[derive(Clone, Copy, Debug, Default)]
pub struct Baseline<'a> {
    /// A run that was made on a CPU; none for the CPU engines of the report's own run.
    pub runs: Option<&'a Runs>,
    /// The engine; none for the best CPU engine of each workload that is not jitune, or jitune where there is no other.
    pub engine: Option<&'a str>,
}

/// The CPU engines that may be a baseline.
pub struct Found<'a> {
    run: &'a Run,
    own: &'a Run,
    /// What counts on a CPU.
    pub entries: Vec<Entry>,
    /// Why there is none.
    pub missing: String,
}

impl<'a> Found<'a> {
    /// Looks in the baseline's file if there is one, in the run itself otherwise.
    pub fn of(runs: &'a Runs, own: &[Entry], baseline: Baseline<'a>) -> Found<'a> {
        let run = baseline.runs.map_or(&runs.run, |b| &b.run);
        let all = baseline.runs.map_or_else(|| own.to_vec(), |b| entries(b, true));
        let named = |e: &Entry| baseline.engine.is_none_or(|name| e.engine == name);
        let mut list: Vec<Entry> =
            all.into_iter().filter(|e| e.target == "cpu" && e.counted().is_some() && !e.twin() && named(e)).collect();
        if baseline.engine.is_none() && list.iter().any(|e| !e.ours()) {
            list.retain(|e| !e.ours());
        }
        let other = run.parameters != runs.run.parameters;
        let missing = match (baseline.engine, list.is_empty()) {
            _ if other => "the baseline's file is of a model with another number of parameters".into(),
            (Some(name), true) => format!("no cell of {name} on a CPU counts"),
            (None, true) => {
                "no engine on a CPU has a cell that counts; add one to the run, or give its engines.jsonl".into()
            }
            _ => String::new(),
        };
        if other {
            list.clear();
        }
        Found { run, own: &runs.run, entries: list, missing }
    }

    /// The best of them by a metric at the very workload of an entry, or why there is none.
    pub fn best(&self, of: &Entry, metric: Metric) -> Result<(&Entry, f64), String> {
        self.most(of, |e| Some(metric.of(e.counted()?)?.median), metric.more())
    }

    /// The cheapest of them at the very workload of an entry: dollars for a million tokens.
    pub fn cheapest(&self, of: &Entry) -> Result<(&Entry, f64), String> {
        let run = if self.run.prices.is_empty() { self.own } else { self.run };
        let dollars =
            |e: &Entry| costs::dollars_a_million(costs::price(run, "cpu")?, e.counted()?.output_throughput?.median);
        costs::price(run, "cpu").ok_or("no price of a CPU's hour was given (--price cpu=…/h)".to_string())?;
        self.most(of, dollars, false)
    }

    fn most(&self, of: &Entry, value: impl Fn(&Entry) -> Option<f64>, more: bool) -> Result<(&Entry, f64), String> {
        if self.entries.is_empty() {
            return Err(self.missing.clone());
        }
        let [ours, its] = [self.own, self.run].map(|run| workload(run, &of.workload));
        if let (Some(a), Some(b)) = (ours, its)
            && !alike(a, b)
        {
            return Err(format!("the baseline's {} is another workload", of.workload));
        }
        let here = self.entries.iter().filter(|e| e.workload == of.workload);
        let valued = here.filter_map(|e| Some((e, value(e).filter(|v| *v > 0.0)?)));
        let best = valued.max_by(|(_, a), (_, b)| if more { a.total_cmp(b) } else { b.total_cmp(a) });
        best.ok_or_else(|| format!("the baseline has no cell of {} that counts", of.workload))
    }
}

/// Whether two workloads ask the same of an engine; how many requests and seconds were measured is the run's own.
fn alike(a: &Workload, b: &Workload) -> bool {
    let of = |w: &Workload| Workload {
        requests: 0,
        seconds: 0.0,
        warm: 0,
        seed: 0,
        name: String::new(),
        limits: Default::default(),
        ..w.clone()
    };
    of(a) == of(b)
}
