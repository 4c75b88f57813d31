//! What comes from elsewhere, or from a machine in trouble, harms nothing: hostile journals, closed outputs, odd clocks.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, text};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn ours() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tuning-db/winners/amd-epyc/2026-11-25/journal.jsonl");
    std::fs::read_to_string(path).unwrap()
}

/// A journal line of this record.
fn sealed(rec: &serde_json::Value) -> String {
    let rec = rec.to_string();
    format!("{{\"crc\":\"{}\",\"rec\":{rec}}}\n", &blake3::hash(rec.as_bytes()).to_hex()[..16])
}

#[test]
fn merging_nonsense_takes_no_winner_away() {
    let place = Place::new();
    let run = |args: &[&str], code: i32| {
        let out = place.jitune(&[args, &["--db", "db"]].concat()).output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", text(&out));
        text(&out)
    };
    let journal = ours();
    place.file("ours.jsonl", &journal);
    run(&["db", "merge", "ours.jsonl"], 0);
    let before = run(&["db", "list"], 0);
    let mut hostile = String::new();
    let records = journal.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["rec"].take());
    for (i, mut rec) in records.enumerate() {
        let newer = rec["at"].as_u64().unwrap() + 1;
        rec["at"] = [newer, u64::MAX, newer + 3_000_000_000][i % 3].into();
        match i % 4 {
            0 => rec["body"] = "nonsense".into(),
            1 if rec["kind"] == "winner" => rec["body"]["evidence"]["median_us"] = (-5.0).into(),
            2 if rec["kind"] == "winner" => rec["body"]["evidence"]["median_us"] = 1e300.into(),
            _ => rec["body"] = serde_json::json!({"verdict": "measured", "samples_us": []}),
        }
        hostile += &sealed(&rec);
    }
    place.file("hostile.jsonl", &hostile);
    let said = run(&["db", "merge", "hostile.jsonl"], 4);
    assert!(said.contains("hostile.jsonl: no line is a record"), "{said}");
    place.file("both.jsonl", &(hostile + &journal));
    let said = run(&["db", "merge", "both.jsonl"], 1);
    assert!(said.contains(" 0 added") && said.contains("both.jsonl:1: "), "{said}");
    run(&["db", "gc", "--grace", "0"], 0);
    assert_eq!(run(&["db", "list"], 0), before);
    for no_journal in ["not json\n", "{}\n", "\u{0}\u{1}", "", "\n\n"] {
        place.file("no.jsonl", no_journal);
        run(&["db", "merge", "no.jsonl"], 4);
    }
}

/// Runs the program and checks its exit code.
fn run(place: &Place, line: &str, code: i32) -> String {
    let out = place.jitune(&words(line)).output().unwrap();
    quiet(&out, line);
    assert_eq!(out.status.code(), Some(code), "{line}: {}", text(&out));
    text(&out)
}

/// The records of a database.
fn records(place: &Place, db: &str) -> Vec<serde_json::Value> {
    run(place, &format!("db export-journal all.jsonl --db {db}"), 0);
    let all = std::fs::read_to_string(place.path().join("all.jsonl")).unwrap();
    all.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["rec"].take()).collect()
}

/// A record whose body reads, and which is not what its key says or cannot be launched, hides no winner, costs it neither its line
/// nor its code, and is not sealed; one without code makes none lose that has some.
#[test]
fn a_merged_record_that_is_not_what_it_says_takes_no_winner_away() {
    let place = Place::new();
    tuned(&place);
    let good = std::fs::read(place.path().join("b.jitune")).unwrap();
    let listed = run(&place, "db list --db db", 0);
    let won = records(&place, "db").into_iter().find(|r| r["kind"] == "winner").unwrap();
    let newer = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut rec = won.clone();
        // Within what clocks may differ by.
        rec["at"] = (won["at"].as_u64().unwrap() + 80_000).into();
        change(&mut rec);
        rec
    };
    let withdrawn = |body: serde_json::Value| newer(&|r| (r["kind"], r["body"]) = ("withdrawn".into(), body.clone()));
    let expressions = |text: String| newer(&|r| r["body"]["description"]["when"] = text.clone().into());
    let nothing = "0".repeat(64);
    for (what, rec, code) in [
        ("code that nobody has", newer(&|r| r["body"]["artifact"] = nothing.clone().into()), 0),
        ("a path", newer(&|r| r["body"]["artifact"] = "../../../../etc/passwd".into()), 4),
        ("no launch", newer(&|r| r["body"]["description"]["launch"] = serde_json::json!([])), 4),
        ("deep", expressions("(".repeat(25_000) + "1" + &")".repeat(25_000)), 4),
        ("never", expressions("dtype == 'bf16'".into()), 4),
        ("another target", newer(&|r| r["body"]["device"]["target"] = "cuda".into()), 4),
        ("another processor", newer(&|r| r["body"]["device"]["silicon"]["threads"] = "7919".into()), 4),
        ("another op", newer(&|r| r["body"]["description"]["op"] = "rmsnorm".into()), 4),
        ("a reference", newer(&|r| r["body"]["description"]["role"] = "reference".into()), 4),
        (
            "arguments in another order",
            newer(&|r| r["body"]["description"]["launch"][0]["args"].as_array_mut().unwrap().swap(0, 1)),
            4,
        ),
        (
            "another config",
            newer(&|r| {
                r["body"]["config"] = "chunk=7919".into();
            }),
            4,
        ),
        (
            "a value that its template does not have",
            newer(&|r| {
                r["body"]["config"] = "chunk=7919".into();
                r["body"]["description"]["tunables"] = serde_json::json!([["chunk", [7919]]]);
            }),
            4,
        ),
        ("no time", newer(&|r| r["body"]["evidence"]["median_us"] = 1e-30.into()), 4),
        ("chosen never", newer(&|r| r["body"]["evidence"]["at"] = u64::MAX.into()), 4),
        ("chosen in years", newer(&|r| r["body"]["evidence"]["at"] = (u64::MAX >> 31).into()), 4),
        ("withdrawn without a word", withdrawn(serde_json::json!({"x": 1})), 4),
        ("withdrawn by nothing", withdrawn(serde_json::Value::Null), 4),
        ("withdrawn elsewhere", withdrawn(serde_json::json!({"why": "it is wrong"})), 0),
    ] {
        place.file("new.jsonl", &sealed(&rec));
        let said = run(&place, "db merge new.jsonl --db db", code);
        assert!(said.contains("1 kept whose code is here") || said.contains("no line is a record"), "{what}: {said}");
        run(&place, "db gc --grace 0 --db db", 0);
        assert_eq!(run(&place, "db list --db db", 0), listed, "{what}");
        run(&place, "db verify --db db", 0);
        run(&place, "export --target cpu --db db -o b.jitune", 0);
        assert_eq!(std::fs::read(place.path().join("b.jitune")).unwrap(), good, "{what}");
        if code == 4 {
            // Where nothing is stored, no such thing is either.
            run(&place, "db merge new.jsonl --db fresh", 4);
        }
    }
    // Of another compiler and newer, but without code: the one that has some is sealed.
    let other = newer(&|r| {
        r["key"]["compile"]["compiler"] = "another cc 1.0".into();
        r["body"]["artifact"] = nothing.clone().into();
    });
    place.file("other.jsonl", &sealed(&other));
    run(&place, "db merge other.jsonl --db db", 0);
    run(&place, "export --target cpu --db db -o b.jitune", 0);
    assert_eq!(std::fs::read(place.path().join("b.jitune")).unwrap(), good);
}

