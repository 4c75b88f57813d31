//! Requests as they are written in a run's lines.

use super::client::Trip;
use super::rows::{Of, Request};
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

#[cfg(test)]
mod tests {
    use super::{BadRequest, Of, Request};
    use crate::engines::Trip;
    use crate::engines::measured::Measured;
    use crate::engines::measured::tests::trip;
    use crate::engines::random::Random;
    use crate::engines::workload::Limits;
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
}
