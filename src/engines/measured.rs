//! From what was heard of requests to the figures that people compare.

use super::client::Trip;
use super::workload::Limits;
use serde::{Deserialize, Serialize};

/// Mean, spread and percentiles (nearest rank) of a number of values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub std: f64,
    /// The median.
    pub median: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

/// What a client saw of one engine in one workload. Names are vLLM's; times in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Seconds from the first request that counts to the last thing heard of one.
    pub duration_s: f64,
    /// Requests with a whole answer.
    pub completed: u64,
    /// Requests without.
    pub failed: u64,
    /// Tokens of the prompts that were answered.
    pub input_tokens: u64,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Answers a second.
    pub request_throughput: f64,
    /// Tokens of answers a second.
    pub output_throughput: f64,
    /// Tokens of prompts and answers a second.
    pub total_throughput: f64,
    /// Answers a second that kept the workload's limits; none where it has none.
    pub goodput: Option<f64>,
    /// From sending a request to its first token.
    pub ttft_ms: Spread,
    /// (end − first token) / (tokens − 1), of answers of two tokens and more.
    pub tpot_ms: Spread,
    /// From each piece to the next.
    pub itl_ms: Spread,
    /// From sending a request to its last token.
    pub e2el_ms: Spread,
    /// How late requests were sent after they were due: the client's own fault.
    pub late_ms: Spread,
    /// Output tokens a second in each of ten equal parts of the time: drift.
    #[serde(default)]
    pub over_time: Vec<f64>,
    /// Tokens of a piece, in the mean.
    pub piece_tokens: f64,
    /// What the engine and the hardware said meanwhile.
    #[serde(default)]
    pub meanwhile: Meanwhile,
}

/// What the engine and the hardware said while a cell ran; none of what nobody said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meanwhile {
    /// The most bytes that were in use on the device, all contexts counted (NVML), or of the process (a processor).
    pub peak_bytes: Option<u64>,
    /// The bytes in the mean.
    pub sustained_bytes: Option<u64>,
    /// The most of the cache's pages that were in use, as a share.
    pub pages_used: Option<f64>,
    /// Live tokens as a share of what the pages in use hold, in the mean.
    pub live_share: Option<f64>,
    /// Tokens of prompts that the cache held already, as a share of all.
    pub prefix_hits: Option<f64>,
    /// Passes over the model.
    pub steps: Option<u64>,
    /// Launches a step.
    pub launches_a_step: Option<f64>,
    /// Host microseconds a step, waiting for the device left out.
    pub host_us_a_step: Option<f64>,
    /// Bytes to the device a step.
    pub to_device_a_step: Option<f64>,
    /// Bytes to the host a step.
    pub to_host_a_step: Option<f64>,
    /// Times that a request had to be computed again for want of room.
    pub preempted: Option<u64>,
    /// Share of the time in which the GPU did anything (NVML), in the mean.
    pub busy: Option<f64>,
    /// Share of the time that the bytes and operations of the work need at the device's ceilings.
    pub roofline: Option<f64>,
    /// SM clock in MHz, in the mean.
    pub sm_mhz: Option<f64>,
    /// Watts in the mean.
    pub power_w: Option<f64>,
    /// Degrees Celsius at most.
    pub temp_c: Option<f64>,
    /// Joules a token of an answer.
    pub joules_a_token: Option<f64>,
    /// Cores of the host that the engine's processes kept busy, in the mean.
    pub host_cores: Option<f64>,
    /// The most bytes of the host's memory that the engine's processes had.
    pub host_bytes: Option<u64>,
}

impl Spread {
    /// Of values in any order; all zero of none.
    pub fn of(mut values: Vec<f64>) -> Spread {
        if values.is_empty() {
            return Spread::default();
        }
        values.sort_by(f64::total_cmp);
        let n = values.len() as f64;
        let rank = |share: f64| values[((share * n).ceil() as usize).clamp(1, values.len()) - 1];
        let mean = values.iter().sum::<f64>() / n;
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
        let max = values[values.len() - 1];
        Spread { count: values.len() as u64, mean, std, median: rank(0.5), p90: rank(0.9), p99: rank(0.99), max }
    }
}

impl Measured {
    /// Of the trips of a cell; those of the warm-up are passed over.
    pub fn of(trips: &[Trip], limits: &Limits) -> Measured {
        let _ = (trips, limits);
        todo!("helper: client")
    }
}
