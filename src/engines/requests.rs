//! Requests as they are written in a run's lines, and as vLLM's benchmark writes them.

use super::client::Trip;
use super::measured::{Measured, Spread};
use super::rows::{Of, Request};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Why a line is not a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("request {id}: {why}; take the run as it was written")]
pub struct BadRequest {
    /// Its number.
    pub id: u64,
    /// Why.
    pub why: &'static str,
}

impl Request {
    /// A request of a cell, with times rounded to microseconds. The answer's ids are left.
    pub fn of(of: &Of, trip: &Trip) -> Request {
        let single = trip.pieces.iter().all(|(_, tokens)| *tokens == 1);
        Request {
            of: of.clone(),
            id: trip.id,
            turn: trip.turn,
            warm: trip.warm,
            due_s: seconds(trip.due),
            sent_s: seconds(trip.sent),
            prompt: trip.prompt,
            asked: trip.asked,
            at_s: trip.pieces.iter().map(|(at, _)| seconds(*at)).collect(),
            pieces: (!single).then(|| trip.pieces.iter().map(|(_, tokens)| *tokens).collect()),
            end_s: trip.end.map(seconds),
            error: trip.error.clone(),
        }
    }

    /// What was heard of it, to the microsecond.
    pub fn trip(&self) -> Result<Trip, BadRequest> {
        let wrong = |why| BadRequest { id: self.id, why };
        let time = |s: f64| {
            let micros = (s * 1e6).round();
            // Beyond 2^53 µs, some 285 years, it was no time of a run.
            (0.0..=9e15)
                .contains(&micros)
                .then(|| Duration::from_micros(micros as u64))
                .ok_or(wrong("a time is not one"))
        };
        let tokens = match &self.pieces {
            Some(tokens) if tokens.len() != self.at_s.len() => return Err(wrong("at_s and pieces differ in length")),
            Some(tokens) => tokens.clone(),
            None => vec![1; self.at_s.len()],
        };
        let pieces =
            self.at_s.iter().zip(tokens).map(|(at, tokens)| Ok((time(*at)?, tokens))).collect::<Result<_, _>>()?;
        Ok(Trip {
            id: self.id,
            turn: self.turn,
            warm: self.warm,
            due: time(self.due_s)?,
            sent: time(self.sent_s)?,
            prompt: self.prompt,
            asked: self.asked,
            pieces,
            ids: Vec::new(),
            end: self.end_s.map(time).transpose()?,
            error: self.error.clone(),
        })
    }
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e6
}

/// A cell as `vllm bench serve --save-result --save-detailed` writes one: the keys that its readers look for, with times in milliseconds in the
/// figures and in seconds in the lists, one entry a request. Medians and percentiles are by nearest rank, where vLLM's lie between two values.
pub fn vllm(measured: &Measured, trips: &[Trip]) -> Value {
    let counted: Vec<&Trip> = trips.iter().filter(|trip| !trip.warm).collect();
    let of = |entry: &dyn Fn(&Trip) -> Value| Value::Array(counted.iter().map(|trip| entry(trip)).collect());
    let whole = |trip: &Trip| if trip.is_whole() { trip.tokens() } else { 0 };
    let mut all = Map::new();
    let mut put = |key: String, value: Value| all.insert(key, value);
    put("duration".into(), json!(measured.duration_s));
    put("num_prompts".into(), json!(counted.len()));
    put("completed".into(), json!(measured.completed));
    put("failed".into(), json!(measured.failed));
    put("total_input_tokens".into(), json!(measured.input_tokens));
    put("total_output_tokens".into(), json!(measured.output_tokens));
    put("request_throughput".into(), json!(measured.request_throughput));
    put("request_goodput".into(), json!(measured.goodput));
    put("output_throughput".into(), json!(measured.output_throughput));
    put("total_token_throughput".into(), json!(measured.total_throughput));
    let Measured { ttft_ms, tpot_ms, itl_ms, e2el_ms, .. } = measured;
    for (name, Spread { mean, median, std, p99, .. }) in
        [("ttft", ttft_ms), ("tpot", tpot_ms), ("itl", itl_ms), ("e2el", e2el_ms)]
    {
        for (figure, value) in [("mean", mean), ("median", median), ("std", std), ("p99", p99)] {
            put(format!("{figure}_{name}_ms"), json!(value));
        }
    }
    put("input_lens".into(), of(&|trip| json!(trip.prompt)));
    put("output_lens".into(), of(&|trip| json!(whole(trip))));
    put("ttfts".into(), of(&|trip| json!(trip.ttft_ms().unwrap_or(0.0) / 1e3)));
    put("itls".into(), of(&|trip| trip.gaps_ms().map(|gap| json!(gap / 1e3)).collect()));
    put("start_times".into(), of(&|trip| json!(trip.sent.as_secs_f64())));
    put("errors".into(), of(&|trip| json!(trip.error.as_deref().unwrap_or_default())));
    Value::Object(all)
}
