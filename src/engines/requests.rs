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

#[cfg(test)]
mod tests {
    use super::{BadRequest, Of, Request, vllm};
    use crate::engines::Trip;
    use crate::engines::measured::Measured;
    use crate::engines::measured::tests::trip;
    use crate::engines::random::Random;
    use crate::engines::workload::Limits;
    use serde_json::json;
    use std::time::Duration;

    /// Requests with every field in use, at moments of any nanosecond.
    fn many() -> Vec<Trip> {
        let mut random = Random::new(3);
        let mut now = 0;
        let mut later = || {
            now += random.below(30_000_000) + 1000;
            Duration::from_nanos(now)
        };
        let one = |id: u64| {
            let (due, sent) = (later(), later());
            let pieces: Vec<_> = (0..5).map(|n| (later(), if id.is_multiple_of(3) { n + 1 } else { 1 })).collect();
            let (turn, error) = (id.is_multiple_of(2).then_some((id, 1)), (id % 7 == 3).then(|| "lost".to_string()));
            let end = (id % 7 != 3).then(&mut later);
            Trip { id, turn, warm: id < 2, due, sent, prompt: 9, asked: 5, pieces, ids: Vec::new(), end, error }
        };
        (0..200).map(one).collect()
    }

    fn cell() -> Of {
        Of { engine: "e".into(), dtype: "f32".into(), workload: "chat".into(), round: 1 }
    }

    /// A report that is made again of a run's lines has the figures of the first.
    #[test]
    fn read_back() {
        let trips = many();
        let written: Vec<String> =
            trips.iter().map(|t| serde_json::to_string(&Request::of(&cell(), t)).unwrap()).collect();
        let again: Vec<Trip> =
            written.iter().map(|w| serde_json::from_str::<Request>(w).unwrap().trip().unwrap()).collect();
        let near = |a: Duration, b: Duration| a.abs_diff(b) <= Duration::from_nanos(500);
        for (trip, again) in trips.iter().zip(&again) {
            assert!(near(trip.due, again.due) && near(trip.sent, again.sent));
            assert!(trip.end.zip(again.end).is_none_or(|(a, b)| near(a, b)));
            assert!(trip.pieces.iter().zip(&again.pieces).all(|(a, b)| near(a.0, b.0) && a.1 == b.1));
            let rounded =
                Trip { due: again.due, sent: again.sent, end: again.end, pieces: again.pieces.clone(), ..trip.clone() };
            assert_eq!((&rounded, trip.end.is_some()), (again, again.end.is_some()));
        }
        let limits = Limits { ttft_ms: Some(30.0), tpot_ms: Some(20.0), e2el_ms: None };
        let (first, second) = (Measured::of(&trips, &limits), Measured::of(&again, &limits));
        assert_eq!(
            (first.completed, first.failed, first.output_tokens),
            (second.completed, second.failed, second.output_tokens)
        );
        assert_eq!((first.goodput.is_some(), first.failed > 0), (true, true));
        for (a, b) in [
            (first.ttft_ms, second.ttft_ms),
            (first.tpot_ms, second.tpot_ms),
            (first.itl_ms, second.itl_ms),
            (first.e2el_ms, second.e2el_ms),
            (first.late_ms, second.late_ms),
        ] {
            let pairs = [
                (a.mean, b.mean),
                (a.std, b.std),
                (a.median, b.median),
                (a.p90, b.p90),
                (a.p99, b.p99),
                (a.max, b.max),
            ];
            assert!(pairs.iter().all(|(a, b)| (a - b).abs() <= 1.1e-3), "{a:?} {b:?}");
        }
        // Written again it is the same to the last digit.
        let twice: Vec<String> =
            again.iter().map(|t| serde_json::to_string(&Request::of(&cell(), t)).unwrap()).collect();
        assert_eq!(written, twice);
    }

    #[test]
    fn single_tokens_need_no_list() {
        let request = Request::of(&cell(), &trip(0, 1, &[(4, 1), (9, 1)]));
        assert_eq!((request.pieces, request.at_s), (None, vec![0.004, 0.009]));
        assert_eq!(Request::of(&cell(), &trip(0, 1, &[(4, 1), (9, 2)])).pieces, Some(vec![1, 2]));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let good = Request::of(&cell(), &trip(0, 1, &[(4, 1), (9, 1)]));
        assert!(good.trip().is_ok());
        let short = Request { pieces: Some(vec![1]), id: 8, ..good.clone() };
        assert_eq!(short.trip(), Err(BadRequest { id: 8, why: "at_s and pieces differ in length" }));
        for time in [-1.0, f64::NAN, f64::INFINITY, 1e30] {
            assert!(Request { sent_s: time, ..good.clone() }.trip().is_err());
            assert!(Request { at_s: vec![0.1, time], ..good.clone() }.trip().is_err());
            assert!(Request { end_s: Some(time), ..good.clone() }.trip().is_err());
        }
    }

    /// The keys that readers of vLLM's results look for, with its units.
    #[test]
    fn keys_of_vllm() {
        let mut lost = trip(0, 1500, &[(1600, 1)]);
        lost.error = Some("lost".into());
        let warm = Trip { warm: true, ..trip(0, 0, &[(900, 50)]) };
        let trips = [warm, trip(1000, 1000, &[(1100, 1), (1150, 2), (1495, 1)]), lost];
        let found = vllm(&Measured::of(&trips, &Limits::default()), &trips);
        for name in ["ttft", "tpot", "itl", "e2el"] {
            for figure in ["mean", "median", "std", "p99"] {
                assert!(found[format!("{figure}_{name}_ms")].is_number(), "{figure} {name}");
            }
        }
        for (key, right) in [
            ("duration", json!(0.605)),
            ("num_prompts", json!(2)),
            ("completed", json!(1)),
            ("failed", json!(1)),
            ("total_input_tokens", json!(10)),
            ("total_output_tokens", json!(4)),
            ("request_goodput", json!(null)),
            ("request_throughput", json!(1.0 / 0.605)),
            ("output_throughput", json!(4.0 / 0.605)),
            ("total_token_throughput", json!(14.0 / 0.605)),
            ("mean_e2el_ms", json!(495.0)),
            ("input_lens", json!([10, 10])),
            ("output_lens", json!([4, 0])),
            ("ttfts", json!([0.1, 0.1])),
            ("itls", json!([[0.05, 0.345], []])),
            ("start_times", json!([1.0, 1.5])),
            ("errors", json!(["", "lost"])),
        ] {
            assert_eq!(found[key], right, "{key}");
        }
    }
}
