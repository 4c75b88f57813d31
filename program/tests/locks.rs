//! Two tuners on one database at once: one waits or says who holds the lock, and nothing is lost.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, events, of_kind, text};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

fn tuner(place: &Place, problem: &str, wait: &str) -> Command {
    let args = ["tune", "--json", "--nominal-ceilings", "--target", "cpu", "--db", "db", "--trials", "1"];
    place.jitune(&[&args[..], &["--problem", problem, "--db-wait", wait]].concat())
}

fn stored(place: &Place) -> Vec<String> {
    let out = place.jitune(&["db", "list", "--json", "--db", "db"]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    events(&out.stdout).iter().map(|w| w["problem"].as_str().unwrap().into()).collect()
}

const FIRST: &str = "gelu rows=4 cols=64 dtype=f32";
const SECOND: &str = "softmax rows=4 cols=64 dtype=f32";

#[test]
fn the_second_says_who_holds_it() {
    let place = Place::new();
    let mut first = tuner(&place, FIRST, "10").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    // Its first event comes after it took the lock, and seconds before it is done.
    assert!(lines.next().unwrap().unwrap().contains("plan"));
    // Stopped, it holds the lock for as long as the test needs.
    let pid = rustix::process::Pid::from_child(&first);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let out = tuner(&place, SECOND, "0").output().unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    assert_eq!(out.status.code(), Some(4), "{}", text(&out));
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains(&format!("process {} (jitune)", first.id())), "{said}");
    lines.for_each(drop);
    assert!(first.wait().unwrap().success());
    assert_eq!(stored(&place), [FIRST]);
    // Once it is free, the other has its turn.
    assert!(tuner(&place, SECOND, "0").output().unwrap().status.success());
    assert_eq!(stored(&place), [FIRST, SECOND]);
}

#[test]
fn the_second_waits_its_turn() {
    let place = Place::new();
    let start = |problem| tuner(&place, problem, "60").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let both = [start(FIRST), start(SECOND)].map(|c| c.wait_with_output().unwrap());
    for out in &both {
        assert_eq!(out.status.code(), Some(0), "{}", text(out));
        assert_eq!(of_kind(&events(&out.stdout), "won").len(), 1);
    }
    assert_eq!(stored(&place), [FIRST, SECOND]);
}

#[test]
fn readers_do_not_wait() {
    let place = Place::new();
    assert!(tuner(&place, FIRST, "0").output().unwrap().status.success());
    let mut second = tuner(&place, SECOND, "0").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(second.stdout.take().unwrap()).lines();
    lines.next().unwrap().unwrap();
    assert!(stored(&place).contains(&FIRST.to_string()));
    lines.for_each(drop);
    assert!(second.wait().unwrap().success());
    assert_eq!(stored(&place), [FIRST, SECOND]);
}
