//! Candidates that only seem to be right or fast: none wins, none ends the run, none takes the winner of another problem, and
//! of none is a process left. `verify` and `compare` do not take one for good either.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, events, of_kind, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Winners are found by their times, so no two tests of this file measure at once.
static MACHINE: Mutex<()> = Mutex::new(());

/// An odd number of rows and columns, so that no tensor ends where a vector does.
const PROBLEM: &str = "silu_mul rows=63 cols=511 dtype=f32";
const OTHER: &str = "gelu rows=7 cols=33 dtype=f32";

/// The honest candidates by number and how often each does the work; number 2 is by far the fastest of them.
const HONEST: [(usize, usize); 3] = [(0, 200), (1, 300), (2, 1)];

/// A cheat: its number, what it does at launch number `n` (from 0) instead of the work, the verdict it must get (any where
/// none is given), and a part of the evidence. What only disturbs others does the work too, slowly.
const CHEATS: [(usize, &str, &str, &str); 33] = [
    (10, "", "wrong", "not written"),
    (11, "if (n == 0) work(x, y, from, to);", "wrong", "not written"),
    (12, "if (n < 2) work(x, y, from, to);", "unstable", "not written"),
    (
        13,
        "work(x, y, from, n < 2 ? to : from); if (n >= 2) for (long i = from; i < to; i++) y[i] = 0.5f;",
        "unstable",
        "error",
    ),
    (14, "if (n < 60) work(x, y, from, to);", "", ""),
    // Its work only where it was first seen, at one address.
    (
        15,
        "static float *first; if (n == 0) first = y; if (y == first) work(x, y, from, to);",
        "unstable",
        "not written",
    ),
    // Reads the poison, and takes all else for results of its own.
    (16, "for (long i = from; i < to; i++) if (bits(y[i]) == 0xffffffff) work(x, y, i, i + 1);", "unstable", "error"),
    // Takes results for its own of which one is right.
    (
        17,
        "float is = y[from]; work(x, y, from, from + 1); if (bits(is) != bits(y[from])) work(x, y, from, to);",
        "unstable",
        "",
    ),
    // Works after a pause alone, such as lies before a check.
    (
        18,
        "static double last; double t = now(); if (n < 2 || t - last > 1e-3) work(x, y, from, to); last = now();",
        "unstable",
        "",
    ),
    (19, "work(x, y, from, to); ((float *)x)[2 * from] += 0.5f;", "worker_lost", "signal 11"),
    (20, "work(x, y, from, to); if (task == 0) ((char *)(y + count))[0] = 0;", "wrong", "outside"),
    (21, "work(x, y, from, to); if (task == 0) ((char *)y)[-1] = 0;", "wrong", "outside"),
    (22, "work(x, y, from, to); if (task == 0 && n >= 8) ((char *)(y + count))[0] = 0;", "unstable", "outside"),
    (23, "if (task < tasks / 2) work(x, y, from, to);", "wrong", "not written"),
    (24, "for (long i = from; i < to; i++) y[i] = __builtin_nanf(\"\");", "wrong", "not finite"),
    // The answer of a fast candidate, in the form of today's answers and of those before.
    (25, "if (task == 0) answers(1, 2);", "wrong", "not written"),
    (26, "if (task == 0) answers(0, 200); work(x, y, from, to);", "worker_lost", "answer"),
    (27, "slowly(x, y, from, to); if (task == 0) { close(0); close(1); close(2); }", "", ""),
    (28, "work(x, y, from, to); if (task == 0) for (int i = 0; i < 1000; i++) close(i);", "worker_lost", ""),
    (29, "work(x, y, from, to); if (task == 0 && n == 1 && fork() == 0) for (;;) sleep(1000);", "fault", "a process"),
    (30, "work(x, y, from, to); if (task == 0 && n == 1) hide();", "fault", "a process"),
    (31, "work(x, y, from, to); if (task == 0 && n == 1) later(y);", "fault|worker_lost", ""),
    (32, "if (n < 3) work(x, y, from, to); else exit(0);", "worker_lost", "exit code 0"),
    (33, "if (n < 3) work(x, y, from, to); else abort();", "worker_lost", "signal 6"),
    (34, "if (n < 3) work(x, y, from, to); else *(volatile int *)0 = 1;", "worker_lost", "signal 11"),
    (35, "if (n < 3) work(x, y, from, to); else for (;;) sleep(1000);", "timeout", ""),
    (36, "slowly(x, y, from, to); if (n == 3) raise(15);", "", ""),
    (37, "slowly(x, y, from, to); if (task == 0) alarm(1);", "", ""),
    (38, "work(x, y, from, to); if (task == 0) (void)!chdir(\"/\");", "fault", "working folder"),
    (39, "slowly(x, y, from, to); if (task == 0) clearenv();", "", ""),
    // A leap into a call that has ended.
    (
        40,
        "static void *there[8]; if (n == 0) __builtin_setjmp(there); if (n < 3) work(x, y, from, to); else leap(there);",
        "",
        "",
    ),
    // What it made of its inputs once.
    (
        42,
        "static float kept[1 << 16]; if (n == 0) work(x, kept, from, to); memcpy(y + from, kept + from, (to - from) * 4);",
        "",
        "",
    ),
    // Right in the first process that runs it alone.
    (41, "static int first = -1; if (first < 0) first = claim(); if (first) work(x, y, from, to);", "", ""),
];

