//! `jitune export`, `inspect` and `verify` as a user runs them, on winners that were stored by hand.

mod common;

#[path = "../../tests/bundle/make.rs"]
#[allow(dead_code)]
mod make;

use jitune::bundle::Bundle;
use jitune::device::{Device, DeviceId};
use jitune::journal;
use jitune::key::Context;
use jitune::problem::Problem;
use jitune::recipe::ExprText;
use jitune::runtime::Runtime;
use jitune::verify::Answers;
use jitune::winner::Winner;
use jitune_db::{Db, OpenOptions};
use make::{COMPILED, LIBRARY, WINNERS, fake};
use std::path::Path;
use std::process::Command;

/// Stores a winner as the tuner does, made by this compiler.
fn store(db: &Db, w: &Winner, code: &[u8], compiler: &str) {
    db.put_artifact(code).unwrap();
    let templates = LIBRARY.for_problem(&w.problem, &w.device).unwrap();
    let context = Context { device: w.device.clone(), compiler: compiler.into() };
    let key = context.winner(&LIBRARY, &w.problem, &templates);
    db.put_winner(&journal::of_winner(key, w).unwrap()).unwrap();
}

/// The program with no compiler, and no database but the folder's own.
fn jitune(folder: &Path, args: &[&str]) -> (i32, String) {
    run(folder, args, Some(""))
}

fn run(folder: &Path, args: &[&str], path: Option<&str>) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_jitune"));
    command.env("JITUNE_DB", folder.join("db")).current_dir(folder).args(args);
    if let Some(path) = path {
        command.env("PATH", path);
    }
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    println!("jitune {}\n{text}", args.join(" "));
    (out.status.code().unwrap(), text)
}

#[test]
fn stored_winners_are_exported_inspected_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(folder.path().join("db"), OpenOptions::default()).unwrap();
    for (w, code) in WINNERS.iter() {
        // An older winner of the same problem does not go in.
        let mut old = w.clone();
        (old.evidence.at, old.artifact) = (1, blake3::hash(b"older code").to_hex().to_string());
        store(&db, &old, b"older code", "old");
        // A time that any machine holds, so that the verdict is about the results.
        let mut new = w.clone();
        new.evidence.median_us = 1e6;
        store(&db, &new, code, "new");
    }
    let gpu = Device::ahead_of_time("sm_90a").unwrap();
    let (w, code) = fake("rmsnorm", "rmsnorm rows=4 cols=2048 dtype=bf16", &gpu, b"a cubin");
    store(&db, &w, &code, "new");
    db.close().unwrap();
    let path = folder.path();

    let (code, text) = jitune(path, &["export", "--target", "cpu", "-o", "m.jitune"]);
    assert!(code == 0 && text.contains(&format!("{} winners", COMPILED.len())), "{text}");
    let bundle = Bundle::open(path.join("m.jitune")).unwrap();
    assert_eq!(bundle.len(), COMPILED.len());
    assert!(bundle.winners().all(|h| h.artifact().bytes != b"older code"));
    // The database sorts the fields of descriptions; what comes out must still evaluate.
    let runtime = Runtime::cpu(&bundle, Some(make::THREADS)).unwrap();
    assert_eq!(runtime.problems().len(), COMPILED.len());

    let (code, text) = jitune(path, &["export", "--arch", "all", "--no-verification", "-o", "all.jitune"]);
    assert!(
        code == 0 && text.contains(&format!("{} winners", COMPILED.len() + 1)) && text.contains("sm_90a"),
        "{text}"
    );
    let (code, text) = jitune(path, &["inspect", "all.jitune"]);
    assert!(code == 0 && text.contains("cpu_gemv") && text.contains("sm_90a"), "{text}");
    let (code, text) = jitune(path, &["inspect", "--json", "m.jitune"]);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, value["winners"].as_array().unwrap().len()), (0, COMPILED.len()));

    let (code, text) = jitune(path, &["verify", "--target", "cpu", "--threads", "2", "all.jitune"]);
    let all_good = text.matches(" good").count() == COMPILED.len();
    assert!(code == 0 && text.contains("skipped: it is cuda code") && all_good, "{text}");
    let (code, text) = jitune(path, &["verify", "--target", "cpu", "--threads", "2", "--served", "all.jitune"]);
    let good = text.matches(" good").count();
    // Norms at 1, 2, 3, 5, 8 rows and more, products at what their rules allow.
    assert!(code == 0 && good > 20 && text.contains("rmsnorm rows=1 cols=96 dtype=f32"), "{text}");
    let drawn = ["verify", "--target", "cpu", "--threads", "2", "--no-timing", "--draw", "20", "--seed", "7"];
    let (code, text) = jitune(path, &[&drawn[..], &["--every", "3", "--json", "all.jitune"]].concat());
    let lines: Vec<serde_json::Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let asked: Vec<&str> = lines.iter().map(|l| l["problem"].as_str().unwrap()).collect();
    let good = lines.iter().filter(|l| l["verdict"] == "good").count();
    // What no winner answers for is found too.
    let refused = lines.iter().filter(|l| l["verdict"] == "failed").count();
    assert!(good > 15 && good + refused + 1 >= lines.len() && lines.len() > 26 && code <= 1, "{code} {text}");
    assert!(["m=1 ", "m=2 ", "m=3 "].iter().all(|m| asked.iter().any(|p| p.contains(m))), "{asked:?}");
    let (_, again) = jitune(path, &[&drawn[..], &["--every", "3", "--json", "all.jitune"]].concat());
    let again: Vec<serde_json::Value> = again.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    assert!(asked.iter().copied().eq(again.iter().map(|l| l["problem"].as_str().unwrap())), "the seed decides");
}

