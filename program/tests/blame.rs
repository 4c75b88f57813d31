//! What the machine or somebody else did to a candidate is not remembered as the candidate's: compilers and workers that are
//! killed, stopped, or lack something cost time, and the next plain `tune` tries what was left. And a run ends when its
//! time is up, or when it is told to, whatever its compilers do.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, events, of_kind, text};
use jitune_db::{Db, Record};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Times count here, so no two tests of this file run at once.
static MACHINE: Mutex<()> = Mutex::new(());

const PROBLEM: &str = "silu_mul rows=64 cols=512 dtype=f32";
/// How often each candidate does the work; the third is the fastest.
const WORK: [u32; 6] = [60, 90, 1, 70, 80, 100];

fn template(place: &Place) {
    place.file(
        "templates/cpu_silu_mul.toml",
        r#"name = "cpu_silu_mul"
target = "cpu"
op = "silu_mul"
summary = "candidates"
when = "dtype == 'f32'"
[tunables]
times = [60, 90, 1, 70, 80, 100]
[derive]
count = "rows * cols"
simd = "max(dev.simd, 16)"
[cost]
us = "100 - times"
[defines]
simd = "simd"
[[launch]]
entry = "cpu_silu_mul"
grid = ["8", "1", "1"]
block = "dev.cores"
args = [{ tensor = "x" }, { tensor = "y" }, { i64 = "count" }]
[reuse]
dynamic = ["rows"]
"#,
    );
    place.file(
        "templates/cpu_silu_mul.c",
        r#"#include "base.h"
void cpu_silu_mul(const jt_arg *args, long task, long tasks) {
  const float *x = args[0].p;
  float *y = args[1].p;
  long count = args[2].i, from = count * task / tasks, to = count * (task + 1) / tasks;
  for (int r = 0; r < TIMES; r++) {
    for (long i = from; i < to; i++) y[i] = x[2 * i] / (1.0f + __builtin_expf(-x[2 * i])) * x[2 * i + 1];
    __asm__ volatile("" ::: "memory");
  }
}
"#,
    );
}