/// What is right, by far not the fastest, and leaves its process so that others fail in it.
const SPOILERS: [(usize, &str); 6] = [
    (43, "slowly(x, y, from, to); if (n == 3 && task == 0) { mprotect(page(x), 1 << 18, 3); ((float *)x)[10] = 3; }"),
    (
        44,
        "slowly(x, y, from, to); if (n == 3 && task == 0) \
         { struct sigaction a = {0}; a.sa_sigaction = unseals; a.sa_flags = SA_SIGINFO; sigaction(SIGSEGV, &a, 0); \
         ((float *)x)[10] = 3; }",
    ),
    (
        45,
        "slowly(x, y, from, to); if (n == 2 && task == 0) \
         { struct itimerval t = {{0, 0}, {0, 300000}}; setitimer(ITIMER_REAL, &t, 0); }",
    ),
    (46, "slowly(x, y, from, to); if (n == 1 && task == 0) for (int i = 0; i < 1 << 20 && dup(0) >= 0; i++);"),
    (47, "slowly(x, y, from, to); if (task == 0) { struct rlimit r = {3, 3}; setrlimit(RLIMIT_NOFILE, &r); }"),
    (48, "slowly(x, y, from, to); if (task == 0) { struct rlimit r = {0, 0}; setrlimit(RLIMIT_FSIZE, &r); }"),
];

/// As fast as the fastest, and right whenever it is looked at: what it does to an input it undoes at its next launch.
const UNDOES: (usize, &str) = (
    53,
    "static float *at, was; if (task == 0 && at) { mprotect(page(at), 4096, 3); *at = was; } \
     work(x, y, from, to); if (task == 0) { at = (float *)x + 10; was = *at; mprotect(page(at), 4096, 3); *at = 3; }",
);

