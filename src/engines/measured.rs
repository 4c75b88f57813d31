//! From what was heard of requests to the figures that people compare.

use super::client::Trip;
use super::workload::Limits;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Parts of the time in which throughput is told apart.
const PARTS: usize = 10;

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
        let counted = || trips.iter().filter(|trip| !trip.warm);
        let whole = || counted().filter(|trip| trip.is_whole());
        let begin = counted().map(|trip| trip.sent).min().unwrap_or_default();
        let end = counted().filter_map(Trip::last_heard).max().unwrap_or(begin);
        let duration_s = end.saturating_sub(begin).as_secs_f64();
        let a_second = |count: f64| if duration_s > 0.0 { count / duration_s } else { 0.0 };
        let completed = whole().count() as u64;
        let input_tokens = whole().map(|trip| trip.prompt as u64).sum();
        let output_tokens: u64 = whole().map(|trip| trip.tokens() as u64).sum();
        let pieces: usize = whole().map(|trip| trip.pieces.len()).sum();
        let good = whole().filter(|trip| limits.kept(trip)).count();
        Measured {
            duration_s,
            completed,
            failed: counted().count() as u64 - completed,
            input_tokens,
            output_tokens,
            request_throughput: a_second(completed as f64),
            output_throughput: a_second(output_tokens as f64),
            total_throughput: a_second((input_tokens + output_tokens) as f64),
            goodput: (!limits.is_empty()).then(|| a_second(good as f64)),
            ttft_ms: Spread::of(whole().filter_map(Trip::ttft_ms).collect()),
            tpot_ms: Spread::of(whole().filter_map(Trip::tpot_ms).collect()),
            itl_ms: Spread::of(whole().flat_map(Trip::gaps_ms).collect()),
            e2el_ms: Spread::of(whole().filter_map(Trip::e2el_ms).collect()),
            late_ms: Spread::of(counted().map(|trip| ms(trip.sent.saturating_sub(trip.due))).collect()),
            over_time: over_time(whole(), begin, duration_s),
            piece_tokens: if pieces > 0 { output_tokens as f64 / pieces as f64 } else { 0.0 },
            meanwhile: Meanwhile::default(),
        }
    }
}

