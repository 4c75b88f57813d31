//! When requests are made.

use super::{Simulated, VOCAB, answer, closed, ms, open, run, s};
use crate::engines::client::{Outcome, Progress, drive};
use crate::engines::measured::Measured;
use crate::engines::rows::State;
use crate::engines::workload::{Arrivals, Length, Limits, Workload};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

fn measured(outcome: &Outcome) -> Measured {
    assert_eq!((outcome.state, &outcome.why), (State::Ok, &None));
    Measured::of(&outcome.trips, &Limits::default())
}

/// Each request takes 3 × 250 ms beyond its first token after 250 ms: C clients get C answers a second.
#[test]
fn as_many_answers_as_clients_ask() {
    for clients in [1, 3, 32] {
        let mut most = 0;
        let mut service = Simulated::new(|now, r| answer(now, r.most, ms(250), ms(250)));
        let outcome = run(&mut service, &closed(clients, clients * 20));
        let found = measured(&outcome);
        for trip in &outcome.trips {
            let at_a_time = outcome.trips.iter().filter(|o| o.sent <= trip.sent && o.end.unwrap() > trip.sent).count();
            most = most.max(at_a_time);
        }
        assert_eq!(most, clients);
        assert!((found.request_throughput / clients as f64 - 1.0).abs() < 1e-9, "{found:?}");
        assert_eq!((found.ttft_ms.mean, found.tpot_ms.mean, found.e2el_ms.max), (250.0, 250.0, 1000.0));
        assert_eq!(found.completed, clients as u64 * 20);
    }
}

/// After the time no request is made, and those on their way are waited for.
#[test]
fn the_time_is_over() {
    let mut service = Simulated::new(|now, r| answer(now, r.most, ms(700), ms(100)));
    let workload = Workload { seconds: 5.5, ..closed(2, 1_000_000) };
    let outcome = run(&mut service, &workload);
    assert_eq!(outcome.trips.len(), 12);
    assert_eq!(measured(&outcome).completed, 12);
    assert_eq!(outcome.trips.iter().filter_map(|t| t.end).max(), Some(s(6.0)));
}

/// The variance of gaps of a gamma distribution is 1 / (burstiness · rate²), as vLLM's load has it.
#[test]
fn bursts() {
    const RATE: f64 = 20.0;
    for burstiness in [0.25, 1.0, 4.0] {
        let mut service = Simulated::new(|now, r| answer(now, r.most, ms(1), ms(0)));
        let trips = run(&mut service, &open(RATE, burstiness, 100_000)).trips;
        let gaps: Vec<f64> = trips.windows(2).map(|w| (w[1].due - w[0].due).as_secs_f64()).collect();
        let n = gaps.len() as f64;
        let mean = gaps.iter().sum::<f64>() / n;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / n;
        let with_next = gaps.windows(2).map(|w| (w[0] - mean) * (w[1] - mean)).sum::<f64>() / n / variance;
        assert!((mean * RATE - 1.0).abs() < 0.02, "{burstiness}: mean {mean}");
        assert!((variance * RATE * RATE * burstiness - 1.0).abs() < 0.05, "{burstiness}: variance {variance}");
        assert!(with_next.abs() < 0.02, "{burstiness}: each gap says something of the next: {with_next}");
    }
}

/// A bound makes requests late, not rarer; and what they wait at the client is in none of the engine's times.
#[test]
fn lateness_is_the_clients() {
    let dues = |most: Option<usize>| {
        let mut service = Simulated::new(|now, r| answer(now, r.most, ms(10), ms(5)));
        let arrivals = Arrivals::Open { rate: 150.0, burstiness: 1.0, most };
        let workload = Workload { answer: Length::Fixed(3), arrivals, ..open(1.0, 1.0, 2000) };
        let outcome = run(&mut service, &workload);
        (outcome.trips.iter().map(|t| t.due).collect::<Vec<_>>(), measured(&outcome))
    };
    let (free, without) = dues(None);
    let (bound, with) = dues(Some(1));
    assert_eq!(free, bound);
    assert_eq!(without.late_ms.max, 0.0);
    // 20 ms a request one at a time are 50 a second, and three times as many are due.
    assert!(with.late_ms.max > 10_000.0, "{:?}", with.late_ms);
    assert!((with.request_throughput - 50.0).abs() < 0.1, "{}", with.request_throughput);
    for found in [with, without] {
        assert_eq!((found.ttft_ms.max, found.tpot_ms.max, found.e2el_ms.max), (10.0, 5.0, 20.0));
    }
}

/// All of the warm-up has ended before the first request that counts, and nothing of it is in a figure.
#[test]
fn the_warm_up_does_not_count() {
    let mut asked = 0;
    let mut service = Simulated::new(|now, r| {
        asked += 1;
        answer(now, r.most, if asked <= 5 { s(9.0) } else { ms(10) }, ms(10))
    });
    let workload = Workload { warm: 5, seconds: 10.0, ..closed(2, 100) };
    let outcome = run(&mut service, &workload);
    let (warm, counted): (Vec<_>, Vec<_>) = outcome.trips.iter().partition(|t| t.warm);
    assert_eq!((warm.len(), counted.len()), (5, 100));
    assert!(warm.iter().filter_map(|t| t.end).max() <= counted.iter().map(|t| t.sent).min());
    let found = measured(&outcome);
    assert_eq!((found.completed, found.ttft_ms.max), (100, 10.0));
    assert!((found.duration_s - 50.0 * 0.04).abs() < 1e-9, "{}", found.duration_s);
}

/// A trace is asked at its moments, with its lengths.
#[test]
fn a_trace() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.jsonl");
    let row = |at, i, o| format!("{{\"timestamp_ms\": {at}, \"input_length\": {i}, \"output_length\": {o}}}\n");
    std::fs::write(&file, [row(5000, 9, 2), row(5750, 40, 3), row(5100, 7, 1)].concat()).unwrap();
    let workload = Workload::parse(&format!("trace:file={}", file.display()), false, 4096).unwrap();
    let mut service = Simulated::new(|now, r| answer(now, r.most, s(2.0), ms(1)));
    let outcome = run(&mut service, &workload);
    measured(&outcome);
    let found: Vec<_> = outcome.trips.iter().map(|t| (t.sent, t.prompt, t.tokens())).collect();
    assert_eq!(found, [(ms(0), 9, 2), (ms(100), 7, 1), (ms(750), 40, 3)]);
}

/// Progress is told while a request is waited for, and at last says all.
#[test]
fn progress() {
    let mut service = Simulated::new(|now, r| answer(now, r.most, s(2.0), s(1.0)));
    let mut told: Vec<Progress> = Vec::new();
    let workload = Workload { warm: 1, ..closed(1, 2) };
    drive(&mut service, &workload, VOCAB, &AtomicBool::new(false), &mut |p| told.push(*p)).unwrap();
    assert!(told.windows(2).all(|w| w[1].at >= w[0].at && w[1].at - w[0].at <= Duration::from_millis(200)), "{told:?}");
    assert!(told.first().unwrap().warm);
    let last = Progress { at: s(15.0), warm: false, sent: 3, ended: 3, failed: 0, tokens: 12 };
    assert_eq!(told.last(), Some(&last));
}