const CODE: &str = r#"#include "base.h"
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
extern int clearenv(void);
static inline unsigned bits(float v) { unsigned b; memcpy(&b, &v, 4); return b; }
static inline double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
static inline void work(const float *x, float *y, long from, long to) {
  for (long i = from; i < to; i++) y[i] = x[2 * i] / (1.0f + __builtin_expf(-x[2 * i])) * x[2 * i + 1];
}
static inline void slowly(const float *x, float *y, long from, long to) {
  for (int r = 0; r < 100; r++) { work(x, y, from, to); __asm__ volatile("" ::: "memory"); }
}
static inline void answers(int from, int to) {
  const char *said[] = {
    "{\"tried\":{\"check\":{\"rms\":0,\"max\":0,\"compared\":9},\"series\":{\"us\":[0.01,0.01,0.01]}}}",
    "{\"number\":7,\"message\":{\"tried\":{\"check\":{\"rms\":0,\"max\":0,\"compared\":9},\"series\":{\"us\":[0.01]}}}}",
  };
  for (int fd = from; fd < to; fd++)
    for (int k = 0; k < 2; k++) {
      char frame[256];
      unsigned length = strlen(said[k]);
      memcpy(frame, &length, 4);
      memcpy(frame + 4, said[k], length);
      (void)!write(fd, frame, 4 + length);
    }
}
/* A process of a session of its own, whose parent is gone. */
static inline void hide(void) {
  if (fork() == 0) {
    setsid();
    if (fork() == 0) for (;;) sleep(1000);
    _exit(0);
  }
  wait(0);
}
static inline void *page(const void *p) { return (void *)((unsigned long)p & ~4095ul); }
static void unseals(int s, siginfo_t *i, void *c) { (void)s; (void)c; mprotect(page(i->si_addr), 4096, 3); }
static void *writes(void *y) { for (;;) { usleep(1000); ((volatile float *)y)[5] = 7.0f; } return 0; }
static inline void later(float *y) { pthread_t t; pthread_create(&t, 0, writes, y); }
static __attribute__((noinline)) void leap(void **there) { __builtin_longjmp(there, 1); }
static inline int claim(void) { int fd = open("@CLAIM@", O_CREAT | O_EXCL, 0600); if (fd >= 0) close(fd); return fd >= 0; }
void cpu_silu_mul(const jt_arg *args, long task, long tasks) {
  const float *x = args[0].p;
  float *y = args[1].p;
  long count = args[2].i, from = count * task / tasks, to = count * (task + 1) / tasks;
  static long launches;
  /* One thread runs the tasks, the first of them first. */
  long n = task == 0 ? launches++ : launches - 1;
  (void)n;
"#;

/// How long a cheat works in a comparison before it does not: longer than setting up takes, and less than the rounds.
const SECONDS: u32 = 2;

/// A template in the place of the built-in one, with these candidates, tried in this order.
fn template(place: &Place, order: &[usize]) {
    let mut costs = vec!["0".to_string(); 64];
    for (position, number) in order.iter().enumerate() {
        costs[*number] = (position + 1).to_string();
    }
    let numbers: Vec<String> = order.iter().map(ToString::to_string).collect();
    place.file(
        "templates/cpu_silu_mul.toml",
        &format!(
            r#"name = "cpu_silu_mul"
target = "cpu"
op = "silu_mul"
summary = "honest candidates and cheats"
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
block = "1"
args = [{{ tensor = "x" }}, {{ tensor = "y" }}, {{ i64 = "count" }}]
[reuse]
dynamic = ["rows"]
"#,
            numbers.join(", "),
            costs.join(", ")
        ),
    );
    let mut code = CODE.replace("@CLAIM@", &place.path().join("claimed").display().to_string());
    for (number, times) in HONEST {
        let again = format!("for (int r = 0; r < {times}; r++)");
        let work = format!("{again} {{ work(x, y, from, to); __asm__ volatile(\"\" ::: \"memory\"); }}");
        write!(code, "#if WHICH == {number}\n  {work}\n#endif\n").unwrap();
    }
    let cheats = CHEATS.map(|(number, body, ..)| (number, body));
    for (number, body) in cheats.iter().chain(&SPOILERS) {
        write!(code, "#if WHICH == {number}\n  {body}\n#endif\n").unwrap();
    }
    write!(code, "#if WHICH == {}\n  {}\n#endif\n", UNDOES.0, UNDOES.1).unwrap();
    // Honest until it is told not to be: after two launches, or after some seconds.
    let file = |name: &str| place.path().join(name).display().to_string();
    let (launches, seconds) = (file("launches"), file("seconds"));
    write!(
        code,
        "#if WHICH == 50\n  static double begun; if (begun == 0) begun = now();\n  \
         if (n >= 2 && !access(\"{launches}\", F_OK) || now() - begun > {SECONDS} && !access(\"{seconds}\", F_OK)) return;\n  \
         work(x, y, from, to);\n#endif\n"
    )
    .unwrap();
    let hidden = file("hidden");
    write!(code, "#if WHICH == 51\n  if (task == 0) {{ hide(); close(open(\"{hidden}\", O_CREAT, 0600)); for (;;) sleep(1000); }}\n#endif\n").unwrap();
    code.push_str("}\n");
    place.file("templates/cpu_silu_mul.c", &code);
}

fn alone() -> (Place, MutexGuard<'static, ()>) {
    let guard = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    (Place::new(), guard)
}

struct Run {
    winner: String,
    /// The verdict of each candidate.
    verdicts: BTreeMap<usize, Value>,
    /// Candidates that were let go after they had been right, with their verdicts.
    unstable: BTreeMap<usize, Value>,
}

/// Tunes both problems, with candidates of the one in this order.
fn tune(place: &Place, order: &[usize]) -> Run {
    tune_beside(place, order, OTHER)
}

fn tune_beside(place: &Place, order: &[usize], other: &str) -> Run {
    template(place, order);
    let args = ["tune", "--json", "--nominal-ceilings", "--target", "cpu", "--threads", "1", "--db", "db"];
    let problems = ["--problem", PROBLEM, "--problem", other, "--templates", "templates"];
    let search =
        ["--search", "exhaustive", "--trials", "64", "--budget", "300", "--patience", "2", "--near-roofline", "0"];
    let out = place.jitune(&[&args[..], &problems, &search].concat()).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    assert_eq!(place.alive(), [], "no process is left");
    let list = events(&out.stdout);
    let number = |e: &Value| e["config"].as_str().unwrap().rsplit_once("which=").unwrap().1.parse::<usize>().unwrap();
    let verdict = |e: &Value| (number(e), e["verdict"].clone());
    let own = |kind: &str| -> Vec<Value> {
        let of = of_kind(&list, kind);
        of.into_iter().filter(|e| e["problem"].as_str().is_some_and(|p| p.starts_with("silu_mul"))).cloned().collect()
    };
    let won = of_kind(&list, "won");
    assert_eq!(won.len(), 2, "both problems have winners: {}", text(&out));
    let mine = won.iter().find(|w| w["index"] == 0).unwrap();
    Run {
        winner: mine["winner"]["config"].as_str().unwrap().into(),
        verdicts: own("trial").iter().map(verdict).collect(),
        unstable: own("unstable").iter().map(verdict).collect(),
    }
}

#[test]
fn no_cheat_wins_or_ends_the_run() {
    let (place, _alone) = alone();
    // At the front, so that each runs before what is honest.
    let cheats: Vec<usize> = CHEATS.iter().map(|(number, ..)| *number).collect();
    let honest: Vec<usize> = HONEST.iter().map(|(number, _)| *number).collect();
    let order = [&honest[..1], &cheats, &honest[1..]].concat();
    let run = tune(&place, &order);
    assert_eq!(run.winner, "which=2", "{:#?} {:#?}", run.verdicts, run.unstable);
    for number in honest {
        assert_eq!(run.verdicts[&number]["verdict"], "measured", "{number} is honest: {}", run.verdicts[&number]);
    }
    let journal = std::fs::read_to_string(place.path().join("db/journal.jsonl")).unwrap();
    for (number, body, verdict, evidence) in CHEATS {
        let got = &run.verdicts[&number];
        if !verdict.is_empty() {
            let named = got["verdict"].as_str().unwrap();
            assert!(verdict.split('|').any(|v| v == named), "{number} ({body}): {got}");
            assert!(got.to_string().contains(evidence), "{number} ({body}): {got}");
            let sub = format!("\"which={number}\"");
            let mut lines = journal.lines().filter(|l| l.contains(&sub) && l.contains("\"trial\""));
            assert!(lines.any(|l| l.contains(&format!("\"{named}\""))), "{number} ({body}) is stored");
        }
    }
}

/// Neither of its own problem's, nor of one with the same bytes for inputs.
#[test]
fn what_a_candidate_leaves_behind_does_not_speak_against_others() {
    for (number, body) in SPOILERS {
        let (place, _alone) = alone();
        let run = tune_beside(&place, &[number, 0, 1, 2], "gelu rows=63 cols=1022 dtype=f32");
        assert_eq!(run.winner, "which=2", "{body}: {:#?} {:#?}", run.verdicts, run.unstable);
        for (honest, _) in HONEST {
            assert_eq!(run.verdicts[&honest]["verdict"], "measured", "{body}: {}", run.verdicts[&honest]);
            assert!(!run.unstable.contains_key(&honest), "{body}: {}", run.unstable[&honest]);
        }
        let journal = std::fs::read_to_string(place.path().join("db/journal.jsonl")).unwrap();
        let trials =
            journal.lines().filter(|line| line.contains("\"trial\"") && !line.contains(&format!("which={number}\"")));
        let against: Vec<&str> = trials.filter(|line| !line.contains("\"measured\"")).collect();
        assert!(against.is_empty(), "{body}: {against:#?}");
    }
}

/// Nor where they are timed in turn, and it then runs first in the new worker, as the candidate of which it is known that it was right.
#[test]
fn what_a_finalist_leaves_behind_does_not_speak_against_others() {
    let (place, _alone) = alone();
    let run = tune(&place, &[UNDOES.0, 0, 1, 2]);
    assert_eq!(run.verdicts[&UNDOES.0]["verdict"], "measured", "it takes part: {:#?}", run.verdicts);
    assert_eq!(run.winner, "which=2", "{:#?} {:#?}", run.verdicts, run.unstable);
    assert!(run.unstable.keys().all(|number| *number == UNDOES.0), "{:#?}", run.unstable);
}

/// One that keeps what it once made of its inputs is right as long as these are the same.
#[test]
fn a_winner_is_verified_on_other_inputs_in_the_same_memory() {
    let (place, _alone) = alone();
    let run = tune(&place, &[42, 0]);
    assert_eq!(run.winner, "which=0", "{:#?} {:#?}", run.verdicts, run.unstable);
    assert!(run.unstable[&42].to_string().contains("other inputs"), "{:#?}", run.unstable);
}

/// No look-up tells workloads apart, so code that is right where all sequences are as long as the first is no winner, and no bundle
/// with it is good.
#[test]
fn a_winner_is_verified_on_the_workloads_that_no_look_up_tells_apart() {
    let (place, _alone) = alone();
    let code = include_str!("../../kernel-templates/cpu/cpu_decode.c");
    let description = include_str!("../../kernel-templates/cpu/cpu_decode.toml");
    assert!(code.contains("lens[b]"));
    place.file("templates/cpu_decode.c", &code.replace("lens[b]", "lens[0]"));
    place.file("templates/cpu_decode.toml", description);
    let problem = "decode batch=3 context=70 heads=2 kv_heads=1 head_dim=64 dtype=f32";
    let args = [
        "tune",
        "--json",
        "--nominal-ceilings",
        "--target",
        "cpu",
        "--threads",
        "1",
        "--db",
        "db",
        "--problem",
        problem,
    ];
    let more = ["--templates", "templates", "--budget", "120", "--trials", "64", "--near-roofline", "0"];
    let out = place.jitune(&[&args[..], &more].concat()).output().unwrap();
    // No other template takes the problem.
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    let list = events(&out.stdout);
    let (won, unstable) = (of_kind(&list, "won"), format!("{:?}", of_kind(&list, "unstable")));
    assert!(won.is_empty() && unstable.contains("lens=mixed"), "{unstable}");
}

/// What is right on numbers near 0, of which no two are equal, is no winner: exponentials that overflow, results that are cut off, and
/// the last of the largest.
#[test]
fn a_winner_is_verified_on_extreme_inputs() {
    let (place, _alone) = alone();
    let mut args: Vec<String> =
        ["tune", "--json", "--nominal-ceilings", "--target", "cpu", "--threads", "1", "--db", "db"]
            .map(String::from)
            .into();
    for (op, row) in [
        (
            "softmax",
            "float s = 0; for (long i = 0; i < n; i++) s += y[i] = __builtin_expf(x[i]); for (long i = 0; i < n; i++) y[i] /= s;",
        ),
        (
            "gelu",
            "for (long i = 0; i < n; i++) \
             y[i] = __builtin_fabsf(x[i]) > 8 ? 0 : 0.5f * x[i] * (1 + __builtin_erff(x[i] * 0.70710678f));",
        ),
        ("argmax", "int best = 0; for (long i = 0; i < n; i++) if (x[i] >= x[best]) best = i; *y = best;"),
    ] {
        let (out, width) = if op == "argmax" { ("int32_t", "1") } else { ("float", "n") };
        place.file(
            &format!("templates/cpu_{op}.toml"),
            &format!(
                "name = \"cpu_{op}\"\ntarget = \"cpu\"\nop = \"{op}\"\nsummary = \"near 0\"\nwhen = \"dtype == 'f32'\"\n\
                 [tunables]\none = [1]\n[cost]\nus = \"1\"\n[defines]\nsimd = \"max(dev.simd, 16)\"\n[[launch]]\n\
                 entry = \"cpu_{op}\"\ngrid = [\"rows\", \"1\", \"1\"]\nblock = \"1\"\n\
                 args = [{{ tensor = \"x\" }}, {{ tensor = \"y\" }}, {{ i64 = \"cols\" }}]\n"
            ),
        );
        place.file(
            &format!("templates/cpu_{op}.c"),
            &format!(
                "#include \"base.h\"\nvoid cpu_{op}(const jt_arg *args, long task, long tasks) {{\n  (void)tasks;\n  \
                 long n = args[2].i;\n  const float *x = (const float *)args[0].p + task * n;\n  \
                 {out} *y = ({out} *)args[1].p + task * {width};\n  {row}\n}}\n"
            ),
        );
        args.extend(["--problem".to_string(), format!("{op} rows=5 cols=300 dtype=f32")]);
    }
    let more = ["--templates", "templates", "--budget", "120", "--near-roofline", "0"];
    let args: Vec<&str> = args.iter().map(String::as_str).chain(more).collect();
    let out = place.jitune(&args).output().unwrap();
    let list = events(&out.stdout);
    let unstable: Vec<String> = of_kind(&list, "unstable").iter().map(ToString::to_string).collect();
    assert!(of_kind(&list, "won").is_empty() && unstable.len() == 3, "{}", text(&out));
    assert!(unstable.iter().all(|u| u.contains("on extreme inputs")), "{unstable:#?}");
}

/// In the process where all candidates run it is right as often as anybody looks; what was stored says so afterwards.
#[test]
fn a_winner_is_verified_where_no_candidate_ran() {
    let (place, _alone) = alone();
    // Beside one that is much slower, so that it comes out first whatever else the machine does.
    let run = tune(&place, &[41, 0]);
    assert_eq!(run.winner, "which=0", "{:#?} {:#?}", run.verdicts, run.unstable);
    assert_eq!(run.verdicts[&41]["verdict"], "measured");
    assert_eq!(run.unstable[&41]["verdict"], "unstable");
    let journal = std::fs::read_to_string(place.path().join("db/journal.jsonl")).unwrap();
    let last = journal.lines().rfind(|l| l.contains("\"which=41\"") && l.contains("\"trial\"")).unwrap();
    assert!(last.contains("\"unstable\""), "{last}");
}

#[test]
fn neither_verify_nor_compare_takes_a_cheat_for_good() {
    let (place, _alone) = alone();
    assert_eq!(tune(&place, &[50]).winner, "which=50");
    let run = |args: &[&str]| place.jitune(args).output().unwrap();
    let out = run(&["export", "--target", "cpu", "--db", "db", "--templates", "templates", "-o", "b.jitune"]);
    assert!(place.path().join("b.jitune").exists(), "{}", text(&out));
    let verify = ["verify", "b.jitune", "--threads", "1", "--slack", "1000", "--json"];
    let untimed = [&verify[..], &["--no-timing"]].concat();
    let compare =
        ["compare", "--quick", "--rounds", "1000", "--target", "cpu", "--threads", "1", "--db", "db", "--no-tune"];
    let compare = [
        &compare[..],
        &["--templates", "templates", "--peers", "cpu", "--problem", PROBLEM, "-o", "out", "--seconds", "6"],
    ]
    .concat();
    let own = || -> Vec<Value> {
        let rows = std::fs::read_to_string(place.path().join("out/rows.jsonl")).unwrap();
        let rows = rows.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        rows.filter(|r| r["kind"] == "row" && r["way"] == "tuned").collect()
    };
    for args in [&verify[..], &untimed] {
        let out = run(args);
        assert_eq!(out.status.code(), Some(0), "it is honest yet: {}", text(&out));
    }

    place.file("launches", "");
    for args in [&verify[..], &untimed] {
        let out = run(args);
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        let lines = String::from_utf8_lossy(&out.stdout).into_owned();
        let mut mine = lines.lines().filter(|l| l.contains("silu_mul"));
        assert!(mine.all(|l| l.contains("\"verdict\":\"unstable\"") && l.contains("not written")), "{lines}");
    }
    std::fs::rename(place.path().join("launches"), place.path().join("seconds")).unwrap();
    let out = run(&compare);
    assert!(!own().is_empty() && own().iter().all(|r| r["state"] == "wrong"), "{:?} {}", own(), text(&out));
    assert!(own()[0]["why"].as_str().unwrap().contains("after its rounds"), "{:?}", own());
}

/// When the tuner is killed nobody above the worker can clean up but the process that is there for it.
#[test]
fn what_a_candidate_hid_ends_with_a_tuner_that_is_killed() {
    let (place, _alone) = alone();
    template(&place, &[51]);
    let args = ["tune", "--nominal-ceilings", "--target", "cpu", "--threads", "1", "--db", "db", "--problem", PROBLEM];
    let args = [&args[..], &["--templates", "templates", "--patience", "60", "--budget", "300"]].concat();
    let mut tuner = place.jitune(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !place.path().join("hidden").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "the candidate does not run");
        std::thread::sleep(Duration::from_millis(20));
    }
    tuner.kill().unwrap();
    tuner.wait().unwrap();
    let begun = Instant::now();
    while !place.alive().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20), "left: {:?}", place.alive());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What was measured before anybody looked whether it stayed right is tried again.