/// Tokens a second in each part of the time; none where there was no time.
fn over_time<'a>(trips: impl Iterator<Item = &'a Trip>, begin: Duration, duration_s: f64) -> Vec<f64> {
    if duration_s <= 0.0 {
        return Vec::new();
    }
    let part_s = duration_s / PARTS as f64;
    let mut parts = vec![0.0; PARTS];
    for (at, tokens) in trips.flat_map(|trip| &trip.pieces) {
        let part = (at.saturating_sub(begin).as_secs_f64() / part_s) as usize;
        parts[part.min(PARTS - 1)] += f64::from(*tokens) / part_s;
    }
    parts
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Trip {
    /// When the last thing was heard.
    fn last_heard(&self) -> Option<Duration> {
        self.end.max(self.pieces.last().map(|(at, _)| *at))
    }

    /// From being sent to a piece.
    fn since_sent(&self, piece: Option<&(Duration, u32)>) -> Option<f64> {
        piece.map(|(at, _)| ms(at.saturating_sub(self.sent)))
    }

    /// From being sent to the first token, in milliseconds.
    pub fn ttft_ms(&self) -> Option<f64> {
        self.since_sent(self.pieces.first())
    }

    /// From being sent to the last token, in milliseconds.
    pub fn e2el_ms(&self) -> Option<f64> {
        self.since_sent(self.pieces.last())
    }

    /// (end − first token) / (tokens − 1), in milliseconds; none of answers of one token.
    pub fn tpot_ms(&self) -> Option<f64> {
        let tokens = self.tokens();
        (tokens > 1).then(|| Some((self.e2el_ms()? - self.ttft_ms()?) / (tokens - 1) as f64)).flatten()
    }

    /// From each piece to the next, in milliseconds.
    pub fn gaps_ms(&self) -> impl Iterator<Item = f64> {
        self.pieces.iter().zip(self.pieces.iter().skip(1)).map(|((before, _), (at, _))| ms(at.saturating_sub(*before)))
    }
}

impl Limits {
    /// Whether an answer keeps to all of them. An answer of one token has no time a token.
    pub fn kept(&self, trip: &Trip) -> bool {
        let within = |limit: Option<f64>, found: Option<f64>| limit.is_none_or(|limit| found.unwrap_or(0.0) <= limit);
        within(self.ttft_ms, trip.ttft_ms())
            && within(self.tpot_ms, trip.tpot_ms())
            && within(self.e2el_ms, trip.e2el_ms())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Limits, Measured, Spread};
    use crate::engines::Trip;
    use std::time::Duration;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A request that was due, sent, and had these tokens at these moments (ms).
    pub fn trip(due: u64, sent: u64, pieces: &[(u64, u32)]) -> Trip {
        let pieces: Vec<_> = pieces.iter().map(|(ms, tokens)| (at(*ms), *tokens)).collect();
        let asked = pieces.iter().map(|(_, n)| *n as usize).sum();
        // The end is heard after the last token, and is in no figure but the duration.
        let end = pieces.last().map(|(at, _)| *at + Duration::from_millis(5));
        Trip { due: at(due), sent: at(sent), prompt: 10, asked, pieces, end, ..Trip::default() }
    }

    #[test]
    fn percentiles_are_values_by_rank() {
        let spread = Spread::of((1..=10).rev().map(f64::from).collect());
        assert_eq!((spread.median, spread.p90, spread.p99, spread.max), (5.0, 9.0, 10.0, 10.0));
        assert_eq!((spread.mean, spread.count), (5.5, 10));
        assert!((spread.std - 8.25f64.sqrt()).abs() < 1e-12);
        assert_eq!(Spread::of(Vec::new()), Spread::default());
        let one = Spread::of(vec![3.0]);
        assert_eq!((one.median, one.p90, one.p99, one.std), (3.0, 3.0, 3.0, 0.0));
    }

    /// Worked by hand, from moments that are all different: a time from another moment is another number.
    #[test]
    fn figures_by_hand() {
        let mut failed = trip(0, 1100, &[(1250, 1)]);
        failed.error = Some("full".into());
        let mut open = trip(0, 1100, &[]);
        open.error = Some("stalled".into());
        let warm = Trip { warm: true, ..trip(0, 0, &[(900, 50)]) };
        let trips = [
            warm,
            trip(990, 1000, &[(1100, 1), (1120, 1), (1160, 1)]),
            trip(1000, 1050, &[(1090, 2), (1190, 4)]),
            trip(1060, 1060, &[(1995, 1)]),
            failed,
            open,
        ];
        let limits = Limits { ttft_ms: Some(100.0), tpot_ms: Some(25.0), e2el_ms: None };
        let found = Measured::of(&trips, &limits);
        assert_eq!((found.completed, found.failed, found.input_tokens, found.output_tokens), (3, 2, 30, 10));
        assert_eq!(found.duration_s, 1.0);
        assert_eq!((found.request_throughput, found.output_throughput, found.total_throughput), (3.0, 10.0, 40.0));
        let Measured { ttft_ms, tpot_ms, itl_ms, e2el_ms, late_ms, .. } = &found;
        assert_eq!((ttft_ms.median, ttft_ms.max, ttft_ms.count), (100.0, 935.0, 3));
        // 60 ms for two more tokens, 100 ms for five; the answer of one token has none.
        assert_eq!((tpot_ms.median, tpot_ms.max, tpot_ms.count), (20.0, 30.0, 2));
        assert_eq!((itl_ms.median, itl_ms.max, itl_ms.count), (40.0, 100.0, 3));
        assert_eq!((e2el_ms.median, e2el_ms.max), (160.0, 935.0));
        assert_eq!((late_ms.max, late_ms.count), (1100.0, 5));
        // The first misses the time a token, the third the first token's.
        assert_eq!(found.goodput, Some(1.0));
        assert_eq!(Measured::of(&trips, &Limits::default()).goodput, None);
        let longer = Limits { e2el_ms: Some(900.0), ..Limits::default() };
        assert_eq!(Measured::of(&trips, &longer).goodput, Some(2.0));
        assert_eq!(found.piece_tokens, 10.0 / 6.0);
        let close = |found: &[f64], right: &[f64]| found.iter().zip(right).all(|(a, b)| (a - b).abs() < 1e-9);
        assert!(
            close(&found.over_time, &[20.0, 70.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 10.0]),
            "{:?}",
            found.over_time
        );
        assert_eq!(found.over_time.len(), 10);
    }

    #[test]
    fn nothing_gives_zeros() {
        let found = Measured::of(&[], &Limits { ttft_ms: Some(1.0), ..Limits::default() });
        assert_eq!(found, Measured { goodput: Some(0.0), ..Measured::default() });
    }
}