/// A merged record that names code which is here, but another kernel's, is neither run nor sealed; `tune` compiles what it says.
#[test]
fn a_merged_record_runs_no_code_that_was_not_judged_for_it() {
    const OTHER: &str = "gelu rows=8 cols=64 dtype=f32";
    let place = Place::new();
    tuned(&place);
    let tune_other = |db: &str, more: &[&str]| {
        let line = format!("{TUNE} --db {db}");
        let mut words = words(&line);
        *words.iter_mut().find(|w| w.starts_with("gelu")).unwrap() = OTHER;
        let out = place.jitune(&[&words[..], more].concat()).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        text(&out)
    };
    tune_other("theirs", &[]);
    let winner = |db: &str, of: &str| {
        let all = records(&place, db).into_iter();
        all.filter(|r| r["kind"] == "winner").find(|r| r["body"]["problem"] == of).unwrap()
    };
    let own = winner("db", "gelu rows=4 cols=64 dtype=f32")["body"]["artifact"].clone();
    let mut forged = winner("theirs", OTHER);
    assert_ne!(forged["body"]["artifact"], own);
    forged["body"]["artifact"] = own.clone();
    let mut withdrawn = forged.clone();
    (withdrawn["kind"], withdrawn["body"]) = ("withdrawn".into(), serde_json::json!({"why": "it is wrong"}));
    withdrawn["at"] = (forged["at"].as_u64().unwrap() - 1).into();
    // Told that it was wrong in all its configs, `tune` tries them nevertheless.
    let mut trial = records(&place, "theirs").into_iter().find(|r| r["kind"] == "trial").unwrap();
    trial["body"] = serde_json::json!({"verdict": "rejected", "why": "it is wrong"});
    for lines in [vec![&forged], vec![&withdrawn, &forged, &trial]] {
        place.file("forged.jsonl", &lines.into_iter().map(sealed).collect::<String>());
        run(&place, "db merge forged.jsonl --db db", 0);
        assert!(run(&place, "db list --db db", 0).contains("merged: not judged here"));
        let said = run(&place, "export --target cpu --db db -o b.jitune", 1);
        assert!(said.contains("not judged here"), "{said}");
        let held = jitune::bundle::Bundle::open(place.path().join("b.jitune")).unwrap();
        assert_eq!(held.winners().count(), 1);
        assert!(run(&place, "export --stale --target cpu --db db -o b.jitune", 1).contains("not judged here"));
        let explain = ["explain", "--target", "cpu", "--threads", "1", "--db", "db", "--problem", OTHER];
        let said = text(&place.jitune(&explain).output().unwrap());
        assert!(said.contains("a record of this key is not taken: it came with a merged journal"), "{said}");
    }
    let said = tune_other("db", &[]);
    assert!(said.contains("(0 stored before)"), "{said}");
    let judged = winner("db", OTHER);
    assert_ne!(judged["body"]["artifact"], own);
    run(&place, "export --target cpu --db db -o b.jitune", 0);
    let verify = place.jitune(&["verify", "b.jitune", "--threads", "1", "--no-timing"]).output().unwrap();
    assert!(verify.status.success(), "{}", text(&verify));
    // What was judged here stays, whatever comes again.
    assert!(run(&place, "db merge forged.jsonl --db db", 0).contains("0 added"));
    assert_eq!(winner("db", OTHER), judged);
}