#[test]
fn measured_once_is_not_enough() {
    let (place, _alone) = alone();
    assert_eq!(tune(&place, &[2]).winner, "which=2");
    // As a version of before has it.
    let journal = std::fs::read_to_string(place.path().join("db/journal.jsonl")).unwrap();
    let mut old = String::new();
    for line in journal.lines().filter(|l| l.contains("\"judging\"")) {
        let mut rec = serde_json::from_str::<Value>(line).unwrap()["rec"].take();
        rec["key"]["compile"]["judging"] = "2".into();
        let rec = rec.to_string();
        writeln!(old, "{{\"crc\":\"{}\",\"rec\":{rec}}}", &blake3::hash(rec.as_bytes()).to_hex()[..16]).unwrap();
    }
    std::fs::remove_dir_all(place.path().join("db")).unwrap();
    place.file("old.jsonl", &old);
    let out = place.jitune(&["db", "merge", "old.jsonl", "--db", "db"]).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    let args = [
        "explain",
        "--target",
        "cpu",
        "--threads",
        "1",
        "--problem",
        PROBLEM,
        "--db",
        "db",
        "--templates",
        "templates",
    ];
    let out = text(&place.jitune(&args).output().unwrap());
    assert!(out.contains("0 trials of cpu_silu_mul are used") && out.contains("stayed right"), "{out}");
    assert_eq!(tune(&place, &[2]).verdicts.len(), 1);
}

