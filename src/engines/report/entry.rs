//! What one engine did with one workload: medians over the rounds that went well, and whether they count.

use super::read::Runs;
use super::source::Source;
use super::words;
use crate::engines::measured::{Meanwhile, Measured};
use crate::engines::rows::{Cell, Run, Start, State};
use crate::median::median;
use serde::Serialize;

/// The engine that a report is about.
pub const OURS: &str = "jitune";

/// A median over rounds with the least and the greatest of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Value {
    /// The median.
    pub median: f64,
    /// The least.
    pub low: f64,
    /// The greatest.
    pub high: f64,
    /// How many rounds have it.
    pub rounds: usize,
}

impl Value {
    /// Of one value a round; none of none.
    pub fn of(list: &[f64]) -> Option<Value> {
        let low = list.iter().copied().fold(f64::INFINITY, f64::min);
        let high = list.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        (!list.is_empty()).then(|| Value { median: median(list), low, high, rounds: list.len() })
    }
}

/// One engine in one precision with one workload on one device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// The engine's label.
    pub engine: String,
    /// The precision.
    pub dtype: String,
    /// The workload.
    pub workload: String,
    /// The device's name; empty where no line says it.
    pub device: String,
    /// `cuda` or `cpu`.
    pub target: String,
    /// The rounds that went well.
    pub rounds: Vec<u32>,
    /// What became of each other round.
    pub left_out: Vec<String>,
    /// Why it is in no ranking.
    pub apart: Option<String>,
    /// Medians over the rounds that went well.
    pub figures: Option<Figures>,
    /// Whether it is of the baseline's own file.
    pub baseline: bool,
}

/// Medians over rounds; times in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// Requests with a whole answer, of all rounds.
    pub completed: u64,
    /// Requests without.
    pub failed: u64,
    /// Seconds of a round.
    pub duration_s: f64,
    /// Tokens of a prompt, in the mean.
    pub input_tokens: f64,
    /// Tokens of an answer, in the mean.
    pub answer_tokens: f64,
    /// Tokens of answers a second.
    pub output_throughput: Option<Value>,
    /// Answers a second.
    pub request_throughput: Option<Value>,
    /// Answers a second within the limits.
    pub goodput: Option<Value>,
    /// The median of the time to the first token.
    pub ttft_ms: Option<Value>,
    /// Its 99th percentile.
    pub ttft_p99_ms: Option<Value>,
    /// The median of the time a token.
    pub tpot_ms: Option<Value>,
    /// Its 99th percentile.
    pub tpot_p99_ms: Option<Value>,
    /// The 99th percentile of the gap between pieces.
    pub itl_p99_ms: Option<Value>,
    /// The median of the time to the end.
    pub e2el_ms: Option<Value>,
    /// The 99th percentile of how late the client was.
    pub late_p99_ms: Option<Value>,
    /// Tokens of answers a second in each tenth of the time.
    pub over_time: Vec<f64>,
    /// How much more the sixth to ninth tenth had than the second to fifth, as a share: the first fills and the last drains.
    pub drift: Option<f64>,
    /// What the engine and the hardware said.
    pub meanwhile: Meanwhile,
}

impl Entry {
    /// Its figures, if it is in rankings.
    pub fn counted(&self) -> Option<&Figures> {
        self.figures.as_ref().filter(|_| self.apart.is_none())
    }

    /// Whether it is an engine that was entered again to know the noise.
    pub fn twin(&self) -> bool {
        self.engine.contains('#')
    }

    /// Whether it is jitune.
    pub fn ours(&self) -> bool {
        name_of(&self.engine) == OURS && !self.twin()
    }

    /// Whether two could be held against each other: the same workload in the same precision on the same device.
    pub fn beside(&self, other: &Entry) -> bool {
        self.group() == other.group()
    }

    /// What it shares with those that it can be held against: workload, precision, device.
    pub fn group(&self) -> [&str; 3] {
        [&self.workload, &self.dtype, &self.device]
    }

    /// The lines that it is made of.
    pub fn source(&self) -> Source {
        let (engine, dtype, workload) = (self.engine.clone(), self.dtype.clone(), self.workload.clone());
        Source::Cells { engine, dtype, workload, rounds: self.rounds.clone(), baseline: self.baseline }
    }
}

/// An engine's name without the number of its entry.
pub fn name_of(label: &str) -> &str {
    label.split('#').next().unwrap_or(label)
}