/// The answer comes from the closest device's winner, and portable code, whose own reference is its probe's, is judged by a
/// winner of the problem's contract.
#[test]
fn an_answer_is_of_the_winner_that_is_launched_and_judged_by_its_contract() {
    let device = make::device();
    let probe = WINNERS[5].0.problem.op().probe(WINNERS[5].0.problem.types()).unwrap();
    let (mut far, _) = WINNERS[5].clone();
    // Of another machine with the same processor, with the same config: its code is another, and is not what is launched.
    far.device.silicon.insert("caches".into(), "others".into());
    let code = [&WINNERS[4].1[..], b" far"].concat();
    far.artifact = blake3::hash(&code).to_hex().to_string();
    let portable = make::compiled("cpu_matmul_portable", &probe, &device);
    let bundle = Bundle::seal([(far, code), WINNERS[5].clone(), portable]).unwrap();
    let first = bundle.winners().find(|h| h.problem() == WINNERS[5].0.problem).unwrap();
    assert_ne!(first.artifact().hash(), WINNERS[5].0.artifact, "the other machine's comes first in the file");
    let answers = Answers::new(&bundle, DeviceId::Cpu(make::THREADS)).unwrap();
    let of = |m: i64| answers.of(&WINNERS[5].0.problem.with(&[("m", m)]).unwrap()).unwrap().0;
    assert_eq!(of(16).artifact().hash(), WINNERS[5].0.artifact);
    assert_eq!(of(40).artifact().hash(), WINNERS[5].0.artifact);
    let few = WINNERS[5].0.problem.with(&[("m", 1)]).unwrap();
    let held = of(1);
    assert!(held.description().portable && held.problem() == probe);
    assert_eq!(answers.judge(held, &few).problem(), WINNERS[5].0.problem);
}

#[test]
fn two_bundles_are_timed_beside_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    Bundle::seal([WINNERS[0].clone()]).unwrap().write(path.join("m.jitune")).unwrap();
    let beside = |limits: &[&str]| {
        let args = ["verify", "--target", "cpu", "--threads", "2", "--beside", "m.jitune", "m.jitune"];
        jitune(path, &[&args[..], limits].concat())
    };
    let (code, text) = beside(&["--worst", "1e3", "--mean", "1e3"]);
    assert!(code == 0 && text.contains("1 problems: ") && text.contains("rmsnorm rows=4"), "{text}");
    let (code, text) = beside(&["--worst", "1e-3"]);
    assert!(code == 1 && text.contains("over the limit"), "{text}");
}

