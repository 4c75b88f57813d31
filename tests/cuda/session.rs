//! A measuring session on the driver without a GPU: candidates that are not what they seem are seen, each is blamed for what
//! it did itself, and none spoils the tensors of those after it.

use super::{Driver, code, driver};
use jitune::artifact::{Artifact, ArtifactInfo};
use jitune::backend::cuda::CudaSession;
use jitune::backend::session::{Doubt, Element, Runnable, Session, Setup};
use jitune::problem::Problem;
use serde_json::json;
use std::ffi::CStr;
use std::path::Path;

/// An odd number of elements.
const PROBLEM: &str = "gelu rows=9 cols=333 dtype=f32";
const SUPPORT: &str = "fill_uniform_f32 0 8 8 8 4\nsum_squares 0 8 8 8\ncompare_f32 0 8 8 8 8 8\ncheck_bytes 0 8 8 8\n\
    sum_ranges 0 8 8 8\nspoil4 0 8 8 8 8\nread_sum 0 8 8 8\n";

fn put(folder: &Path, text: &str) -> Artifact {
    Artifact::put(folder, &code(text), ArtifactInfo::default()).unwrap()
}

fn runnable(folder: &Path, entry: &str, sizes: &str, args: serde_json::Value) -> Runnable {
    let kernel =
        json!({ "entry": entry, "grid": [4, 1, 1], "block": 256, "cluster": 1, "smem": 0, "pdl": false, "args": args });
    let artifact = put(folder, &format!("{entry} 0 {sizes}\n"));
    let launch = json!({ "kernels": [kernel], "workspace": 0, "zero": false });
    serde_json::from_value(json!({ "artifact": artifact, "launch": launch })).unwrap()
}

/// The candidate of that name in `kernels.h`.
fn candidate(folder: &Path, name: &str) -> Runnable {
    let count = PROBLEM.parse::<Problem>().unwrap().tensors()[0].len();
    let args = json!([{ "tensor": 0 }, { "tensor": 1 }, { "i64": count }]);
    runnable(folder, &format!("gelu_{name}"), "8 8 8", args)
}

fn setup(folder: &Path, single: bool) -> Setup {
    let args = json!([{ "tensor": 0 }, { "tensor": 1 }, { "i32": 9 }, { "i32": 333 }]);
    serde_json::from_value(json!({
        "problem": PROBLEM,
        "seed": 3,
        "support": put(folder, SUPPORT),
        "reference": runnable(folder, "gelu_reference", "8 8 4 4", args),
        "single": single,
    }))
    .unwrap()
}

fn prepared(folder: &Path, single: bool) -> (Driver, CudaSession) {
    let driver = driver();
    let mut session = CudaSession::open(0).unwrap();
    session.prepare(&setup(folder, single)).unwrap();
    (driver, session)
}

/// What is found of a candidate: wrong at once, not right any more later, or nothing.
fn found(session: &mut CudaSession, candidate: &Runnable, rounds: u32) -> String {
    let tried = session.attempt(candidate, rounds).unwrap();
    match (tried.check.wrong, tried.doubt) {
        (Some(why), _) => format!("wrong: {why}"),
        (None, Some(doubt)) => format!("{doubt:?}"),
        (None, None) => "right".into(),
    }
}

#[test]
fn each_cheat_is_seen_and_none_spoils_those_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let (_driver, mut session) = prepared(folder.path(), false);
    let honest = candidate(folder.path(), "honest");
    for rounds in [3, 0] {
        for (name, verdict, evidence) in [
            ("twice", "Unstable", "not written"),
            ("wrong", "Unstable", "error"),
            ("half", "wrong", "not written"),
            ("first", "Unstable", "not written"),
            ("poison", "Unstable", "error"),
            ("sample", "Unstable", "error"),
            ("input", "wrong", "x: an input was changed"),
            ("input_late", "Unstable", "x: an input was changed"),
            ("after", "wrong", "y: wrote outside"),
            ("after_late", "Unstable", "y: wrote outside"),
            ("before", "wrong", "x: wrote outside"),
            ("guard", "wrong", "x: wrote outside"),
            ("far", "Unstable", ""),
        ] {
            // What takes one right result for all is seen when that one is not among the spoiled, fifteen times of sixteen.
            let tries = if name == "sample" { 6 } else { 1 };
            let mut all = (0..tries).map(|_| found(&mut session, &candidate(folder.path(), name), rounds));
            let got = all.find(|got| got != "right").unwrap_or_else(|| "right".into());
            assert!(got.starts_with(verdict) && got.contains(evidence), "{name}, {rounds} rounds: {got}");
            assert_eq!(found(&mut session, &honest, rounds), "right", "after {name}");
        }
    }
}

/// Where a GPU gets memory back, the candidates after it are slow for a while.
#[test]
fn the_memory_of_a_problem_stays_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, mut session) = prepared(folder.path(), false);
    let all = setup(folder.path(), false).problem.bytes() * 16;
    let freed = || driver.ask::<_, u64>("fake_freed", ());
    for single in [true, false, true, false] {
        let before = freed();
        session.prepare(&setup(folder.path(), single)).unwrap();
        assert!(freed() - before < all, "{} bytes of {all} and more", freed() - before);
        assert_eq!(found(&mut session, &candidate(folder.path(), "honest"), 3), "right");
        let after = found(&mut session, &candidate(folder.path(), "after"), 3);
        assert!(after.starts_with("wrong: y: wrote outside"), "{after}");
    }
    let before = freed();
    drop(session);
    assert!(freed() - before > all);
}