/// A state in words.
pub fn state_in_words(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Wrong => "wrong: it computes another model than it was given",
        State::Miscounted => "miscounted: it gave another number of tokens than it was asked for",
        State::Stalled => "stalled",
        State::Dropped => "dropped: some requests had no answer",
        State::Failed => "failed",
        State::Missing => "not here",
        State::Unsupported => "not supported",
        State::Unchecked => "unchecked",
        State::Cut => "cut off",
    }
}

/// A state with what was said of it.
pub fn state_and_why(state: State, why: Option<&str>) -> String {
    let why = why.filter(|w| !w.is_empty()).map(|w| format!(" ({w})")).unwrap_or_default();
    format!("{}{why}", state_in_words(state))
}

/// An entry with the figures of its rounds.
type Found<'a> = (Entry, Vec<&'a Measured>);
/// A round without figures, and what became of it.
type Lost = (u32, String);

/// The entries of a run, in the order of its cells.
pub fn entries(runs: &Runs, baseline: bool) -> Vec<Entry> {
    let mut list: Vec<Found<'_>> = Vec::new();
    let mut lost: Vec<Vec<Lost>> = Vec::new();
    for cell in &runs.cells {
        let (device, target) = runs.start(&cell.of).map(|s| device_of(&runs.run, s)).unwrap_or_default();
        let found = list.iter().position(|(e, _)| {
            e.engine == cell.of.engine && e.group() == [&cell.of.workload[..], &cell.of.dtype[..], &device[..]]
        });
        let at = found.unwrap_or_else(|| {
            list.push((empty(cell, device, target, baseline), Vec::new()));
            lost.push(Vec::new());
            list.len() - 1
        });
        let (entry, rounds) = &mut list[at];
        match (&cell.measured, cell.state) {
            (Some(measured), State::Ok | State::Unchecked) => {
                entry.rounds.push(cell.of.round);
                rounds.push(measured);
                if cell.state == State::Unchecked {
                    entry.apart = Some(state_and_why(cell.state, cell.why.as_deref()));
                }
            }
            (_, state) => {
                let said = match state {
                    State::Ok => "without figures".into(),
                    state => state_and_why(state, cell.why.as_deref()),
                };
                lost[at].push((cell.of.round, said));
            }
        }
    }
    let finish = |((entry, rounds), lost): (Found<'_>, Vec<Lost>)| {
        let entry = Entry { figures: figures(&rounds), left_out: alike(&lost), ..entry };
        let why = entry.apart.clone().or_else(|| apart(runs, &entry));
        Entry { apart: why, ..entry }
    };
    list.into_iter().zip(lost).map(finish).collect()
}

/// What became of rounds, those of which the same is said together.
fn alike(lost: &[Lost]) -> Vec<String> {
    let mut said: Vec<(&str, Vec<u32>)> = Vec::new();
    for (round, why) in lost {
        match said.iter_mut().find(|(known, _)| known == why) {
            Some((_, rounds)) => rounds.push(*round),
            None => said.push((why, vec![*round])),
        }
    }
    let line = |(why, rounds): (&str, Vec<u32>)| {
        format!("round{} {}: {why}", if rounds.len() > 1 { "s" } else { "" }, words::rounds(&rounds))
    };
    said.into_iter().map(line).collect()
}

fn empty(cell: &Cell, device: String, target: String, baseline: bool) -> Entry {
    let of = cell.of.clone();
    Entry {
        engine: of.engine,
        dtype: of.dtype,
        workload: of.workload,
        device,
        target,
        rounds: Vec::new(),
        left_out: Vec::new(),
        apart: None,
        figures: None,
        baseline,
    }
}

/// The name of the device of an engine, and its kind. Engines name one device in many ways; an ordinal or nothing is the run's
/// own, and what they say in full stands.
fn device_of(run: &Run, start: &Start) -> (String, String) {
    let named = start.device.trim();
    let lower = named.to_lowercase();
    let own = run.device.as_ref().filter(|d| start.target.is_empty() || d.target.name() == start.target);
    let target = match (start.target.as_str(), own) {
        ("", Some(d)) => d.target.name().to_string(),
        (target, _) => target.to_string(),
    };
    let ordinal = lower.is_empty() || lower == target || lower.starts_with(&format!("{target}:"));
    let name = match own {
        Some(d) if ordinal || d.name.to_lowercase().contains(&lower) || lower.contains(&d.name.to_lowercase()) => {
            d.name.clone()
        }
        // The host's processor, where the run's own device is a GPU.
        None if ordinal && target == "cpu" => {
            run.host.get("processor").cloned().unwrap_or_else(|| "this host's processor".into())
        }
        _ => named.to_string(),
    };
    (name, target)
}