#[test]
fn a_size_that_is_answered_wrongly_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    // A norm that computes as many rows as it was tuned for, whatever is asked.
    let (mut w, code) = WINNERS[0].clone();
    for arg in w.description.launches.iter_mut().flat_map(|l| &mut l.args).filter(|a| a.i64.is_some()) {
        arg.i64 = Some(ExprText("4".into()));
    }
    w.description.reuse.legal = ExprText("rows >= 4".into());
    w.evidence.median_us = 1e6;
    Bundle::seal([(w, code)]).unwrap().write(path.join("m.jitune")).unwrap();
    let (code, text) = jitune(path, &["verify", "m.jitune"]);
    assert!(code == 0 && text.contains(" good"), "{text}");
    let (code, text) = jitune(path, &["verify", "--served", "--json", "m.jitune"]);
    let lines: Vec<serde_json::Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let verdicts: Vec<_> =
        lines.iter().map(|l| (l["problem"].as_str().unwrap(), l["verdict"].as_str().unwrap())).collect();
    let full = |rows: u32| {
        let problem: Problem = format!("rmsnorm rows={rows} cols=96 dtype=f32").parse().unwrap();
        problem.full_text()
    };
    let of = |rows: u32, verdict| (full(rows), verdict);
    let expect = [of(4, "good"), of(5, "wrong"), of(8, "wrong")];
    assert!(verdicts.iter().copied().eq(expect.iter().map(|(p, v)| (p.as_str(), *v))), "{verdicts:?}");
    assert_eq!((code, lines[1]["tuned"].as_str()), (1, Some(full(4).as_str())));
    let (code, text) = jitune(path, &["verify", "--no-timing", "--draw", "4", "--seed", "3", "m.jitune"]);
    assert!(
        code == 1 && text.contains("rmsnorm") && text.matches("WRONG").count() + text.matches("FAILED").count() > 0,
        "{text}"
    );
}

#[test]
fn what_is_wrong_has_a_clear_message_and_an_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    // The code of one product under the name of another, sealed with care: right bytes, wrong results.
    let (mut w, _) = WINNERS[2].clone();
    let (_, code) = make::compiled("cpu_gemv", &make::problem("matmul m=1 n=48 k=32 dtype=f32"), &make::device());
    w.artifact = blake3::hash(&code).to_hex().to_string();
    Bundle::seal([(w, code)]).unwrap().write(path.join("wrong.jitune")).unwrap();
    let mut bytes = Bundle::open(path.join("wrong.jitune")).unwrap().as_bytes().to_vec();
    bytes[500] ^= 2;
    std::fs::write(path.join("damaged.jitune"), bytes).unwrap();
    let (mut slow, code) = WINNERS[0].clone();
    slow.evidence.median_us = 1e-3;
    Bundle::seal([(slow, code)]).unwrap().write(path.join("slow.jitune")).unwrap();
    let (other, code) =
        fake("rmsnorm", "rmsnorm rows=4 cols=2048 dtype=bf16", &Device::ahead_of_time("sm_90a").unwrap(), b"x");
    Bundle::seal([(other, code)]).unwrap().write(path.join("other.jitune")).unwrap();
    // A database whose only winner lost its artifact.
    let db = Db::open(path.join("db"), OpenOptions::default()).unwrap();
    let (w, code) = &WINNERS[0];
    store(&db, w, code, "new");
    std::fs::remove_file(db.artifact_path(&w.artifact.parse().unwrap())).unwrap();
    db.close().unwrap();
    for (args, expected, part) in [
        (&["verify", "wrong.jitune"][..], 1, "WRONG"),
        (&["verify", "slow.jitune"], 1, "SLOWER"),
        (&["verify", "slow.jitune", "--no-timing"], 0, "good"),
        (&["verify", "--target", "cpu", "other.jitune"], 1, "no winner is for this machine"),
        (&["verify", "damaged.jitune"], 4, "damaged"),
        (&["verify", "--target", "cuda", "--gpus", "x", "other.jitune"], 2, "--gpus"),
        (&["inspect", "damaged.jitune"], 4, "damaged"),
        (&["inspect", "absent.jitune"], 4, "absent.jitune"),
        (&["verify", "--slack", "0.5", "slow.jitune"], 2, "--slack"),
        (&["export", "--target", "cpu", "-o", "x.jitune"], 1, "is missing or damaged"),
    ] {
        let (code, text) = jitune(path, args);
        assert!(code == expected && text.contains(part), "{args:?}: {code}: {text}");
    }
    assert!(!path.join("x.jitune").exists());
}