/// What the program writes never takes the place of a database's own files, whatever links lead there, and what is there stays until
/// something whole takes its place.
#[test]
fn outputs_replace_neither_a_database_nor_what_they_fail_to_replace() {
    let place = Place::new();
    tuned(&place);
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, place.path().join(name)).unwrap();
    link("db/journal.jsonl", "to-journal");
    link("db", "to-db");
    link("db/none-yet", "to-nothing");
    let row = r#"{"kind":"run","at":0,"jitune":"0","command":"c","model":null,"device":null,"rounds":1}"#;
    place.file("rows.jsonl", &format!("{row}\n"));
    place.file("out/kept", "");
    link("../db/LOCK", "out/report.md");
    let journal = std::fs::read(place.path().join("db/journal.jsonl")).unwrap();
    let outputs = ["db/journal.jsonl", "db/LOCK", "db", "./db/../db/deep/er", "to-journal", "to-db/new", "to-nothing"];
    for output in outputs {
        for line in [
            format!("db export-journal {output} --db db"),
            format!("export --target cpu --db db -o {output}"),
            format!("compare --target cpu --db db --problem gelu_rows=4_ -o {output}"),
            format!("compare --target cpu --db db --model nothing --precisions -o {output}"),
            format!("bench --model nothing --db db -o {output}"),
            format!("run --model nothing --ids 1 --db db --logits {output}"),
            format!("report --from rows.jsonl -o {output}"),
            format!("report --from rows.jsonl --readme {output}"),
            format!("pack nothing --gguf {output}"),
            format!("pack nothing --lmrs {output}"),
            format!("pack nothing --weights int4-g128 -o {output}"),
            format!("model llama-3.2-1b --init random:1 -o {output}"),
        ] {
            assert!(run(&place, &line, 2).contains("lies in the tuning database"), "{line}");
        }
    }
    assert!(run(&place, "report --from rows.jsonl -o out", 2).contains("lies in the tuning database"));
    link("../db/journal.jsonl", "out/rows.jsonl");
    run(&place, "compare --target cpu --db nowhere --no-tune --problem gelu_rows=4_ -o out", 2);
    // A copy that nobody wrote to is one where it is asked for.
    place.file("copy/journal.jsonl", std::str::from_utf8(&journal).unwrap());
    run(&place, "db export-journal copy/journal.jsonl --winners --db copy", 2);
    assert_eq!(std::fs::read(place.path().join("copy/journal.jsonl")).unwrap(), journal);
    run(&place, "db verify --db db", 0);
    assert_eq!(std::fs::read(place.path().join("db/journal.jsonl")).unwrap(), journal);
    place.file("backup.jsonl", "old");
    run(&place, "db export-journal backup.jsonl --db nowhere", 4);
    assert_eq!(std::fs::read_to_string(place.path().join("backup.jsonl")).unwrap(), "old");
    run(&place, "db export-journal backup.jsonl --db db", 0);
    assert_ne!(std::fs::read_to_string(place.path().join("backup.jsonl")).unwrap(), "old");
    // Nothing that was begun is left beside them.
    let names = std::fs::read_dir(place.path()).unwrap().map(|e| e.unwrap().file_name());
    assert_eq!(names.filter(|n| n.to_string_lossy().starts_with('.')).count(), 0);
}

/// On standard output there is the journal alone, however it is called; the count is said beside it.
#[test]
fn a_journal_on_standard_output_is_whole() {
    let place = Place::new();
    tuned(&place);
    run(&place, "db export-journal all.jsonl --db db", 0);
    let whole = std::fs::read(place.path().join("all.jsonl")).unwrap();
    for (to, more) in [("-", ""), ("/dev/stdout", ""), ("-", " --json")] {
        let line = format!("db export-journal {to} --db db{more}");
        let piped = place.jitune(&words(&line)).output().unwrap();
        assert_eq!((piped.status.code(), &piped.stdout), (Some(0), &whole), "{line}: {}", text(&piped));
        let said = String::from_utf8_lossy(&piped.stderr).into_owned();
        assert!(said.contains("2 records written") || said.contains("\"records\":2"), "{line}: {said}");
        let file = std::fs::File::create(place.path().join("redirected")).unwrap();
        assert!(place.jitune(&words(&line)).stdout(file).status().unwrap().success(), "{line}");
        assert_eq!(std::fs::read(place.path().join("redirected")).unwrap(), whole, "{line}");
    }
    assert!(run(&place, "db export-journal /dev/full --db db", 4).contains("/dev/full"));
}

/// Only what tunes or merges makes a database.
#[test]
fn a_database_that_is_not_there_is_not_made_to_be_looked_after() {
    let place = Place::new();
    for line in ["db gc --db typo", "db gc --dry-run --db typo", "db verify --repair --db typo"] {
        assert!(run(&place, line, 4).contains("no tuning database at typo"), "{line}");
        assert!(!place.path().join("typo").exists(), "{line}");
    }
    tuned(&place);
    let said = run(&place, "db gc --db db", 0);
    assert!(said.contains("0 lines dropped and 2 kept") && !said.contains('{'), "{said}");
    assert!(run(&place, "db gc --db db --json", 0).contains("\"lines_kept\":2"));
}

