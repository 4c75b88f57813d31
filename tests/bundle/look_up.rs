//! The price of a look-up. Prints nanoseconds; `cargo test --release --test bundle look_up -- --nocapture` is the figure.

use crate::make::{COMPILED, problem};
use crate::production::runtime;
use jitune::problem::Problem;
use std::hint::black_box;
use std::time::Instant;

/// Far above what was seen on a busy machine; the aim is under 100 ns.
const MOST_NS: f64 = if cfg!(debug_assertions) { 2000.0 } else { 100.0 };

#[test]
fn an_exact_hit_is_far_below_a_launch() {
    let runtime = runtime();
    let exact: Vec<Problem> = COMPILED.iter().map(|(_, text)| problem(text)).collect();
    let bucket = vec![problem("matmul m=7 n=48 k=64 dtype=f32")];
    for (name, asked) in [("exact", &exact), ("resolved bucket", &bucket)] {
        // The best of several rounds: the machine may be busy, and a look-up has no reason to vary.
        let round = || {
            let start = Instant::now();
            let times = 100_000;
            for i in 0..times {
                black_box(runtime.lookup(black_box(&asked[i % asked.len()])).is_ok());
            }
            start.elapsed().as_secs_f64() * 1e9 / times as f64
        };
        let ns = (0..20).map(|_| round()).fold(f64::INFINITY, f64::min);
        println!("look-up, {name}: {ns:.1} ns");
        assert!(ns < MOST_NS, "{name}: {ns} ns");
    }
}