#[test]
fn a_winner_of_another_template_than_todays_is_not_exported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    // The templates of a product, as a user has copied them.
    let own = path.join("own");
    std::fs::create_dir(&own).unwrap();
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel-templates/cpu");
    for name in ["cpu_rmsnorm.c", "cpu_rmsnorm.toml"] {
        std::fs::copy(built_in.join(name), own.join(name)).unwrap();
    }
    let tune = ["tune", "--target", "cpu", "--threads", "2", "--trials", "1", "--budget", "20", "--nominal-ceilings"];
    let mine = ["--problem", "rmsnorm rows=4 cols=96 dtype=f32", "--templates", "own"];
    let tune = || assert_eq!(run(path, &[&tune[..], &mine].concat(), None).0, 0);
    let profile = || run(path, &[&["profile", "--target", "cpu", "--threads", "2"], &mine[1..]].concat(), None);
    let export = |more: &[&str]| {
        let list = ["export", "--target", "cpu", "--threads", "2", "-o", "m.jitune"];
        jitune(path, &[&list, &mine[2..], more].concat())
    };
    tune();
    let (code, text) = export(&[]);
    assert!(code == 0 && text.contains("1 winners"), "{text}");
    assert_eq!(profile().0, 0);
    let first = Bundle::open(path.join("m.jitune")).unwrap().winners().next().unwrap().evidence().at;

    // Its code is edited: what was measured is not what would be rendered now.
    let file = own.join("cpu_rmsnorm.c");
    let before = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{before}\nstatic const int edited = 1;\n")).unwrap();
    std::fs::remove_file(path.join("m.jitune")).unwrap();
    let (code, text) = export(&[]);
    assert!(code == 1 && text.contains("compile.templates") && !path.join("m.jitune").exists(), "{text}");
    let (code, text) = profile();
    assert!(code == 1 && text.contains("has no winner"), "{text}");
    let (code, text) = export(&["--stale"]);
    assert!(code == 0 && text.contains("1 winners"), "{text}");

    // Tuned again, both are stored; the newer one counts, until the edit is taken back.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    tune();
    let (code, text) = export(&[]);
    assert!(code == 0 && text.contains("1 winners"), "{text}");
    assert!(Bundle::open(path.join("m.jitune")).unwrap().winners().next().unwrap().evidence().at > first);
    std::fs::write(&file, before).unwrap();
    let (code, text) = export(&[]);
    assert!(code == 0 && text.contains("1 winners"), "{text}");
    assert_eq!(Bundle::open(path.join("m.jitune")).unwrap().winners().next().unwrap().evidence().at, first);
}

#[test]
fn a_kernel_without_an_end_ends_its_verification() {
    let place = common::Place::new();
    let (device, problem) = (make::device(), make::problem("rmsnorm rows=4 cols=96 dtype=f32"));
    let config = make::config("cpu_rmsnorm", &problem, &device);
    let template = LIBRARY.get(device.target, "cpu_rmsnorm").unwrap();
    let mut source = LIBRARY.render(template, &problem, &device, &config).unwrap();
    let before = source.text.len();
    source.text = source.text.replacen("(void)tasks;", "for (volatile int i = 0; !i;) (void)tasks;", 1);
    assert_ne!(source.text.len(), before);
    let (code, _) = jitune::backend::cpu::cc::compile(&source, place.path()).unwrap();
    let winner = make::winner("cpu_rmsnorm", &problem, &device, config, &code);
    Bundle::seal([(winner, code)]).unwrap().write(place.path().join("m.jitune")).unwrap();
    let begun = std::time::Instant::now();
    let out = place.jitune(&["verify", "m.jitune", "--target", "cpu", "--patience", "2"]).output().unwrap();
    let said = common::text(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("rmsnorm rows=4 cols=96 dtype=f32: no end within 2 s"), "{said}");
    assert!(begun.elapsed().as_secs() < 60 && place.alive().is_empty(), "{said}");
}