/// Its memory is that of its last turn, which is looked at and put right; of another seed it is another problem.
#[test]
fn a_problem_whose_turn_comes_again_is_as_it_was_and_is_not_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, mut session) = prepared(folder.path(), false);
    let mine = setup(folder.path(), false);
    let mut other = mine.clone();
    other.seed = 4;
    let honest = candidate(folder.path(), "honest");
    assert_eq!(found(&mut session, &honest, 0), "right");
    let name = |i| unsafe { CStr::from_ptr(driver.launch(i).name.as_ptr()) };
    let last = (0..driver.launched()).rev().find(|i| name(*i) == c"gelu_honest").unwrap();
    let x = driver.launch(last).values[0];
    // The launches of the reference while a problem is prepared, each of which makes it anew.
    let made = |session: &mut CudaSession, setup: &Setup| {
        let before = driver.launched();
        session.prepare(setup).unwrap();
        (before..driver.launched()).filter(|i| name(*i) == c"gelu_reference").count()
    };
    assert_eq!(made(&mut session, &other), 1);
    assert_eq!(found(&mut session, &honest, 3), "right");
    assert_eq!(made(&mut session, &mine), 0);
    assert_eq!(found(&mut session, &honest, 3), "right");
    assert_eq!(made(&mut session, &other), 0);
    // A candidate of the other writes where it should not.
    // SAFETY: the stand-in's memory is the host's, and this input is put by.
    unsafe { (x as *mut f32).write(7.0) };
    assert_eq!(found(&mut session, &honest, 3), "right");
    assert_eq!(made(&mut session, &mine), 1);
    assert_eq!(found(&mut session, &honest, 3), "right");
    assert_eq!(found(&mut session, &candidate(folder.path(), "input"), 3), "wrong: x: an input was changed");
    // One set alone is for a check and is not put by.
    let single = setup(folder.path(), true);
    assert_eq!([&single, &other, &single, &other].map(|setup| made(&mut session, setup)), [1, 0, 1, 0]);
}

#[test]
fn finalists_are_blamed_each_for_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (_driver, mut session) = prepared(folder.path(), false);
    let list = |names: &[&str]| names.iter().map(|name| candidate(folder.path(), name)).collect::<Vec<_>>();
    let mut doubts = |names: &[&str]| -> Vec<String> {
        let timed = session.finals(&list(names), 6).unwrap();
        assert!(timed.iter().all(|t| t.doubt.is_some() || t.series.us.len() == 6), "{timed:?}");
        let doubt = |d: &Option<Doubt>| match d {
            Some(Doubt::Unstable(why)) => why.split(':').next().unwrap().to_string(),
            Some(Doubt::Implausible(_)) => "implausible".into(),
            None => "-".into(),
        };
        timed.iter().map(|t| doubt(&t.doubt)).collect()
    };
    assert_eq!(doubts(&["honest", "input_late", "honest"]), ["-", "x", "-"]);
    assert_eq!(doubts(&["after_late", "honest", "input", "honest"]), ["y", "-", "x", "-"]);
    assert_eq!(doubts(&["honest", "hundred", "poison"]), ["-", "y", "y"]);
    // Once alone: the rounds are held again on code that is loaded anew, which does it again.
    assert_eq!(doubts(&["honest", "input_once"]), ["-", "x"]);
    assert_eq!(doubts(&["honest"]), ["-"]);
}

#[test]
fn what_elements_hold_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let (_driver, mut session) = prepared(folder.path(), true);
    let elements: Vec<Element> = [0, 1, 2996].map(|index| Element { tensor: "y".into(), index }).into();
    let (tried, values) = session.verify(&candidate(folder.path(), "honest"), &elements).unwrap();
    assert_eq!((tried.check.wrong, tried.doubt), (None, None));
    let problem: Problem = PROBLEM.parse().unwrap();
    let inputs = jitune::problem::Inputs::new(&problem, 3);
    for (element, value) in elements.iter().zip(values) {
        let x = inputs.get("x").at(element.index);
        // GELU is between 0 and its argument above 0, and above -0.17 below.
        assert!(value.abs() <= x.abs() && value > -0.18 && (x < 0.0 || value >= x / 2.0), "{x} {value}");
    }
    let (tried, _) = session.verify(&candidate(folder.path(), "twice"), &elements).unwrap();
    assert!(matches!(tried.doubt, Some(Doubt::Unstable(_))));
}

#[test]
fn support_code_of_before_is_refused_with_what_helps() {
    let folder = tempfile::tempdir().unwrap();
    let driver = driver();
    let mut session = CudaSession::open(0).unwrap();
    let old: String = SUPPORT.lines().filter(|l| !l.starts_with("sum_ranges")).map(|l| format!("{l}\n")).collect();
    let args = json!([{ "tensor": 0 }, { "tensor": 1 }, { "i32": 9 }, { "i32": 333 }]);
    let reference = runnable(folder.path(), "gelu_reference", "8 8 4 4", args);
    let setup = json!({ "problem": PROBLEM, "seed": 3, "support": put(folder.path(), &old), "reference": reference });
    let refused = session.prepare(&serde_json::from_value(setup).unwrap()).unwrap_err().to_string();
    assert!(refused.contains("jitune export"), "{refused}");
    drop((session, driver));
}
