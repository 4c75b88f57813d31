//! How the time of a run is divided among its problems.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, events, of_kind, text};

/// Each candidate sleeps, so that trying one takes about as long on any machine: half a second, and four finalists more than two. All of a problem's take half of the budget of four.
const DESCRIPTION: &str = r#"name = "cpu_silu_mul"
target = "cpu"
op = "silu_mul"
summary = "sleeps"
when = "dtype == 'f32'"
[tunables]
which = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
[derive]
count = "rows * cols"
simd = "max(dev.simd, 16)"
[cost]
us = "which"
[defines]
simd = "simd"
[[launch]]
entry = "cpu_silu_mul"
grid = ["1", "1", "1"]
block = "1"
args = [{ tensor = "x" }, { tensor = "y" }, { i64 = "count" }]
"#;

const CODE: &str = r#"#include "base.h"
extern int usleep(unsigned);
/* so that no two candidates are one: WHICH */
void cpu_silu_mul(const jt_arg *args, long task, long tasks) {
  const float *x = args[0].p;
  float *y = args[1].p;
  usleep(10000);
  for (long i = 0; i < args[2].i; i++) y[i] = x[2 * i] / (1.0f + __builtin_expf(-x[2 * i])) * x[2 * i + 1];
}
"#;

/// Timing the finalists and verifying the winner is part of what a problem takes, so that the last have their share as well.
#[test]
fn a_budget_that_is_short_for_all_candidates_is_enough_for_all_problems() {
    let place = Place::new();
    place.file("templates/cpu_silu_mul.toml", DESCRIPTION);
    place.file("templates/cpu_silu_mul.c", CODE);
    let problems = [61, 62, 63, 64].map(|rows| format!("silu_mul rows={rows} cols=32 dtype=f32"));
    let problems: Vec<&str> = problems.iter().flat_map(|p| ["--problem", p]).collect();
    let args = ["tune", "--json", "--nominal-ceilings", "--target", "cpu", "--threads", "1", "--db", "db"];
    let more = ["--templates", "templates", "--near-roofline", "0", "--budget", "20"];
    let out = place.jitune(&[&args[..], &problems, &more].concat()).output().unwrap();
    let list = events(&out.stdout);
    let won = of_kind(&list, "won");
    assert_eq!((out.status.code(), won.len()), (Some(0), problems.len() / 2), "{}", text(&out));
    // All of them together would take twice as long.
    assert!(won.iter().any(|w| w["winner"]["evidence"]["cut_off"] == true), "{}", text(&out));
}