/// A compiler that does `before` each time it is to compile, and then, if that lets it, compiles.
fn compiler(place: &Place, before: &str) -> std::path::PathBuf {
    let script = format!("#!/bin/sh\n[ \"$1\" = --version ] && exec cc --version\n{before}\nexec cc \"$@\"\n");
    let path = place.file("compiler", &script);
    let mut mode = std::fs::metadata(&path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    path
}

fn tune(place: &Place, more: &[&str]) -> Command {
    let args = ["tune", "--json", "--nominal-ceilings", "--target", "cpu", "--problem", PROBLEM, "--db", "db"];
    let args = [&args[..], &["--templates", "templates", "--search", "exhaustive", "--patience", "2"], more].concat();
    let mut command = place.jitune(&args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The verdict on each candidate, by how often it does the work, as the last journal line has it.
fn journal(place: &Place) -> BTreeMap<u32, String> {
    let text = std::fs::read_to_string(place.path().join("db/journal.jsonl")).unwrap_or_default();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if let Some(times) = line["rec"]["sub"].as_str().and_then(|s| s.strip_prefix("times=")) {
            found.insert(times.parse().unwrap(), line["rec"]["body"]["verdict"].as_str().unwrap().to_string());
        }
    }
    found
}

/// A plain run finds and stores the winner, and every candidate is measured.
fn ends_well(place: &Place) {
    let out = tune(place, &["--budget", "120"]).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    let list = events(&out.stdout);
    assert_eq!(of_kind(&list, "won")[0]["winner"]["config"], "times=1");
    let verdicts = journal(place);
    assert!(WORK.iter().all(|w| verdicts[w] == "measured"), "{verdicts:?}");
    assert_eq!(place.alive(), [], "no process is left");
}

fn blamed(place: &Place) -> Vec<(u32, String)> {
    journal(place).into_iter().filter(|(_, verdict)| verdict != "measured").collect()
}

fn alone() -> (Place, std::sync::MutexGuard<'static, ()>) {
    let guard = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = Place::new();
    template(&place);
    (place, guard)
}

#[test]
fn a_compiler_that_is_killed_once_in_a_while() {
    let (place, _alone) = alone();
    // Every third compilation is killed, as a system does that is out of memory.
    let count = "n=$(cat count 2>/dev/null || echo 0); echo $((n + 1)) > count; [ $((n % 3)) = 0 ] && kill -9 $$";
    let cc = compiler(&place, &format!("cd {}; {count}; cd - >/dev/null", place.path().display()));
    let out = tune(&place, &["--budget", "120", "--compilers", "1"]).env("JITUNE_CC", cc).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    assert_eq!(blamed(&place), [], "{}", text(&out));
    ends_well(&place);
}

#[test]
fn a_compiler_that_lacks_something() {
    let (place, _alone) = alone();
    for said in [
        "echo 'cc1: out of memory allocating 65536 bytes' >&2; exit 1",
        "echo 'gcc: fatal error: Killed signal terminated program cc1' >&2; exit 1",
        "echo 'gcc: fatal error: cannot execute cc1: vfork: Resource temporarily unavailable' >&2; exit 1",
        "echo 'k.c:5:10: fatal error: immintrin.h: Too many open files' >&2; exit 1",
        "echo 'k.c:5:10: fatal error: immintrin.h: Input/output error' >&2; exit 1",
        // In the form of what it says of a source, but it says it of any.
        "echo 'k.c:5:10: fatal error: stdint.h: No such file or directory' >&2; exit 1",
        "echo 'cc: symbol lookup error: cc: undefined symbol: __tunable_get, version GLIBC_PRIVATE' >&2; exit 1",
        "echo 'ld: libm.so.6: undefined reference to `__tunable_get@GLIBC_PRIVATE' >&2; exit 1",
        "exit 0",
        "kill -9 $$",
    ] {
        let cc = compiler(&place, said);
        let out = tune(&place, &["--budget", "60"]).env("JITUNE_CC", cc).output().unwrap();
        assert!(!out.status.success(), "{}", text(&out));
        assert_eq!(journal(&place), BTreeMap::new(), "{said}");
    }
    ends_well(&place);
    // What the compiler says of the source is the candidate's.
    let broken = std::fs::read_to_string(place.path().join("templates/cpu_silu_mul.c")).unwrap();
    let broken = broken.replace("  for (int r", "#if TIMES == 70\n  undeclared++;\n#endif\n  for (int r");
    place.file("templates/cpu_silu_mul.c", &broken);
    let out = tune(&place, &["--budget", "120"]).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    assert_eq!(blamed(&place), [(70, "compile_error".to_string())]);
}

/// A compiler that says it is done and leaves something else, or a part: what it makes of the source anew is judged.
#[test]
fn a_compiler_that_leaves_garbage_once_in_a_while() {
    let (place, _alone) = alone();
    let folder = place.path().display();
    let count = format!("n=$(cat {folder}/count 2>/dev/null || echo 0); echo $((n + 1)) > {folder}/count");
    let object = "for a; do [ \"$before\" = -o ] && object=$a; before=$a; done";
    for garbage in ["head -c 3000 /dev/urandom > $object", "cc \"$@\"; truncate -s 3000 $object"] {
        let _ = std::fs::remove_file(place.path().join("count"));
        // Of six sources the second and the last; what comes after them is sound.
        let cc = compiler(&place, &format!("{count}; {object}; [ $((n % 4)) = 1 ] && {{ {garbage}; exit 0; }}"));
        let args = ["--budget", "120", "--compilers", "1", "--again"];
        let out = tune(&place, &args).env("JITUNE_CC", cc).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", text(&out));
        assert_eq!(blamed(&place), [], "{garbage}: {}", text(&out));
        let _ = std::fs::remove_dir_all(place.path().join("db"));
    }
    ends_well(&place);
}

/// Compilers that leave processes, in sessions of their own, and hold their pipes open or not, and those that say more than memory
/// holds, are waited for until they end, and what they left ends then.
#[test]
fn what_a_compiler_leaves_or_says_without_end_costs_nothing() {
    let (place, _alone) = alone();
    for left in
        ["setsid sleep 77 &", "setsid sleep 77 >/dev/null 2>&1 </dev/null &", "yes warning | head -c 400000000 >&2"]
    {
        let cc = compiler(&place, left);
        let begun = Instant::now();
        let out = tune(&place, &["--budget", "60", "--again"]).env("JITUNE_CC", cc).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{left}: {}", text(&out));
        assert!(begun.elapsed() < Duration::from_secs(50), "{left}: {:?}", begun.elapsed());
        assert_eq!(place.alive(), [], "{left}: no process is left");
        assert_eq!(blamed(&place), [], "{left}: {}", text(&out));
    }
    // The same of one that is asked for its version: what it leaves there is nobody's, and not waited for.
    let cc = compiler(&place, "");
    place.file("compiler", "#!/bin/sh\nsetsid sleep 15 &\nexec cc \"$@\"\n");
    let begun = Instant::now();
    let out = place.jitune(&["doctor"]).env("JITUNE_CC", cc).output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?} {}", begun.elapsed(), text(&out));
}

/// Sends a signal to the workers of that duty, some times with pauses, while `child` runs.
fn disturb(place: &Place, child: &mut std::process::Child, duty: &str, signal: Signal, times: u32, pause: Duration) {
    let mut done = 0;
    while done < times && child.try_wait().unwrap().is_none() {
        for (pid, line) in place.alive() {
            if line.contains(&format!("jitune-worker {duty}")) {
                done += u32::from(kill_process(Pid::from_raw(pid as i32).unwrap(), signal).is_ok());
            }
        }
        std::thread::sleep(pause);
    }
}

#[test]
fn workers_that_are_killed_or_stopped() {
    let (place, _alone) = alone();
    for (duty, signal, times) in
        [("cpu", Signal::KILL, 4), ("compile", Signal::KILL, 6), ("cpu", Signal::STOP, 1), ("cpu", Signal::XCPU, 4)]
    {
        let mut child = tune(&place, &["--budget", "120", "--again"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(400));
        disturb(&place, &mut child, duty, signal, times, Duration::from_millis(350));
        let out = child.wait_with_output().unwrap();
        assert_eq!(blamed(&place), [], "{duty} {signal:?}: {}", text(&out));
    }
    ends_well(&place);
}

#[test]
fn a_search_that_was_cut_off_goes_on() {
    let (place, _alone) = alone();
    let cc = compiler(&place, "sleep 1.5");
    let out = tune(&place, &["--budget", "5", "--compilers", "1"]).env("JITUNE_CC", cc).output().unwrap();
    let before = journal(&place).len();
    assert!((1..WORK.len()).contains(&before), "{before} {}", text(&out));
    ends_well(&place);
    let out = tune(&place, &[]).output().unwrap();
    let list = events(&out.stdout);
    assert_eq!((of_kind(&list, "trial").len(), &of_kind(&list, "won")[0]["stored"]), (0, &Value::Bool(true)));
}

/// Verdicts as versions stored them that did not ask whose fault a failure was.
#[test]
fn what_cannot_be_trusted_is_not_used_and_explain_says_so() {
    let (place, _alone) = alone();
    ends_well(&place);
    let db = Db::open(place.path().join("db"), jitune::journal::options()).unwrap();
    let text_of = std::fs::read_to_string(place.path().join("db/journal.jsonl")).unwrap();
    let old = Db::open(place.path().join("old"), jitune::journal::options()).unwrap();
    for line in text_of.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let mut record: Record = serde_json::from_value(line["rec"].clone()).unwrap();
        if record.key.compile.remove("judging").is_some() {
            record.body = serde_json::json!({ "verdict": "compile_error", "log": "Killed" });
            old.put_trial(&record).unwrap();
        }
    }
    drop((db, old));
    std::fs::remove_dir_all(place.path().join("db")).unwrap();
    std::fs::rename(place.path().join("old"), place.path().join("db")).unwrap();
    let explained = || {
        let args = ["explain", "--target", "cpu", "--problem", PROBLEM, "--db", "db", "--templates", "templates"];
        let out = place.jitune(&args).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", text(&out));
        text(&out)
    };
    let not_used = format!("{} are not: they are of a version that stored failures", WORK.len());
    let before = explained();
    assert!(before.contains("0 trials of cpu_silu_mul are used") && before.contains(&not_used), "{before}");
    ends_well(&place);
    let after = explained();
    let used = format!("{} trials of cpu_silu_mul are used", WORK.len());
    assert!(after.contains(&used) && after.contains(&not_used), "{after}");
}

#[test]
fn a_run_ends_when_its_time_is_up_or_when_it_is_told_to() {
    let (place, _alone) = alone();
    for sleeps in [false, true] {
        let cc = if sleeps { compiler(&place, "sleep 60") } else { "cc".into() };
        for budget in ["1", "8"] {
            let begun = Instant::now();
            let out = tune(&place, &["--budget", budget, "--again"]).env("JITUNE_CC", &cc).output().unwrap();
            let late = begun.elapsed().as_secs_f64() - budget.parse::<f64>().unwrap();
            assert!(late < 3.0, "{budget} s and {late:.1} more, asleep: {sleeps}: {}", text(&out));
            // A second need not be enough on a busy machine.
            assert!(
                if sleeps { !out.status.success() } else { out.status.success() || budget == "1" },
                "{}",
                text(&out)
            );
            assert_eq!(place.alive(), [], "no process is left");
        }
        // Also while what measures the ceilings is compiled, which is no candidate and no fault of the device.
        for ceilings in [false, true] {
            let mut tune = tune(&place, &["--budget", "120", "--again"]);
            if ceilings {
                let args = ["tune", "--target", "cpu", "--problem", PROBLEM, "--db", "db2"];
                tune = place.jitune(&args);
            }
            let (stdout, stderr) = (Stdio::null(), Stdio::piped());
            let child = tune.env("JITUNE_CC", &cc).stdout(stdout).stderr(stderr).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(700));
            let begun = Instant::now();
            let _ = kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::INT);
            let out = child.wait_with_output().unwrap();
            let after = begun.elapsed();
            assert!(after < Duration::from_secs(if sleeps { 5 } else { 2 }), "{after:?} {}", out.status);
            assert_eq!(out.status.code(), Some(130), "{}", text(&out));
            assert_eq!(place.alive(), [], "no process is left");
        }
    }
}

#[test]
fn a_compiler_that_never_says_its_version() {
    let (place, _alone) = alone();
    let path = compiler(&place, "");
    place.file("compiler", "#!/bin/sh\nsleep 100\n");
    let begun = Instant::now();
    let out = place.jitune(&["doctor"]).env("JITUNE_CC", path).output().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{}", text(&out));
}
