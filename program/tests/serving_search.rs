//! `jitune tune --serving` for real, on a small random model: what it stores, that it goes on, and that `jitune serve` takes it.
#![cfg(target_os = "linux")]

#[path = "serve/client.rs"]
#[allow(dead_code)]
mod client;
mod common;

use client::Server;
use common::{Place, events, of_kind, text};
use serde_json::{Value, json};
use std::process::Output;

/// A small random model in the folder `m`, with portable kernels for it in the database `db`.
fn place() -> Place {
    let place = Place::new();
    place.model("llama-tied-llama3");
    let args =
        ["run", "--target", "cpu", "--threads", "1", "--db", "db", "--model", "./m", "--ids", "1", "--max-tokens", "1"];
    let out = place.jitune(&args).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    place
}

const WORKLOAD: &str = "chat:prompt=24,answer=6,turns=2,think=0.05,rate=40";

fn tune(place: &Place, more: &[&str]) -> Output {
    let always = ["tune", "--serving", "--model", "./m", "--target", "cpu", "--threads", "1", "--db", "db", "--quick"];
    let limits = ["--workload", WORKLOAD, "--ttft", "60", "--tpot", "20", "--memory", "256M"];
    place.jitune(&[&always[..], &limits[..], more].concat()).output().unwrap()
}

fn serve(place: &Place, more: &[&str]) -> Server {
    let (model, db) = (place.path().join("m"), place.path().join("db"));
    let always =
        ["--threads", "1", "--memory", "256M", "--model", model.to_str().unwrap(), "--db", db.to_str().unwrap()];
    Server::of(&[&always[..], more].concat())
}

/// What rows are of.
fn asked(lines: &[Value]) -> Vec<String> {
    let of = |row: &Value| format!("{} {} {} {}", row["setting"], row["load"], row["round"], row["seconds"]);
    of_kind(lines, "row").into_iter().map(|line| of(&line["row"])).collect()
}

fn stored(place: &Place) -> Vec<Value> {
    let out = place.jitune(&["db", "list", "--json", "--db", "db"]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    events(&out.stdout).into_iter().filter(|line| !line["serving"].is_null()).collect()
}

#[test]
fn what_it_finds_is_stored_and_served_with_unless_one_says_otherwise() {
    let place = place();
    // Too little time for the finals: rows are kept, and nothing is decided.
    let out = tune(&place, &["--budget", "3", "--json"]);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    let lines = events(&out.stdout);
    let rows = of_kind(&lines, "row").len();
    let said = format!("no setting was chosen within 3 s; the {rows} rows are kept");
    assert!(text(&out).contains(&said) && text(&out).contains("--budget SECONDS"), "{}", text(&out));
    assert!(rows >= 1 && stored(&place).is_empty(), "{}", text(&out));
    assert_eq!(of_kind(&lines, "serving")[0]["stored"], false);
    assert!(!serve(&place, &[]).log().contains("serving: "));

    // Each run goes on where the one before was cut off, and asks nothing twice; a busy machine needs some more.
    let (mut all, mut out) = (asked(&lines), out);
    for _ in 0..16 {
        out = tune(&place, &["--budget", "20", "--json"]);
        let new = asked(&events(&out.stdout));
        assert!(new.iter().all(|row| !all.contains(row)), "{}", text(&out));
        all.extend(new);
        if out.status.code() == Some(0) {
            break;
        }
        assert_eq!((out.status.code(), stored(&place).len()), (Some(1), 0), "{}", text(&out));
    }
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    let lines = events(&out.stdout);
    let last = of_kind(&lines, "serving")[0];
    let found = &last["serving"];
    assert_eq!(last["stored"], true);
    assert_eq!(
        (&found["ttft_ms"], &found["tpot_ms"], &found["workload"]),
        (&json!(60.0), &json!(20.0), &json!(WORKLOAD))
    );
    assert_eq!(found["default"]["setting"], json!({ "tokens": 512, "sequences": 8, "chunk": 512 }));
    assert!(found["default"]["figures"]["share"].as_f64().unwrap() >= 0.9, "{found}");
    assert!(found["rows"].as_u64().unwrap() >= of_kind(&lines, "row").len() as u64);
    let list = stored(&place);
    assert_eq!((list.len(), &list[0]["serving"]), (1, found));

    // The journal takes it elsewhere, with the rows.
    let done = |args: &[&str]| {
        let out = place.jitune(args).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
    };
    done(&["db", "export-journal", "--winners", "w.jsonl", "--db", "db"]);
    done(&["db", "merge", "w.jsonl", "--db", "other"]);
    done(&["db", "gc", "--db", "db"]);
    done(&["db", "verify", "--db", "db"]);
    let other = place.jitune(&["db", "list", "--json", "--db", "other"]).output().unwrap();
    assert!(events(&other.stdout).iter().any(|line| line["serving"] == *found), "{}", text(&other));
    done(&["export", "--target", "cpu", "--db", "db", "-o", "m.jitune"]);
    // Nobody serves with it there, since it was not measured there.
    let model = place.path().join("m");
    let there =
        ["--model", model.to_str().unwrap(), "--db", place.path().join("other").to_str().unwrap()].map(String::from);
    let there: Vec<&str> = there.iter().map(String::as_str).collect();
    let server = Server::of(&[&["--threads", "1", "--memory", "256M"], &there[..]].concat());
    assert!(!server.log().contains("serving: "), "{}", server.log());
    drop(server);

    let word = |name: &str| format!("{name}={}", found["setting"][name]);
    let all = ["tokens", "sequences", "chunk"].map(word).join(" ");
    let server = serve(&place, &[]);
    let line = server.log().lines().find(|l| l.starts_with("serving: ")).unwrap_or_default().to_string();
    assert!(line.starts_with(&format!("serving: {all}; ")) && line.contains("--no-tuned-serving"), "{line:?}");
    assert!(line.contains("TTFT 60 ms and TPOT 20 ms"), "{line}");
    drop(server);
    // What is given wins, one by one; and nothing is looked for where all is given, or where one says so.
    let server = serve(&place, &["--sequences", "3"]);
    let given = format!("serving: {} sequences=3 {}; ", word("tokens"), word("chunk"));
    assert!(server.log().contains(&given), "{given}: {}", server.log());
    drop(server);
    for more in [&["--no-tuned-serving"][..], &["--sequences", "3", "--tokens", "64", "--chunk", "16"]] {
        assert!(!serve(&place, more).log().contains("serving: "));
    }
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_measured() {
    let place = place();
    for (more, said) in [
        (&["tune", "--serving"][..], "--model"),
        (&["tune", "--model", "./m", "--ttft", "3"], "--serving"),
        (&["tune", "--serving", "--model", "./m", "--workload", "talk"], "talk"),
        (&["tune", "--serving", "--model", "./m", "--workload", "code", "--quick"], "--ttft"),
        (&["tune", "--serving", "--model", "./m", "--ttft", "0"], "ttft"),
        (&["tune", "--serving", "--model", "llama-3.2-1b"], "preset"),
    ] {
        let out = place.jitune(&[more, &["--target", "cpu", "--db", "db"]].concat()).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{more:?} {}", text(&out));
        assert!(text(&out).contains(said), "{more:?} {}", text(&out));
    }
}
