//! Candidates that hang, crash or lie are planted among good ones, at the front, in the middle and at the end of the
//! order: the winner is the same as without them, each verdict has its right name, and the run goes on.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, events, of_kind, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

/// The good candidates by number and how often each does the work: number 2 is by far the fastest, also where a busy
/// machine adds some milliseconds to each.
const GOOD: [(usize, usize); 4] = [(0, 200), (1, 300), (2, 1), (3, 250)];

/// The winner is found by its time, so no two tests of this file measure at once.
static MACHINE: Mutex<()> = Mutex::new(());

/// A planted candidate: its number, what its code does instead, the verdict it must get, and a part of the evidence.
const PLANTED: [(usize, &str, &str, &str); 12] = [
    (10, "for (;;) __asm__ volatile(\"\");", "timeout", ""),
    (11, "*(volatile int *)0 = 1;", "worker_lost", "signal 11"),
    (12, "work(x, y, from, to); if (task == 0) y[1] += 1.0f;", "wrong", "error rms"),
    (13, "work(x, y, from, to); if (task == 0) y[count + 3] = 1.0f;", "wrong", "outside"),
    (14, "work(x, y, from, to); if (task == 0) y[-5] = 1.0f;", "wrong", "outside"),
    (15, "work(x, y, from, task == tasks - 1 ? to - 100 : to);", "wrong", "100 elements not written"),
    (16, "#error planted", "compile_error", "planted"),
    (17, "work(x, y, from, to); ((float *)x)[2 * from] += 0.5f;", "worker_lost", "signal 11"),
    (18, "extern void abort(void); abort();", "worker_lost", "signal 6"),
    (19, "extern void _exit(int); _exit(0);", "worker_lost", "exit code 0"),
    (20, "static int runs; work(x, y, from, runs++ >= tasks ? from : to);", "wrong", "not written"),
    (21, "extern int nowhere(void); y[0] = (float)nowhere();", "rejected", "undefined symbol: nowhere"),
];