/// One launch of which is not repeated for the last look: what was checked is there for it.
#[test]
fn what_takes_long_has_a_winner_too() {
    let (place, _alone) = alone();
    let problem = "gelu rows=3072 cols=2560 dtype=f32";
    let args = ["tune", "--json", "--nominal-ceilings", "--target", "cpu", "--trials", "1", "--budget", "120"];
    let out = place.jitune(&[&args[..], &["--db", "large", "--problem", problem]].concat()).output().unwrap();
    let list = events(&out.stdout);
    assert_eq!((of_kind(&list, "unstable").len(), of_kind(&list, "won").len()), (0, 1), "{}", text(&out));
}

/// Twenty-five more as kernels. A machine with a GPU but without Rust runs the same by `scripts/gpu/check.sh`.
#[test]
fn no_cheat_wins_on_a_gpu() {
    let gpu = std::fs::read_dir("/dev")
        .unwrap()
        .flatten()
        .any(|e| e.file_name().to_string_lossy().strip_prefix("nvidia").is_some_and(|n| n.parse::<u32>().is_ok()));
    if !gpu {
        eprintln!("SKIPPED: no NVIDIA GPU here");
        return;
    }
    let (place, _alone) = alone();
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/gpu/check.sh");
    let mut check = std::process::Command::new("bash");
    let out =
        check.arg(script).args([env!("CARGO_BIN_EXE_jitune"), "out", "cheats"]).current_dir(place.path()).output();
    let out = out.unwrap();
    assert!(out.status.success(), "{}", text(&out));
}