/// A damaged artifact is put away by a repair, and tuning makes it again.
#[test]
fn a_repair_leaves_a_sound_database() {
    let place = Place::new();
    tuned(&place);
    let folder = std::fs::read_dir(place.path().join("db/artifacts")).unwrap().next().unwrap().unwrap().path();
    let artifact = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&artifact, "rotten").unwrap();
    place.file("db/artifacts/none", "no artifact");
    assert!(run(&place, "db verify --db db", 1).contains("2 damaged artifacts"));
    let said = run(&place, "db verify --repair --db db", 0);
    assert!(said.contains("was moved to db/quarantine/artifact-") && said.contains("`jitune tune`"), "{said}");
    assert!(!artifact.exists() && place.path().join("db/quarantine/artifact-none").exists());
    assert!(run(&place, "db verify --db db", 0).contains("1 missing"));
    let said = run(&place, &format!("{TUNE} --db db"), 0);
    assert!(said.contains("1 of 1 problems have winners (0 stored before)"), "{said}");
    assert!(run(&place, "db verify --db db", 0).contains("0 missing"));
    run(&place, "export --target cpu --db db -o again.jitune", 0);
}

/// What has no end is read in part, and refused.
#[test]
fn what_has_no_end_is_not_read_for_ever() {
    let place = Place::new();
    std::fs::create_dir(place.path().join("endless")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", place.path().join("endless/precisions.jsonl")).unwrap();
    let begun = Instant::now();
    for (line, said) in [
        ("report --from /dev/zero", "/dev/zero: a line of it has more than"),
        ("report --from endless/precisions.jsonl", "precisions.jsonl: a line of it has more than"),
        ("tune --target cpu --db db --plan /dev/zero", "/dev/zero: it has more than 16777216 bytes"),
        ("db merge /dev/zero --db db", "/dev/zero: more than"),
        ("db merge /dev/urandom --db db", "/dev/urandom: more than"),
    ] {
        let found = run(&place, line, 4);
        assert!(found.contains(said), "{line}: {found}");
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

/// Why there is no winner is said behind the problem, which is named once.
#[test]
fn a_problem_without_a_winner_is_named_once() {
    let said = run(&Place::new(), &format!("{TUNE} --db db").replace("--budget 20", "--budget 0"), 1);
    let lines = said.lines().filter(|line| line.contains("the time was up"));
    assert!(lines.clone().count() == 2 && lines.clone().all(|l| l.matches("gelu rows=4").count() == 1), "{said}");
}

/// What peers say is shown in terminals and pages, and moves neither.
#[test]
fn reports_hold_no_control_characters() {
    let place = Place::new();
    let run_line = r#"{"kind":"run","at":0,"jitune":"0","command":"c\u001b[2J","model":null,"device":null,"rounds":1,"peers":[{"peer":"p\u001b]0;x\u0007","here":false,"why":"\u001b[31m\u202e"}]}"#;
    place.file("rows.jsonl", &format!("{run_line}\n"));
    run(&place, "report --from rows.jsonl", 0);
    for name in ["report.html", "report.md"] {
        let report = std::fs::read_to_string(place.path().join(name)).unwrap();
        assert!(!report.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{name}: {report}");
    }
    let page = std::fs::read_to_string(place.path().join("report.html")).unwrap();
    assert!(page.contains("\\u001b[31m\\u202e"), "{page}");
}

const NORM_PRODUCT: &str = "norm_matmul m=1 n=64 k=64 dtype=f32";

/// A description under the key of templates from a folder is held against those, and what differs is neither served nor sealed.
#[test]
fn a_record_with_another_description_than_its_template_is_not_taken() {
    let place = Place::new();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/norm_product");
    let given = |line: &str, code: i32| {
        let out = place.jitune(&words(line)).arg("--templates").arg(&own).output().unwrap();
        assert_eq!(out.status.code(), Some(code), "{line}: {}", text(&out));
        text(&out)
    };
    let tune = "tune --target cpu --threads 1 --nominal-ceilings --trials 1 --budget 30 --problem norm_".to_string();
    given(&format!("{tune} --db db"), 0);
    assert!(given(&format!("{tune} --db db"), 0).contains("1 stored before"));
    given("export --target cpu --db db -o good.jitune", 0);
    let mut won = records(&place, "db").into_iter().find(|r| r["kind"] == "winner").unwrap();
    won["body"]["description"]["launch"][0]["args"].as_array_mut().unwrap().swap(0, 1);
    // As if it had always been so.
    place.file("db/journal.jsonl", &sealed(&won));
    std::fs::remove_file(place.path().join("db/index.bin")).unwrap();
    let said = given("explain --target cpu --threads 1 --db db --problem norm_", 0);
    assert!(said.contains("not that of its template"), "{said}");
    let said = given("export --target cpu --db db -o bad.jitune", 1);
    assert!(said.contains("not that of its template") && !place.path().join("bad.jitune").exists(), "{said}");
    let said = given(&format!("{tune} --db db"), 0);
    assert!(!said.contains("1 stored before"), "{said}");
    given("export --target cpu --db db -o good.jitune", 0);
}

/// A small problem tuned into `db`, and its bundle.
fn tuned(place: &Place) {
    let out = place.jitune(&words(&format!("{TUNE} --db db"))).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    let out = place.jitune(&words("export --target cpu --db db -o b.jitune")).output().unwrap();
    assert!(matches!(out.status.code(), Some(0 | 1)), "{}", text(&out));
    assert!(place.path().join("b.jitune").exists(), "{}", text(&out));
}

const TUNE: &str =
    "tune --target cpu --threads 1 --nominal-ceilings --trials 1 --budget 20 --problem gelu_rows=4_cols=64_dtype=f32";

/// A command line; an underscore in a problem is a space.
fn words(line: &str) -> Vec<&str> {
    let word = |w| match w {
        "norm_" => NORM_PRODUCT,
        w if w.contains("rows=4_") => "gelu rows=4 cols=64 dtype=f32",
        w => w,
    };
    line.split(' ').map(word).collect()
}

fn quiet(out: &Output, what: &str) {
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(!stderr.contains("panicked") && !stderr.contains("worker lost"), "{what}: {}", text(out));
    assert!(out.status.code().is_some_and(|code| (0..=5).contains(&code)), "{what}: {}", text(out));
}

#[test]
fn an_output_that_takes_nothing_is_an_error_and_no_panic() {
    let place = Place::new();
    tuned(&place);
    let run = r#"{"kind":"run","at":0,"jitune":"0","command":"c","model":null,"device":null,"rounds":1}"#;
    place.file("rows.jsonl", &format!("{run}\n"));
    place.file("ours.jsonl", &ours());
    let full = || Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
    for line in [
        "model llama-3.2-1b --target cpu",
        "model llama-3.2-1b --target cpu --json",
        "explain --target cpu --db db --problem gelu_rows=4_",
        "try gelu_rows=4_ --target cpu --threads 1 --rounds 1",
        "inspect b.jitune",
        "verify b.jitune --threads 1 --slack 1000",
        "verify b.jitune --threads 1 --slack 1000 --json",
        "export --target cpu --db db -o c.jitune --json",
        "db list --db db",
        "db list --db db --json",
        "db show gelu --db db",
        "db verify --db db",
        "db gc --db db --dry-run",
        "db merge ours.jsonl --db db",
        "db export-journal out.jsonl --db db",
        "doctor --db db",
        "doctor --db db --json",
        "report --from rows.jsonl",
        "report --from rows.jsonl --readme",
        "db export-journal - --db db",
        "--help",
        "tune --help",
        "--version",
        &format!("{TUNE} --db db"),
        &format!("{TUNE} --db db --json"),
        &format!("{TUNE} --db db2"),
    ] {
        let out = place.jitune(&words(line)).stdout(full()).stderr(Stdio::piped()).output().unwrap();
        quiet(&out, line);
        assert_eq!(out.status.code(), Some(4), "{line}: {}", text(&out));
        assert!(String::from_utf8_lossy(&out.stderr).contains("standard output: "), "{line}: {}", text(&out));
        let out = place.jitune(&words(line)).stdout(full()).stderr(full()).output().unwrap();
        assert_eq!(out.status.code(), Some(4), "{line}, both full: {}", text(&out));
        // Closed altogether: there is nobody to tell, and the work is done.
        for closed in [">&-", ">&- 2>&-", ">&- 2>&- <&-"] {
            let mut command = Command::new("sh");
            command.arg("-c").arg(format!("exec \"$0\" \"$@\" {closed}")).arg(env!("CARGO_BIN_EXE_jitune"));
            let out = command.args(words(line)).current_dir(place.path()).output().unwrap();
            quiet(&out, &format!("{line} {closed}"));
        }
    }
    // What could not be said was stored all the same.
    let out = place.jitune(&words("db list --db db2")).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("gelu"), "{}", text(&out));
}

#[test]
fn folders_may_have_any_name() {
    let place = Place::new();
    let odd = |name: &str| OsString::from_vec([name.as_bytes(), b"\xff\xfe"].concat());
    let mut tune = place.jitune(&words(TUNE));
    std::fs::create_dir(place.path().join(odd("tmp"))).unwrap();
    tune.arg("--db").arg(odd("db")).env("TMPDIR", place.path().join(odd("tmp")));
    let out = tune.output().unwrap();
    quiet(&out, "tune");
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    assert!(text(&out).contains("1 of 1 problems have winners"), "{}", text(&out));
    let mut export = place.jitune(&words("export --target cpu --arch all"));
    let out = export.arg("--db").arg(odd("db")).arg("-o").arg(odd("bundle")).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    let out = place.jitune(&words("verify --slack 1000 --threads 1")).arg(odd("bundle")).output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    // Paths in JSON are text, whatever they are called.
    let json = |line: &str, name: &str, code: i32| {
        let out = place.jitune(&words(line)).arg(odd(name)).arg("--json").output().unwrap();
        quiet(&out, line);
        assert_eq!(out.status.code(), Some(code), "{line}: {}", text(&out));
        serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()
    };
    let mut export = place.jitune(&["db", "export-journal", "--json", "--db"]);
    let out = export.arg(odd("db")).arg(odd("journal")).output().unwrap();
    quiet(&out, "db export-journal");
    assert!(out.status.code() == Some(0) && text(&out).contains("journal\u{fffd}"), "{}", text(&out));
    place.file(
        "rows.jsonl",
        "{\"kind\":\"run\",\"at\":0,\"jitune\":\"0\",\"command\":\"c\",\"model\":null,\"device\":null,\"rounds\":1}\n",
    );
    let said = json("report --from rows.jsonl -o", "report", 0);
    assert!(said["files"][0].as_str().unwrap().contains("report\u{fffd}"), "{said}");
    std::fs::create_dir_all(place.path().join(odd("db")).join("artifacts/zz")).unwrap();
    std::fs::write(place.path().join(odd("db")).join("artifacts/zz/none"), "x").unwrap();
    let said = json("db verify --db", "db", 1);
    assert!(said["bad_artifacts"][0].as_str().unwrap().contains("db\u{fffd}"), "{said}");
    std::fs::remove_dir_all(place.path().join(odd("db")).join("artifacts/zz")).unwrap();
    let mut compare = place.jitune(&words(
        "compare --quick --rounds 1 --target cpu --threads 1 --budget 20 --peers cpu --problem gelu_rows=4_",
    ));
    compare.arg("--db").arg(odd("db")).arg("-o").arg(odd("out"));
    // Peers are told paths as text.
    let out = compare.env("TMPDIR", place.path().join(odd("tmp"))).output().unwrap();
    quiet(&out, "compare");
    assert_eq!(out.status.code(), Some(2), "{}", text(&out));
    assert!(text(&out).contains("TMPDIR"), "{}", text(&out));
    let out = compare.env_remove("TMPDIR").output().unwrap();
    assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    assert!(place.path().join(odd("out")).join("report.md").exists());
    let out = place.jitune(&[]).arg(odd("tune")).output().unwrap();
    assert_eq!(out.status.code(), Some(2), "{}", text(&out));
    quiet(&out, "a command of no name");
}

/// Builds a library that is loaded before the program's own.
fn preload(place: &Place, name: &str, code: &str) -> OsString {
    let source = place.file(&format!("{name}.c"), code);
    let library = source.with_extension("so");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").status();
    assert!(built.unwrap().success());
    library.into()
}

#[test]
fn a_clock_before_1970_is_no_reason_to_fail() {
    let place = Place::new();
    let clock = preload(
        &place,
        "clock",
        "#define _GNU_SOURCE
        #include <dlfcn.h>
        #include <time.h>
        int clock_gettime(clockid_t id, struct timespec* t) {
            int done = ((int (*)(clockid_t, struct timespec*))dlsym(RTLD_NEXT, \"clock_gettime\"))(id, t);
            if (id == CLOCK_REALTIME) t->tv_sec -= 3000000000;
            return done;
        }
        time_t time(time_t* t) { time_t now = -100000; if (t) *t = now; return now; }
        ",
    );
    place.file("ours.jsonl", &ours());
    for (line, codes) in [
        (&*format!("{TUNE} --db db"), &[0][..]),
        (&format!("{TUNE} --db db --again"), &[0]),
        ("export --target cpu --db db -o b.jitune", &[0]),
        ("verify b.jitune --threads 1 --slack 1000", &[0]),
        ("inspect b.jitune", &[0]),
        ("db gc --db db --trials-older-than 1", &[0]),
        ("db list --db db", &[0]),
        // Records of today are of this clock's future: refused with the reason, not merged to win for ever.
        ("db merge --db db ours.jsonl", &[4]),
        ("doctor --db db", &[0]),
        (
            "compare --quick --rounds 1 --target cpu --threads 1 --budget 20 --peers cpu --db db -o out --problem gelu_rows=4_",
            &[0],
        ),
    ] {
        let out = place.jitune(&words(line)).env("LD_PRELOAD", &clock).output().unwrap();
        quiet(&out, line);
        assert!(codes.contains(&out.status.code().unwrap()), "{line}: {}", text(&out));
    }
}

#[test]
fn a_machine_that_gives_no_threads_is_an_error_soon() {
    let place = Place::new();
    let few = preload(
        &place,
        "few",
        "#define _GNU_SOURCE
        #include <dlfcn.h>
        #include <errno.h>
        #include <pthread.h>
        #include <stdlib.h>
        static int used;
        typedef int (*create)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
        struct start { void* (*f)(void*); void* x; };
        static void* run(void* given) {
            struct start s = *(struct start*)given;
            free(given);
            void* done = s.f(s.x);
            __sync_fetch_and_sub(&used, 1);
            return done;
        }
        int pthread_create(pthread_t* t, const pthread_attr_t* a, void* (*f)(void*), void* x) {
            if (__sync_fetch_and_add(&used, 1) >= atoi(getenv(\"THREADS\"))) {
                __sync_fetch_and_sub(&used, 1);
                return EAGAIN;
            }
            struct start* s = malloc(sizeof *s);
            *s = (struct start){f, x};
            return ((create)dlsym(RTLD_NEXT, \"pthread_create\"))(t, a, run, s);
        }
        ",
    );
    for threads in [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 14, 16] {
        let db = format!("db{threads}");
        for line in [&*format!("{TUNE} --compilers 2 --db {db}"), &format!("db gc --dry-run --db {db}")] {
            let begun = Instant::now();
            let mut command = place.jitune(&words(line));
            let out = command.env("LD_PRELOAD", &few).env("THREADS", threads.to_string()).output().unwrap();
            quiet(&out, &format!("{threads} threads: {line}"));
            assert!(begun.elapsed() < Duration::from_secs(30), "{threads} threads: {line}: {:?}", begun.elapsed());
        }
    }
    assert!(place.alive().is_empty(), "{:?}", place.alive());
}

#[test]
fn numbers_that_mean_nothing_are_refused_by_name() {
    let place = Place::new();
    tuned(&place);
    let compare = "compare --quick --target cpu --db db --no-tune --peers cpu --problem gelu_rows=4_";
    for (line, code, said) in [
        (format!("{compare} --warm NaN"), 2, "--warm"),
        (format!("{compare} --warm=-1"), 2, "--warm"),
        (format!("{compare} --warm 1e300"), 2, "--warm"),
        (format!("{compare} --seconds NaN"), 2, "--seconds"),
        (format!("{compare} --seconds inf"), 2, "--seconds"),
        (format!("{compare} --rounds 4294967295"), 2, "--rounds"),
        (format!("{compare} --rounds 1 --threads 1 --budget 18446744073709551615"), 0, ""),
        (format!("{TUNE} --db db --near-roofline NaN"), 2, "--near-roofline"),
        (format!("{TUNE} --db db --compilers 1000000"), 2, "--compilers"),
        (format!("{TUNE} --db db --again --json").replace("20", "18446744073709551615"), 0, ""),
        (format!("{TUNE} --db db --db-wait 18446744073709551615"), 0, ""),
        (format!("{TUNE} --db db --again").replace("--threads 1", "--threads 100000"), 3, "--threads"),
        (format!("{TUNE} --db db --again").replace("--threads 1", "--threads 18446744073709551615"), 3, "--threads"),
        ("verify b.jitune --threads 100000".into(), 3, "--threads"),
        ("verify b.jitune --gpus x".into(), 2, "--gpus"),
        ("verify b.jitune --gpus 0,0".into(), 2, "--gpus"),
        ("verify b.jitune --gpus ,".into(), 2, "--gpus"),
        ("model llama-3.2-1b --target cpu --gpus=-1".into(), 2, "--gpus"),
        ("verify b.jitune --slack inf".into(), 2, "--slack"),
        ("verify b.jitune --slack -1".into(), 2, "it must lie in 1..=1000"),
        ("verify b.jitune --mean nan".into(), 2, "--mean"),
        ("verify b.jitune --mean 0".into(), 2, "--mean"),
        ("verify b.jitune --worst nan".into(), 2, "--worst"),
        ("verify b.jitune --worst -1".into(), 2, "--worst <RATIO>': it must lie in"),
        ("verify b.jitune --threads 0".into(), 2, "--threads"),
        ("try gelu_rows=4_ --target cpu --top 0".into(), 2, "--top"),
        (format!("{TUNE} --db db").replace("--trials 1", "--trials 0"), 2, "--trials"),
        (format!("{TUNE} --db db --seed -1"), 2, "'-1' for '--seed"),
        ("db gc --db db --grace 18446744073709551615".into(), 0, ""),
    ] {
        let out = place.jitune(&words(&line)).output().unwrap();
        quiet(&out, &line);
        assert_eq!(out.status.code(), Some(code), "{line}: {}", text(&out));
        assert!(String::from_utf8_lossy(&out.stderr).contains(said), "{line}: {}", text(&out));
    }
}

/// A report is as large as what it shows: one row's number does not make it eat the machine.
#[test]
fn rows_that_nobody_measured_make_no_report() {
    let place = Place::new();
    let run = r#"{"kind":"run","at":0,"jitune":"0","command":"c","model":null,"device":null,"rounds":1}"#;
    for us in ["1e308", "-1e308", "1e-308", "0", "1e18"] {
        let times = format!(r#"{{"median_us":{us},"low_us":{us},"high_us":{us},"samples_us":[{us}]}}"#);
        let row = format!(
            r#"{{"kind":"row","problem":"gelu rows=1 cols=8","peer":"jitune","way":"tuned","covers":"all","state":"ok","kernel":{times}}}"#
        );
        place.file("rows.jsonl", &format!("{run}\n{row}\n"));
        let mut command = Command::new("sh");
        command.arg("-c").arg("ulimit -v 1000000; exec \"$0\" report --from rows.jsonl");
        let out = command.arg(env!("CARGO_BIN_EXE_jitune")).current_dir(place.path()).output().unwrap();
        quiet(&out, us);
        assert_eq!(out.status.code(), Some(4), "{us}: {}", text(&out));
        assert!(String::from_utf8_lossy(&out.stderr).contains("line 2: a time in us"), "{us}: {}", text(&out));
    }
}

/// A winner of a journal from elsewhere is compiled, judged and timed, and nothing else is tried; where its config is none that
/// compiles, the search is what it would be without it.
#[test]
fn a_merged_winner_is_taken_over_when_it_is_what_it_says() {
    // A fast machine reads these bytes faster than processors are said to: no reason to try one candidate alone.
    const PROBLEM: &str = "matmul m=1 n=96 k=512 dtype=f32";
    let place = Place::new();
    let tune = |db: &str| {
        let args = ["tune", "--json", "--nominal-ceilings", "--target", "cpu", "--threads", "1", "--problem", PROBLEM];
        let out = place.jitune(&[&args[..], &["--trials", "5", "--db", db]].concat()).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", text(&out));
        let out = place.jitune(&["db", "export-journal", "--db", db, "all.jsonl"]).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", text(&out));
        let all = std::fs::read_to_string(place.path().join("all.jsonl")).unwrap();
        std::fs::remove_file(place.path().join("all.jsonl")).unwrap();
        let records = all.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["rec"].take());
        let (winners, trials): (Vec<_>, Vec<_>) = records.partition(|r| r["kind"] == "winner");
        (winners.last().unwrap().clone(), trials.len())
    };
    let (won, tried) = tune("first");
    assert!(tried > 1, "{tried}");
    let merged = |db: &str, rec: &serde_json::Value| {
        place.file("winners.jsonl", &sealed(rec));
        let out = place.jitune(&["db", "merge", "winners.jsonl", "--db", db]).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", text(&out));
    };
    let told = |slower: f64| {
        let mut rec = won.clone();
        let times = |v: &serde_json::Value| serde_json::json!(v.as_f64().unwrap() * slower);
        let evidence = &mut rec["body"]["evidence"];
        evidence["median_us"] = times(&evidence["median_us"]);
        let samples: Vec<_> = evidence["samples_us"].as_array().unwrap().iter().map(times).collect();
        evidence["samples_us"] = samples.into();
        evidence["roofline_share"] = (evidence["roofline_share"].as_f64().unwrap() / slower).into();
        rec
    };
    // Neither a busy machine nor a calm one makes it slower than this by more than what is allowed.
    let mut said = told(100.0);
    // What else it says was seen elsewhere, and is in no record of what was seen here.
    let evidence = &mut said["body"]["evidence"];
    (evidence["ties"], evidence["space"]) = (vec!["never seen here"; 1000].into(), 1_000_000_000.into());
    evidence["trials"] = u32::MAX.into();
    merged("same", &said);
    let (winner, tried) = tune("same");
    let of = |rec: &serde_json::Value, what: &str| rec["body"]["evidence"][what].clone();
    assert_eq!((&winner["body"]["config"], tried), (&won["body"]["config"], 1), "{winner}");
    assert_eq!((of(&winner, "trials"), of(&winner, "ties")), (1.into(), serde_json::json!([])));
    assert_eq!(of(&winner, "space"), of(&won, "space"));
    assert_ne!(of(&winner, "samples_us"), of(&won, "samples_us"));
    // Where something faster was measured here, the search goes on.
    let journal = std::fs::read_to_string(place.path().join("first/journal.jsonl")).unwrap();
    let mut trials = journal.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["rec"].take());
    let known = |r: &serde_json::Value| r["kind"] == "trial" && r["sub"] != won["body"]["config"];
    let mut faster = trials.find(|r| known(r) && r["body"]["verdict"] == "measured").unwrap();
    let samples = faster["body"]["samples_us"].as_array().unwrap().len();
    faster["body"]["samples_us"] = vec![0.01; samples].into();
    place.file("beaten/journal.jsonl", &sealed(&faster));
    merged("beaten", &told(100.0));
    assert!(tune("beaten").1 > 2);
    // One that is not as fast as its record says is one among others.
    merged("boast", &told(0.01));
    let (_, tried) = tune("boast");
    assert!(tried > 1, "{tried}");
    let mut none = won.clone();
    let config: Vec<&str> = won["body"]["config"].as_str().unwrap().split(' ').collect();
    let (name, _) = config[0].split_once('=').unwrap();
    none["body"]["config"] = [&[format!("{name}=7919").as_str()][..], &config[1..]].concat().join(" ").into();
    // A value that its tunable does not have: the line is not taken.
    place.file("winners.jsonl", &sealed(&none));
    let out = place.jitune(&["db", "merge", "winners.jsonl", "--db", "none"]).output().unwrap();
    assert_eq!(out.status.code(), Some(4), "{}", text(&out));
    let (winner, tried) = tune("none");
    assert!(tried > 1 && !winner["body"]["config"].as_str().unwrap().contains("7919"), "{tried} {winner}");
}

/// A merged record that is as slow as it says, where others are predicted to be far better, ends no search.
#[test]
fn a_merged_winner_that_is_predicted_to_be_far_from_the_best_is_one_among_others() {
    let place = Place::new();
    let device = jitune::backend::cpu::describe(Some(1));
    let library = jitune::template::Library::built_in().unwrap();
    // A problem with a config that is predicted to take more than three times what the best does.
    let (text_of, template, slow) = [16, 24, 32, 12]
        .into_iter()
        .find_map(|m| {
            let text = format!("matmul m={m} n=256 k=256 dtype=f32");
            let problem = text.parse().unwrap();
            let mut all = Vec::new();
            for t in library.for_problem(&problem, &device).unwrap() {
                let space = jitune::space::enumerate(&t.recipe, &problem, &device).unwrap();
                all.extend(space.candidates.into_iter().map(|c| (t.clone(), c)));
            }
            all.sort_by(|(_, a), (_, b)| a.cost_us.total_cmp(&b.cost_us));
            let least = all.first().map(|(_, best)| best.cost_us)?;
            let (template, worst) = all.pop().filter(|(_, worst)| worst.cost_us > 3.05 * least)?;
            Some((text, template, worst.config.to_string()))
        })
        .unwrap();
    let tune = |db: &str| {
        let args = ["tune", "--nominal-ceilings", "--target", "cpu", "--threads", "1", "--trials", "4"];
        let out = place.jitune(&[&args[..], &["--problem", &text_of, "--db", db]].concat()).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{}", text(&out));
        let (winners, trials): (Vec<_>, Vec<_>) = records(&place, db).into_iter().partition(|r| r["kind"] == "winner");
        std::fs::remove_file(place.path().join("all.jsonl")).unwrap();
        (winners.last().unwrap().clone(), trials.len())
    };
    let (mut rec, _) = tune("first");
    rec["body"]["config"] = slow.into();
    rec["body"]["description"] = serde_json::to_value(&template.recipe.description).unwrap();
    let evidence = &mut rec["body"]["evidence"];
    let times = |v: &serde_json::Value| serde_json::Value::from(v.as_f64().unwrap() * 1e4);
    let median = times(&evidence["median_us"]);
    evidence["median_us"] = median;
    let samples: Vec<_> = evidence["samples_us"].as_array().unwrap().iter().map(times).collect();
    evidence["samples_us"] = samples.into();
    evidence["roofline_share"] = (evidence["roofline_share"].as_f64().unwrap() / 1e4).into();
    place.file("slow.jsonl", &sealed(&rec));
    run(&place, "db merge slow.jsonl --db slow", 0);
    let (winner, tried) = tune("slow");
    assert!(tried > 1 && winner["body"]["config"] != rec["body"]["config"], "{tried} {winner}");
}