/// A template in the place of the built-in one, whose candidates are tried in this order.
fn template(place: &Place, order: &[usize]) {
    let mut costs = vec!["0".to_string(); 32];
    for (position, number) in order.iter().enumerate() {
        costs[*number] = (position + 1).to_string();
    }
    let numbers: Vec<String> = order.iter().map(ToString::to_string).collect();
    let description = format!(
        r#"name = "cpu_silu_mul"
target = "cpu"
op = "silu_mul"
summary = "candidates good and bad"
when = "dtype == 'f32'"
[tunables]
which = [{}]
[derive]
count = "rows * cols"
simd = "max(dev.simd, 16)"
[cost]
us = "[{}][which]"
[defines]
simd = "simd"
[[launch]]
entry = "cpu_silu_mul"
grid = ["8", "1", "1"]
block = "dev.cores"
args = [{{ tensor = "x" }}, {{ tensor = "y" }}, {{ i64 = "count" }}]
[reuse]
dynamic = ["rows"]
"#,
        numbers.join(", "),
        costs.join(", ")
    );
    let mut code = String::from(
        r#"#include "base.h"
static void work(const float *x, float *y, long from, long to) {
  for (long i = from; i < to; i++) y[i] = x[2 * i] / (1.0f + __builtin_expf(-x[2 * i])) * x[2 * i + 1];
}
void cpu_silu_mul(const jt_arg *args, long task, long tasks) {
  const float *x = args[0].p;
  float *y = args[1].p;
  long count = args[2].i, from = count * task / tasks, to = count * (task + 1) / tasks;
"#,
    );
    for (number, times) in GOOD {
        let work = format!(
            "for (int r = 0; r < {times}; r++) {{ work(x, y, from, to); __asm__ volatile(\"\" ::: \"memory\"); }}"
        );
        write!(code, "#if WHICH == {number}\n  {work}\n#endif\n").unwrap();
    }
    for (number, body, ..) in PLANTED {
        write!(code, "#if WHICH == {number}\n  {body}\n#endif\n").unwrap();
    }
    code.push_str("}\n");
    place.file("templates/cpu_silu_mul.toml", &description);
    place.file("templates/cpu_silu_mul.c", &code);
}

/// Tunes with the candidates in this order; gives the winner's config and the verdict of each candidate.
fn tune(order: &[usize]) -> (String, BTreeMap<usize, Value>) {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = Place::new();
    template(&place, order);
    let problem = "silu_mul rows=64 cols=512 dtype=f32";
    let mut args = vec!["tune", "--json", "--nominal-ceilings", "--target", "cpu", "--problem", problem, "--db", "db"];
    args.extend(["--templates", "templates", "--search", "exhaustive", "--trials", "32"]);
    // What is good is done in milliseconds, but the machine may be busy.
    args.extend(["--budget", "120", "--patience", "2"]);
    let out = place.jitune(&args).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    let list = events(&out.stdout);
    let number = |e: &Value| e["config"].as_str().unwrap().strip_prefix("which=").unwrap().parse::<usize>().unwrap();
    let trials = of_kind(&list, "trial");
    let seen: Vec<usize> = trials.iter().copied().map(number).collect();
    assert_eq!(seen.len(), order.len(), "each candidate is judged once: {seen:?}");
    let won = of_kind(&list, "won");
    assert_eq!(won.len(), 1);
    assert_eq!(place.alive(), [], "no process is left");

    // The journal says the same as the events, of each candidate.
    let journal = std::fs::read_to_string(place.path().join("db/journal.jsonl")).unwrap();
    for trial in trials {
        let verdict = trial["verdict"]["verdict"].as_str().unwrap();
        let sub = format!("\"which={}\"", number(trial));
        let line = journal.lines().find(|l| l.contains(&sub) && l.contains("\"trial\""));
        assert!(line.is_some_and(|l| l.contains(&format!("\"{verdict}\""))), "{sub} {verdict}: {line:?}");
    }
    let verdicts = of_kind(&list, "trial").into_iter().map(|e| (number(e), e["verdict"].clone())).collect();
    let winner = &won[0]["winner"];
    assert_eq!(winner["description"]["name"], "cpu_silu_mul");
    (winner["config"].as_str().unwrap().into(), verdicts)
}

fn good() -> Vec<usize> {
    GOOD.iter().map(|(number, _)| *number).collect()
}

fn planted() -> Vec<usize> {
    PLANTED.iter().map(|(number, ..)| *number).collect()
}

/// With the planted candidates in this order among the good ones the winner is the one that is good without them.
fn check(order: &[usize]) {
    let (winner, verdicts) = tune(order);
    assert_eq!(winner, "which=2", "{order:?}: {verdicts:#?}");
    for number in good() {
        assert_eq!(verdicts[&number]["verdict"], "measured", "{number} is good: {}", verdicts[&number]);
    }
    for (number, body, verdict, evidence) in PLANTED {
        let got = &verdicts[&number];
        assert_eq!(got["verdict"], verdict, "{number} ({body}): {got}");
        assert!(got.to_string().contains(evidence), "{number} ({body}): {got}");
    }
}

#[test]
fn without_any() {
    assert_eq!(tune(&good()).0, "which=2");
}

#[test]
fn at_the_front() {
    check(&[planted(), good()].concat());
}

#[test]
fn in_the_middle() {
    check(&[good()[..2].to_vec(), planted(), good()[2..].to_vec()].concat());
}

#[test]
fn at_the_end() {
    check(&[good(), planted()].concat());
}

/// The fastest good one stands directly behind each kind of bad one in some order; here they alternate.
#[test]
fn between_good_ones() {
    let mut order = Vec::new();
    for (i, number) in planted().into_iter().rev().enumerate() {
        order.push(number);
        order.extend(good().get(i));
    }
    check(&order);
}
