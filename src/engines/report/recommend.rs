//! What to run: the engine for all, the engine for each workload where they differ, what to hold in production, and the way
//! from the CPU engine. Every sentence names the lines that it is derived from.

use super::entry::{Entry, OURS};
use super::facts::Facts;
use super::migrate::{Step, migration};
use super::noise::Metric;
use super::rankings::{WorkloadWinner, workload};
use super::roadmap::{Improvement, roadmap};
use super::source::{Said, Source};
use super::words::{list, number, percent, ratio};
use crate::engines::workload::{Arrivals, Workload};
use serde::Serialize;

/// What to run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Recommendation {
    /// The engine for all workloads; none where none counts.
    pub primary: Option<Choice>,
    /// The engines for the workloads at which the primary one is not among the first.
    pub hybrid: Vec<Choice>,
    /// What the primary engine is to hold in production.
    pub targets: Vec<Target>,
    /// The way from the CPU engine.
    pub migration: Vec<Step>,
    /// What would make jitune faster, by horizon, the most time first.
    pub roadmap: Vec<Improvement>,
}

/// An engine for one workload or for all.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// The engine.
    pub engine: String,
    /// The workload; none for all.
    pub workload: Option<String>,
    /// The precision; none for all.
    pub dtype: Option<String>,
    /// The device.
    pub device: String,
    /// Why.
    pub said: Said,
}

/// A figure to hold, somewhat laxer than what was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limit {
    /// The figure, in the unit of what it limits.
    pub value: f64,
    /// By what share it is laxer: a tenth, or twice the noise of that figure where that is more.
    pub margin: f64,
}

/// What an engine is to hold at the load that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Target {
    /// The engine.
    pub engine: String,
    /// The precision.
    pub dtype: String,
    /// The workload.
    pub workload: String,
    /// Its load, in words.
    pub load: String,
    /// The 99th percentile of the time to the first token, at most, in ms.
    pub ttft_p99_ms: Option<Limit>,
    /// The 99th percentile of the time a token, at most, in ms.
    pub tpot_p99_ms: Option<Limit>,
    /// Tokens of answers a second, at least.
    pub output_throughput: Option<Limit>,
    /// Its cells.
    pub because: Vec<Source>,
}

/// Derives the recommendation; of what there are no lines for, nothing is said.
pub(super) fn recommend(facts: &Facts<'_>) -> Recommendation {
    let choice = primary(facts);
    let engine = choice.as_ref().map(|c| (c.engine.clone(), c.device.clone()));
    let of = |e: &&Entry| engine.as_ref().is_some_and(|(name, device)| (&e.engine, &e.device) == (name, device));
    let own: Vec<&Entry> = facts.entries.iter().filter(|e| e.counted().is_some()).filter(of).collect();
    Recommendation {
        hybrid: choice.as_ref().map(|c| hybrid(facts, c)).unwrap_or_default(),
        targets: own.iter().map(|e| target(facts, e)).collect(),
        migration: migration(facts, &own),
        roadmap: roadmap(facts.entries, facts.kernels, &facts.runs.run),
        primary: choice,
    }
}

/// The winners on the device that production runs on: a GPU where one was measured.
fn here<'a>(facts: &'a Facts<'_>) -> Vec<&'a WorkloadWinner> {
    let gpu = |w: &&WorkloadWinner| facts.entries.iter().any(|e| e.device == w.device && e.target == "cuda");
    let on_gpu: Vec<&WorkloadWinner> = facts.winners.iter().filter(gpu).collect();
    let all = if on_gpu.is_empty() { facts.winners.iter().collect() } else { on_gpu };
    // Of several devices the first: no sentence is about two.
    let first = all.first().map(|w: &&WorkloadWinner| w.device.clone());
    all.into_iter().filter(|w| Some(&w.device) == first.as_ref()).collect()
}

fn primary(facts: &Facts<'_>) -> Option<Choice> {
    let groups = here(facts);
    let device = groups.first()?.device.clone();
    let mut engines: Vec<&String> = Vec::new();
    for name in groups.iter().flat_map(|w| &w.winners) {
        if !engines.contains(&name) {
            engines.push(name);
        }
    }
    let won = |name: &str| groups.iter().filter(|w| w.winners.iter().any(|e| e == name)).collect::<Vec<_>>();
    let lone = |name: &str| groups.iter().filter(|w| w.winners.len() == 1 && w.winners[0] == name).count();
    let best = engines.into_iter().max_by_key(|name| (won(name).len(), lone(name), *name == OURS))?;
    let (wins, alone) = (won(best), lone(best));
    let ties = wins.len() - alone;
    let tied = if ties > 0 { format!(", of which it ties at {ties}") } else { String::new() };
    let held = wins.iter().filter(|w| w.of > 1).count();
    let text = format!(
        "{best} on {device}: first at {} of {} workloads{tied}; it was held against another engine at {held} of them.",
        wins.len(),
        groups.len()
    );
    let missing: Vec<String> = groups
        .iter()
        .filter(|w| {
            !facts.entries.iter().any(|e| {
                e.engine == *best && e.counted().is_some() && e.group() == [&w.workload[..], &w.dtype, &w.device]
            })
        })
        .map(|w| format!("{} {}", w.workload, w.dtype))
        .collect();
    let lacking =
        if missing.is_empty() { String::new() } else { format!(" It has nothing that counts at {}.", list(&missing)) };
    let because = groups.iter().flat_map(|w| w.because.clone());
    Some(Choice {
        engine: best.clone(),
        workload: None,
        dtype: None,
        device,
        said: Said::new(text + &lacking, because),
    })
}

