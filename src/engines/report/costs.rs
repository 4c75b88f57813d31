//! What tokens cost, in dollars and joules, and how batches scale beside what the roofline allows.

use super::entry::Entry;
use super::source::Source;
use crate::device::Device;
use crate::engines::rows::Run;
use serde::Serialize;

/// What an engine's tokens cost in a workload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// The engine.
    pub engine: String,
    /// The precision.
    pub dtype: String,
    /// The workload.
    pub workload: String,
    /// The device.
    pub device: String,
    /// Dollars an hour of that kind of device; none where no price was given.
    pub dollars_an_hour: Option<f64>,
    /// Dollars for a million tokens of answers.
    pub dollars_a_million: Option<f64>,
    /// Joules a token of an answer.
    pub joules_a_token: Option<f64>,
    /// Its cells.
    pub because: Source,
}

/// The price of an hour of a kind of device, as the run was told.
pub fn price(run: &Run, target: &str) -> Option<f64> {
    run.prices.get(if target == "cuda" { "gpu" } else { "cpu" }).copied().filter(|p| *p > 0.0)
}

/// Dollars for a million tokens of answers.
pub fn dollars_a_million(an_hour: f64, tokens_a_second: f64) -> Option<f64> {
    (tokens_a_second > 0.0).then(|| an_hour / 3600.0 / tokens_a_second * 1e6)
}

/// The costs of every entry that counts and of which something is known.
pub fn costs(run: &Run, entries: &[Entry]) -> Vec<Cost> {
    let cost = |e: &Entry| {
        let figures = e.counted()?;
        let dollars_an_hour = price(run, &e.target);
        let rate = figures.output_throughput.map(|v| v.median);
        let dollars_a_million = dollars_an_hour.zip(rate).and_then(|(p, r)| dollars_a_million(p, r));
        let joules_a_token = figures.meanwhile.joules_a_token;
        (dollars_a_million.is_some() || joules_a_token.is_some()).then(|| Cost {
            engine: e.engine.clone(),
            dtype: e.dtype.clone(),
            workload: e.workload.clone(),
            device: e.device.clone(),
            dollars_an_hour,
            dollars_a_million,
            joules_a_token,
            because: e.source(),
        })
    };
    entries.iter().filter(|e| !e.twin()).filter_map(cost).collect()
}

/// One size of a batch: how much of N times the throughput of one client N clients have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Batch {
    /// The engine.
    pub engine: String,
    /// The precision.
    pub dtype: String,
    /// The device.
    pub device: String,
    /// Clients.
    pub batch: usize,
    /// Tokens of answers a second.
    pub output_throughput: f64,
    /// That over batch times the throughput of one.
    pub efficiency: f64,
    /// What it would be if each step took what its bytes and operations need at the device's ceilings.
    pub roofline: Option<f64>,
    /// Whether operations rather than the weights' bytes bound a step of that size: beyond the roofline's knee.
    pub beyond_knee: Option<bool>,
    /// The cells of this size and of one.
    pub because: Vec<Source>,
}

/// The size of a workload of the name `batch-N`.
fn size(workload: &str) -> Option<usize> {
    workload.strip_prefix("batch-")?.parse().ok().filter(|n| *n > 0)
}

/// What a decode step needs at the ceilings: seconds of its bytes without the cache, of the cache, of its operations.
struct Step {
    weights_s: f64,
    cache_s: f64,
    operations_s: f64,
}

fn step(run: &Run, device: &Device, dtype: &str, batch: f64, context: f64) -> Option<Step> {
    let c = &device.ceilings;
    let flops = match dtype {
        "f32" => c.single,
        "fp8" => c.half * 2.0,
        _ => c.half,
    };
    let weights = run.weight_bytes.get(dtype).copied().unwrap_or(0) as f64;
    let known = weights > 0.0 && run.parameters > 0 && c.read > 0.0 && flops > 0.0;
    known.then(|| Step {
        weights_s: weights / c.read,
        cache_s: batch * context * run.token_bytes as f64 / c.read,
        operations_s: 2.0 * run.parameters as f64 * batch / flops,
    })
}

impl Step {
    fn seconds(&self) -> f64 {
        (self.weights_s + self.cache_s).max(self.operations_s)
    }
}

/// The sizes of every engine that was measured with one client.
pub fn batches(run: &Run, entries: &[Entry]) -> Vec<Batch> {
    let mut list = Vec::new();
    for e in entries.iter().filter(|e| !e.twin()) {
        let Some((batch, figures)) = size(&e.workload).zip(e.counted()) else { continue };
        let same = |o: &&Entry| (&o.engine, &o.dtype, &o.device) == (&e.engine, &e.dtype, &e.device);
        let one = entries.iter().filter(same).find(|o| size(&o.workload) == Some(1));
        let Some((one, single)) = one.and_then(|o| Some((o, o.counted()?))) else { continue };
        let rates = [figures, single].map(|f| f.output_throughput.map_or(0.0, |v| v.median));
        if rates[1] <= 0.0 {
            continue;
        }
        let n = batch as f64;
        // Over its answer a sequence holds its prompt and half of the answer in the mean.
        let context = figures.input_tokens + figures.answer_tokens / 2.0;
        let device = run.device.as_ref().filter(|d| d.name == e.device);
        let steps = device.and_then(|d| step(run, d, &e.dtype, n, context).zip(step(run, d, &e.dtype, 1.0, context)));
        list.push(Batch {
            engine: e.engine.clone(),
            dtype: e.dtype.clone(),
            device: e.device.clone(),
            batch,
            output_throughput: rates[0],
            efficiency: rates[0] / (n * rates[1]),
            roofline: steps.as_ref().map(|(many, one)| one.seconds() / many.seconds()),
            beyond_knee: steps.as_ref().map(|(many, _)| many.operations_s > many.weights_s),
            because: if batch == 1 { vec![e.source()] } else { vec![e.source(), one.source()] },
        });
    }
    list
}
