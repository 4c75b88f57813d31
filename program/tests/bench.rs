//! `jitune bench` with engines that go wrong: each is called what it is, and costs its own rows alone.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, text};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

/// A small random model in the folder `m`, with portable kernels for it in the database `db`.
fn place() -> Place {
    let place = Place::new();
    place.model("llama-tied-llama3");
    place
}

/// Runs a bench; gives the lines of its file.
fn bench(place: &Place, args: &[&str]) -> (std::process::Output, Vec<Value>) {
    let always = [
        "bench",
        "--model",
        "m",
        "--target",
        "cpu",
        "--threads",
        "1",
        "--db",
        "db",
        "--peer-dir",
        "engines",
        "-o",
        "out",
    ];
    let right = [env!("CARGO_BIN_EXE_jitune"), "engine", "--db", "db"].join("\n");
    let out = place.jitune(&[&always[..], args].concat()).env("RIGHT", right).output().unwrap();
    let rows = std::fs::read_to_string(place.path().join("out/engines.jsonl")).unwrap_or_default();
    (out, rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn of_kind<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["kind"] == kind).collect()
}

#[test]
fn engines_that_go_wrong_are_called_what_they_are() {
    let place = place();
    let ways = ["wrong", "stalls", "drops", "bundles", "counts", "dies"];
    let script = place.file("engines/odd.py", include_str!("bench/odd.py"));
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    for way in ways {
        std::os::unix::fs::symlink(&script, place.path().join("engines").join(format!("jitune-engine-{way}"))).unwrap();
    }
    let engines = ["jitune", "wrong", "stalls", "drops", "bundles", "counts", "dies", "absent", "jitune"].join(",");
    let workload = "batch-2:prompt=6,answer=8,requests=24,warm=1,stall=2";
    let (out, lines) = bench(&place, &["--engines", &engines, "--workload", workload]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    let cells: BTreeMap<&str, &Value> =
        of_kind(&lines, "cell").into_iter().map(|cell| (cell["engine"].as_str().unwrap(), cell)).collect();
    let states: BTreeMap<&str, &str> =
        cells.iter().map(|(name, cell)| (*name, cell["state"].as_str().unwrap())).collect();
    let wanted = [
        ("absent", "missing"),
        ("bundles", "ok"),
        ("counts", "miscounted"),
        ("dies", "failed"),
        ("drops", "dropped"),
        ("jitune", "ok"),
        ("jitune#2", "ok"),
        ("stalls", "stalled"),
        ("wrong", "wrong"),
    ];
    assert_eq!(states, BTreeMap::from(wanted), "{}", text(&out));
    let figure = |engine: &str, name: &str| cells[engine]["measured"][name].clone();
    assert_eq!((figure("jitune", "completed"), figure("jitune", "output_tokens")), (json!(24), json!(192)));
    assert_eq!(figure("bundles", "completed"), json!(24));
    let roofline = figure("jitune", "meanwhile")["roofline"].as_f64();
    assert!(roofline.is_some_and(|share| share > 0.0), "{roofline:?}");
    assert!(
        figure("bundles", "piece_tokens").as_f64().unwrap() > 1.5 && figure("jitune", "piece_tokens") == json!(1.0)
    );
    assert!(cells["wrong"]["measured"].is_null() && cells["wrong"]["why"].as_str().unwrap().contains("diverge"));
    assert!(cells["dies"]["why"].as_str().unwrap().contains("there is no more of it"), "{}", cells["dies"]["why"]);
    assert!(cells["absent"]["why"].as_str().unwrap().contains("jitune-engine-absent"), "{}", cells["absent"]["why"]);
    let check = of_kind(&lines, "check").into_iter().find(|c| c["engine"] == "jitune#2").unwrap().clone();
    assert_eq!((&check["state"], &check["positions"]), (&json!("ok"), &json!(192)));
    assert_eq!(place.alive(), [], "no process is left");
    // Whatever engines call it, the device is the run's.
    let device = &of_kind(&lines, "run")[0]["device"]["name"];
    let starts = of_kind(&lines, "start");
    assert!(starts.iter().filter(|start| start["why"].is_null()).all(|start| start["device"] == *device));
    // The report says what counts and what does not.
    let report: Value =
        serde_json::from_str(&std::fs::read_to_string(place.path().join("out/report.json")).unwrap()).unwrap();
    let ranked = report["rankings"].to_string();
    assert!(ranked.contains("jitune") && !ranked.contains("wrong") && !ranked.contains("stalls"), "{ranked}");

    // What was measured is kept, what was not there is tried again, and what is new is added.
    std::os::unix::fs::symlink(&script, place.path().join("engines/jitune-engine-absent")).unwrap();
    let workloads = format!("{workload},code:prompt=4,answer=3,requests=4,warm=0,clients=2");
    let engines = "jitune,bundles,absent";
    let (out, more) = bench(&place, &["--engines", engines, "--workload", &workloads, "--resume"]);
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    let kept: Vec<&Value> = of_kind(&more, "cell");
    let measured = |cell: &&&Value| cell["engine"] != "absent";
    assert!(of_kind(&lines, "cell").iter().filter(measured).all(|cell| kept.contains(cell)));
    let now: Vec<(&Value, &Value)> =
        kept.iter().filter(|c| c["engine"] == "absent").map(|c| (&c["workload"], &c["state"])).collect();
    assert_eq!(now.len(), 3, "the earlier line, and two new ones: {now:?}");
    assert!(now[1..].iter().all(|(_, state)| *state == "ok"), "{now:?}");
    assert_eq!(kept.len(), wanted.len() + 2 + 2, "{}", text(&out));
    let run = &of_kind(&more, "run")[0];
    assert_eq!((run["engines"].as_array().unwrap().len(), run["workloads"].as_array().unwrap().len()), (9, 2));
    // A run of another model is none to go on with.
    let run = place
        .jitune(&["bench", "--model", "config", "--target", "cpu", "--threads", "1", "--resume", "-o", "out"])
        .output()
        .unwrap();
    assert!(run.status.code() == Some(2) && text(&run).contains("another model"), "{}", text(&run));
    assert_eq!(of_kind(&more, "run").len(), 1);
    // One of its own takes no rows away.
    let before = std::fs::read(place.path().join("out/engines.jsonl")).unwrap();
    let (out, lines) = bench(&place, &["--engines", "absent", "--workload", workload, "--no-check"]);
    assert!(out.status.success() && text(&out).contains("are kept in"), "{}", text(&out));
    assert_eq!(of_kind(&lines, "cell").len(), 1);
    let names = std::fs::read_dir(place.path().join("out")).unwrap().map(|e| e.unwrap().path());
    let aside: Vec<_> = names.filter(|p| p.to_string_lossy().contains("/engines-20")).collect();
    assert!(aside.len() == 1 && std::fs::read(&aside[0]).unwrap() == before, "{aside:?}");
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_runs() {
    let place = place();
    let cases = [
        (&["--workload", "talk"][..], "talk"),
        (&["--workload", "chat:rate=-1"], "rate"),
        (&["--workload", "code,code"], "twice"),
        (&["--engines", "jitune", "--set", "vllm.mode=x"], "no engine vllm"),
        (&["--engines", "jitune", "--price", "gpu=-1"], "gpu=DOLLARS"),
        (&["--seconds", "jitune=soon"], "seconds"),
        (&["--engines", "nope,nope"], "--engines: none of these is here: jitune-engine-nope is not found"),
        (&["--python", "/nonexistent/python"], "--python /nonexistent/python: "),
        (&["--engines", "jitune", "--python", "false"], "--python false: `false --version` ended with"),
        (&["--engines", "jitune", "--dtypes", "f32,int3"], "--dtypes int3: no engine knows it"),
    ];
    for (args, said) in cases {
        let (out, lines) = bench(&place, args);
        assert_eq!(out.status.code(), Some(2), "{args:?} {}", text(&out));
        assert!(text(&out).contains(said) && lines.is_empty(), "{args:?} {}", text(&out));
    }
}