fn hybrid(facts: &Facts<'_>, primary: &Choice) -> Vec<Choice> {
    let other = here(facts).into_iter().filter(|w| !w.winners.contains(&primary.engine));
    let choice = |w: &WorkloadWinner| {
        let group = [&w.workload[..], &w.dtype, &w.device];
        let of = |name: &str| facts.entries.iter().find(|e| e.engine == name && e.group() == group);
        let values = [of(&w.winners[0]), of(&primary.engine)].map(|e| Some(w.by.of(e?.counted()?)?.median));
        let ahead = match values {
            [Some(its), Some(ours)] => {
                let gain = w.by.gain(its, ours).map(|g| format!(", {} as good", ratio(g))).unwrap_or_default();
                format!(": {} beside {} of {}{gain}", number(its), number(ours), primary.engine)
            }
            _ => format!(": {} has nothing that counts there", primary.engine),
        };
        let text = format!("{} for {} {}, by {}{ahead}.", list(&w.winners), w.workload, w.dtype, w.by.name());
        Choice {
            engine: w.winners[0].clone(),
            workload: Some(w.workload.clone()),
            dtype: Some(w.dtype.clone()),
            device: w.device.clone(),
            said: Said::new(text, w.because.clone()),
        }
    };
    other.map(choice).collect()
}

/// A load in words.
pub fn load(w: &Workload) -> String {
    match &w.arrivals {
        Arrivals::Closed { clients: 1 } => "one client that asks again at once".into(),
        Arrivals::Closed { clients } => format!("{clients} clients that ask again at once"),
        Arrivals::Open { rate, .. } => format!("{} requests/s at random", number(*rate)),
        Arrivals::Trace { file } => format!("requests as {} says", file.display()),
    }
}

fn target(facts: &Facts<'_>, e: &Entry) -> Target {
    let of = |metric: Metric, f: &dyn Fn(&super::entry::Figures) -> Option<super::entry::Value>| {
        let margin = (2.0 * facts.noise.within(metric, e.group()).unwrap_or_default()).max(0.1);
        let measured = e.counted().and_then(f)?.median;
        let value = if metric.more() { measured / (1.0 + margin) } else { measured * (1.0 + margin) };
        Some(Limit { value, margin })
    };
    Target {
        engine: e.engine.clone(),
        dtype: e.dtype.clone(),
        workload: e.workload.clone(),
        load: workload(&facts.runs.run, &e.workload).map(load).unwrap_or_default(),
        ttft_p99_ms: of(Metric::Ttft, &|f| f.ttft_p99_ms),
        tpot_p99_ms: of(Metric::Tpot, &|f| f.tpot_p99_ms),
        output_throughput: of(Metric::OutputThroughput, &|f| f.output_throughput),
        because: vec![e.source()],
    }
}

impl Target {
    /// In one sentence.
    pub fn said(&self) -> Said {
        let limits = [self.ttft_p99_ms, self.tpot_p99_ms, self.output_throughput];
        let margins: Vec<String> = limits.iter().flatten().map(|l| percent(l.margin)).collect();
        let one = margins.iter().all(|m| *m == margins[0]);
        let words = ["p99 TTFT at most {} ms", "p99 TPOT at most {} ms", "at least {} output tokens/s"];
        let said = |(limit, words): (&Option<Limit>, &str)| {
            let limit = (*limit)?;
            let text = words.replace("{}", &number(limit.value));
            Some(if one { text } else { format!("{text} ({})", percent(limit.margin)) })
        };
        let parts: Vec<String> = limits.iter().zip(words).filter_map(said).collect();
        let laxer = match margins.first() {
            Some(margin) if one => format!("{margin} laxer than measured"),
            _ => "in brackets by how much laxer than measured".into(),
        };
        let load = if self.load.is_empty() { String::new() } else { format!(" ({})", self.load) };
        let text = format!("{} {}{load}: {}; {laxer}.", self.workload, self.dtype, list(&parts));
        Said::new(text, self.because.clone())
    }
}
