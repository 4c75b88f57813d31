//! The client on a queue whose answer is known: Poisson arrivals, one server, always the same time (M/D/1).

use super::{Simulated, end, open, run, tokens};
use crate::engines::measured::Measured;
use crate::engines::workload::Limits;
use jitune_peer::engine::Finish;
use std::time::Duration;

/// Time of the server.
const SERVICE: Duration = Duration::from_millis(10);
/// A queue's requests, in this many cells.
const CELLS: u64 = 4;
const REQUESTS: usize = 2_000_000;

/// P(waiting ≤ t) by Erlang's formula, time in services. Its terms alternate: up to t = 20 they are below 1e9, so that seven digits stay.
fn waited(rho: f64, t: f64) -> f64 {
    let mut sum = 0.0;
    let mut log_factorial = 0.0;
    for k in 0..=t.floor() as i32 {
        if k > 0 {
            log_factorial += f64::from(k).ln();
        }
        let x = rho * (t - f64::from(k));
        let size = if k == 0 { x.exp() } else { (x + f64::from(k) * x.ln() - log_factorial).exp() };
        sum += if k % 2 == 0 { size } else { -size };
    }
    (1.0 - rho) * sum
}

/// The time in the system (waiting and service) that a share of requests does not exceed, in services.
fn sojourn(rho: f64, share: f64) -> f64 {
    let (mut low, mut high) = (0.0, 20.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if waited(rho, middle) < share { low = middle } else { high = middle }
    }
    1.0 + high
}

/// The formula has the mean that is known otherwise: rho / (2 (1 − rho)).
#[test]
fn the_known_answer_agrees_with_itself() {
    for rho in [0.5, 0.8] {
        const STEP: f64 = 1e-3;
        let mean: f64 = (0..20_000).map(|i| (1.0 - waited(rho, (f64::from(i) + 0.5) * STEP)) * STEP).sum();
        let right = rho / (2.0 * (1.0 - rho));
        assert!((mean / right - 1.0).abs() < 2e-3, "rho {rho}: {mean} for {right}");
    }
}

fn md1(rho: f64) {
    let rate = rho / SERVICE.as_secs_f64();
    // Mean, median, 90th and 99th percentile of the time in the system, in services; and the share of time that is busy.
    let mut found = [0.0; 5];
    for seed in 0..CELLS {
        let mut free = Duration::ZERO;
        let mut service = Simulated::new(|now, _| {
            free = free.max(now) + SERVICE;
            vec![(free, tokens(&[1])), (free, end(Finish::Length))]
        });
        let mut workload = open(rate, 1.0, REQUESTS / CELLS as usize);
        workload.seed = seed;
        let outcome = run(&mut service, &workload);
        let measured = Measured::of(&outcome.trips, &Limits::default());
        assert_eq!((measured.completed, measured.failed), (workload.requests as u64, 0));
        assert_eq!(measured.late_ms.max, 0.0);
        let e2el = measured.e2el_ms;
        let service_ms = SERVICE.as_secs_f64() * 1e3;
        let busy = measured.request_throughput * SERVICE.as_secs_f64();
        let these = [e2el.mean, e2el.median, e2el.p90, e2el.p99].map(|ms| ms / service_ms);
        for (sum, this) in found.iter_mut().zip(these.into_iter().chain([busy])) {
            *sum += this / CELLS as f64;
        }
    }
    let [mean, median, p90, p99, busy] = found;
    for (what, found, right) in [
        ("mean waiting", mean - 1.0, rho / (2.0 * (1.0 - rho))),
        ("median", median, sojourn(rho, 0.5)),
        ("p90", p90, sojourn(rho, 0.9)),
        ("p99", p99, sojourn(rho, 0.99)),
        ("busy", busy, rho),
    ] {
        eprintln!("rho {rho}: {what} {found:.4} for {right:.4}");
        assert!((found / right - 1.0).abs() < 0.02, "rho {rho}: {what} is {found} services, {right} is right");
    }
}

#[test]
fn half_loaded() {
    md1(0.5);
}

#[test]
fn four_fifths_loaded() {
    md1(0.8);
}