fn apart(runs: &Runs, entry: &Entry) -> Option<String> {
    let of = |label: &str| runs.checks.iter().find(|c| c.engine == label && c.dtype == entry.dtype);
    // What was entered a second time may have been checked once.
    let check = of(&entry.engine).or_else(|| of(name_of(&entry.engine)));
    match check {
        None => return Some("not checked yet".into()),
        Some(c) if c.state != State::Ok => return Some(state_and_why(c.state, c.why.as_deref())),
        Some(_) => {}
    }
    if entry.rounds.is_empty() {
        return Some(entry.left_out.join("; "));
    }
    entry.device.is_empty().then(|| "no line says on which device it ran".into())
}

/// The median of what is known.
fn middle(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    Value::of(&values.flatten().collect::<Vec<_>>()).map(|v| v.median)
}

macro_rules! medians {
    ($rounds:expr, $($field:ident),*) => {
        Meanwhile { $($field: middle($rounds.iter().map(|m| m.meanwhile.$field.map(|v| v as f64))).map(|v| v as _)),* }
    };
}

fn figures(rounds: &[&Measured]) -> Option<Figures> {
    if rounds.is_empty() {
        return None;
    }
    let over =
        |f: &dyn Fn(&Measured) -> Option<f64>| Value::of(&rounds.iter().filter_map(|m| f(m)).collect::<Vec<_>>());
    let sum = |f: fn(&Measured) -> u64| rounds.iter().map(|m| f(m)).sum::<u64>();
    let completed = sum(|m| m.completed);
    let each = |tokens: u64| tokens as f64 / completed.max(1) as f64;
    let parts = rounds.iter().map(|m| m.over_time.len()).min().unwrap_or(0);
    let over_time: Vec<f64> =
        (0..parts).map(|i| median(&rounds.iter().map(|m| m.over_time[i]).collect::<Vec<_>>())).collect();
    Some(Figures {
        completed,
        failed: sum(|m| m.failed),
        duration_s: median(&rounds.iter().map(|m| m.duration_s).collect::<Vec<_>>()),
        input_tokens: each(sum(|m| m.input_tokens)),
        answer_tokens: each(sum(|m| m.output_tokens)),
        output_throughput: over(&|m| Some(m.output_throughput)),
        request_throughput: over(&|m| Some(m.request_throughput)),
        goodput: over(&|m| m.goodput),
        ttft_ms: over(&|m| Some(m.ttft_ms.median).filter(|_| m.ttft_ms.count > 0)),
        ttft_p99_ms: over(&|m| Some(m.ttft_ms.p99).filter(|_| m.ttft_ms.count > 0)),
        tpot_ms: over(&|m| Some(m.tpot_ms.median).filter(|_| m.tpot_ms.count > 0)),
        tpot_p99_ms: over(&|m| Some(m.tpot_ms.p99).filter(|_| m.tpot_ms.count > 0)),
        itl_p99_ms: over(&|m| Some(m.itl_ms.p99).filter(|_| m.itl_ms.count > 0)),
        e2el_ms: over(&|m| Some(m.e2el_ms.median).filter(|_| m.e2el_ms.count > 0)),
        late_p99_ms: over(&|m| Some(m.late_ms.p99).filter(|_| m.late_ms.count > 0)),
        drift: middle(rounds.iter().map(|m| drift(&m.over_time))),
        over_time,
        meanwhile: medians!(
            rounds,
            peak_bytes,
            sustained_bytes,
            pages_used,
            live_share,
            prefix_hits,
            steps,
            launches_a_step,
            host_us_a_step,
            to_device_a_step,
            to_host_a_step,
            preempted,
            busy,
            roofline,
            sm_mhz,
            power_w,
            temp_c,
            joules_a_token,
            host_cores,
            host_bytes
        ),
    })
}

fn drift(over_time: &[f64]) -> Option<f64> {
    let [_, middle @ .., _] = over_time else { return None };
    let (first, second) = middle.split_at(middle.len() / 2);
    let mean = |list: &[f64]| list.iter().sum::<f64>() / list.len().max(1) as f64;
    (over_time.len() == 10 && mean(first) > 0.0).then(|| mean(second) / mean(first) - 1.0)
}
