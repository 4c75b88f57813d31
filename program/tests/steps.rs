//! `jitune tune --steps` for real, on a small random model, and what becomes of what it stores.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, events, of_kind, text};
use jitune::backend::cpu;
use jitune::bundle::Bundle;
use jitune::device::DeviceId;
use jitune::key::Context;
use jitune::problem::Problem;
use jitune::template::Library;
use jitune::tune::{self, Observer, Options, Settled, TuneError};
use jitune::winner::{InStep, Winner};
use jitune::{journal, key};
use std::io::BufRead;
use std::process::{Output, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

const HERE: [&str; 6] = ["--target", "cpu", "--threads", "1", "--db", "db"];

fn run(place: &Place, args: &[&str]) -> Output {
    place.jitune(&[args, &HERE].concat()).output().unwrap()
}

fn done(place: &Place, args: &[&str]) -> Output {
    let out = run(place, args);
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    out
}

fn db(place: &Place, args: &[&str]) -> Output {
    let out = place.jitune(&[&["db"], args].concat()).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    out
}

/// How the library is told to tune here.
fn options() -> Options {
    Options {
        exe: Some(env!("CARGO_BIN_EXE_jitune").into()),
        devices: vec![DeviceId::Cpu(1)],
        nominal: true,
        ..Options::default()
    }
}

/// A small random model in the folder `m`.
fn place() -> Place {
    let place = Place::new();
    place.model("llama-tied-llama3");
    place
}

#[test]
fn whole_steps_are_timed_with_kernels_that_came_close() {
    let place = place();
    let steps = ["tune", "--steps", "--model", "./m", "--batch", "1,2", "--context", "128"];
    // Without winners there is nothing to choose from, and it says how to get some.
    let out = run(&place, &steps);
    assert_eq!(out.status.code(), Some(1), "{}", text(&out));
    assert!(text(&out).contains("`jitune tune --model ./m` finds some"), "{}", text(&out));
    let tune = [
        "tune",
        "--model",
        "./m",
        "--batch",
        "1",
        "--prefill",
        "16",
        "--context",
        "128",
        "--trials",
        "3",
        "--budget",
        "90",
    ];
    done(&place, &tune);
    // However long it may take, it takes as long as it does.
    let out = done(&place, &[&steps[..], &["--json", "--budget", "18446744073709551615"]].concat());
    let lines = events(&out.stdout);
    let of_steps = of_kind(&lines, "steps");
    // Of two sequences no product was tuned, and what answers is said.
    assert_eq!(of_steps.len(), 2, "{}", text(&out));
    for step in &of_steps {
        let [before, us] = ["before_us", "us"].map(|name| step[name].as_f64().unwrap());
        assert!(us > 0.0 && us <= before, "{step}");
    }
    let chosen: usize = of_steps.iter().map(|s| s["chosen"].as_array().unwrap().len()).sum();
    // What was chosen is stored beside the winners.
    let stored = events(&db(&place, &["list", "--json", "--db", "db"]).stdout);
    assert_eq!(stored.iter().filter(|w| w["in_steps"] == true).count(), chosen, "{}", text(&out));
    db(&place, &["verify", "--db", "db"]);
    let out = done(&place, &["run", "--model", "./m", "--ids", "1,5,7", "--max-tokens", "3", "--ignore-eos"]);
    assert!(!text(&out).contains("panicked"), "{}", text(&out));
    for (more, code) in [(&["--batch", "0"][..], 2), (&["--problem", "rmsnorm rows=1 cols=8"], 2), (&["--serving"], 2)]
    {
        let out = run(&place, &[&["tune", "--steps", "--model", "./m"], more].concat());
        assert_eq!(out.status.code(), Some(code), "{}", text(&out));
    }
}

/// What stands in for the winner of one context is asked of the other too, which that winner answers.
#[test]
fn what_stands_in_for_a_winner_answers_for_the_sizes_that_it_does() {
    let place = place();
    let sizes = ["--model", "./m", "--batch", "1", "--context", "512"];
    let few = ["--prefill", "16", "--trials", "6", "--budget", "90"];
    let mut decodes = Vec::new();
    // Where others want the processor too, none may have come close by itself.
    for more in [&[][..], &["--again"], &["--again"], &["--again"], &["--again"]] {
        done(&place, &[&["tune"], &sizes[..], &few, more].concat());
        let out = done(&place, &[&["tune", "--steps", "--json"], &sizes[..]].concat());
        let lines = events(&out.stdout);
        assert_eq!(of_kind(&lines, "steps").len(), 2, "{}", text(&out));
        let compared = of_kind(&lines, "compared");
        let mine = compared.iter().filter(|c| c["problem"].as_str().unwrap().starts_with("decode "));
        decodes.extend(mine.map(|c| c["steps"].as_u64().unwrap()));
        if !decodes.is_empty() {
            break;
        }
    }
    assert!(!decodes.is_empty() && decodes.iter().all(|steps| *steps == 2), "{decodes:?}");
}

/// A template for whole steps takes no part in looking for a winner, which is under the key that it has without: it is tried when steps
/// choose, and what they chose of it is sealed as long as it is the same.
#[test]
fn a_template_for_steps_stands_in_and_never_wins() {
    const PROBLEM: &str = "matmul m=1 n=96 k=64 dtype=f32";
    let place = Place::new();
    let (own, built_in) = (place.path().join("t"), concat!(env!("CARGO_MANIFEST_DIR"), "/../kernel-templates/cpu"));
    std::fs::create_dir(&own).unwrap();
    let text_of = |file: &str| std::fs::read_to_string(std::path::Path::new(built_in).join(file)).unwrap();
    let toml = text_of("cpu_gemv.toml").replacen("\"cpu_gemv\"\n", "\"mine\"\nrole = \"step\"\n", 1);
    std::fs::write(own.join("mine.toml"), toml).unwrap();
    std::fs::write(own.join("mine.c"), text_of("cpu_gemv.c")).unwrap();
    let mut library = Library::built_in().unwrap();
    let (device, problem) = (cpu::describe(Some(1)), PROBLEM.parse::<Problem>().unwrap());
    let context = Context { compiler: key::compiler(device.target).unwrap(), device: device.clone() };
    let key = |library: &Library| context.winner(library, &problem, &library.for_problem(&problem, &device).unwrap());
    let in_steps =
        |library: &Library| context.in_steps(library, &problem, &library.for_steps(&problem, &device).unwrap());
    let (without, steps_without) = (key(&library), in_steps(&library));
    library.add_folder(&own).unwrap();
    assert_eq!(key(&library), without);
    assert_ne!(in_steps(&library), steps_without);

    done(&place, &["tune", "--problem", PROBLEM, "--templates", "t", "--trials", "6", "--budget", "60"]);
    let options = options();
    let stop = AtomicBool::new(false);
    let held = jitune::db::Db::open(place.path().join("db"), journal::options()).unwrap();
    let templates = library.for_steps(&problem, &device).unwrap();
    let record = held.winner(&without).unwrap().unwrap();
    let won = journal::winner_of(&record, &library.for_problem(&problem, &device).unwrap()).unwrap();
    let mine = templates.iter().find(|t| t.name() == "mine").unwrap();
    assert!(held.trials(&context.trials(&library, &problem, mine)).unwrap().is_empty(), "tried for a winner");
    let tried = |most: Option<usize>| {
        let options = Options { trials: most, ..options.clone() };
        let _ = tune::rivals(&held, &library, &device, &[problem], 9, &options, &stop).unwrap();
        held.trials(&context.trials(&library, &problem, mine)).unwrap()
    };
    assert_eq!(tried(Some(1)).len(), 1);
    // Where one run stopped, the next one goes on.
    let tried = tried(None);
    assert!(tried.len() > 1, "{tried:?}");
    let right = tried.iter().find(|r| journal::verdict(r).is_some_and(|v| v.median_us().is_some())).unwrap();
    let step = InStep { step: "decode batch=1".into(), us: 90.0, before_us: 100.0, over: won.artifact.clone() };
    let config = right.sub.as_ref().unwrap().parse().unwrap();
    let settled = [Settled { problem, template: "mine".into(), config, step }];
    let report = tune::in_steps(&held, &library, &settled, &options, &Silent, &stop).unwrap();
    assert_eq!((report.winners().count(), report.failed().count()), (1, 0));
    let stored = journal::winner_of(&held.winner(&in_steps(&library)).unwrap().unwrap(), &templates).unwrap();
    assert_eq!(stored.template(), "mine");
    held.close().unwrap();

    let sealed = |more: &[&str]| {
        done(&place, &[&["export", "-o", "b.jitune"], more].concat());
        let bundle = Bundle::open(place.path().join("b.jitune")).unwrap();
        bundle.winners().next().unwrap().winner()
    };
    assert_eq!(sealed(&["--templates", "t"]), stored);
    let verify = place.jitune(&["verify", "b.jitune", "--threads", "1", "--no-timing"]).output().unwrap();
    assert!(verify.status.success(), "{}", text(&verify));
    assert_eq!(sealed(&[]), won, "by a library without it");
    // As a plain winner its record is none.
    let mut false_one = record.clone();
    false_one.body = serde_json::to_value(Winner { evidence: won.evidence.clone(), ..stored }).unwrap();
    assert!(journal::winner(&record).is_some() && journal::winner(&false_one).is_none());
}

struct Silent;

impl Observer for Silent {
    fn event(&self, _: &tune::Event) {}
}

/// What steps run in the place of a winner is sealed, and run, as long as that is the winner; its own time is another matter.
#[test]
fn what_steps_chose_is_sealed_in_the_place_of_its_winner() {
    const PROBLEM: &str = "matmul m=1 n=96 k=64 dtype=f32";
    let place = Place::new();
    done(&place, &["tune", "--problem", PROBLEM, "--trials", "6", "--budget", "60"]);
    let (library, device) = (Library::built_in().unwrap(), cpu::describe(Some(1)));
    let problem: Problem = PROBLEM.parse().unwrap();
    let context = Context { compiler: key::compiler(device.target).unwrap(), device: device.clone() };
    let templates = library.for_problem(&problem, &device).unwrap();
    let winner_key = context.winner(&library, &problem, &templates);
    let options = options();
    let stop = AtomicBool::new(false);
    let held = jitune::db::Db::open(place.path().join("db"), journal::options()).unwrap();
    let won = journal::winner_of(&held.winner(&winner_key).unwrap().unwrap(), &templates).unwrap();
    let rivals = tune::rivals(&held, &library, &device, &[problem], 9, &options, &stop).unwrap();
    let others = |w: &Winner| w.config != won.config || w.template() != won.template();
    assert!(rivals[0].iter().all(|r| others(&r.winner) && !r.code.is_empty()));
    // Any that was right serves as what steps chose.
    let mut right = Vec::new();
    for t in &templates {
        for record in held.trials(&context.trials(&library, &problem, t)).unwrap() {
            let config: jitune::recipe::Config = record.sub.as_ref().unwrap().parse().unwrap();
            let measured = journal::verdict(&record).is_some_and(|v| v.median_us().is_some());
            if measured && (t.name() != won.template() || config != won.config) {
                right.push((t.name().to_string(), config));
            }
        }
    }
    let (template, config) = right.swap_remove(0);
    let step = |over: &str| InStep { step: "decode batch=1".into(), us: 90.0, before_us: 100.0, over: over.into() };
    let settled = |over: &str| {
        let (template, config) = (template.clone(), config.clone());
        [Settled { problem, template, config, step: step(over) }]
    };
    let put = |db: &jitune::db::Db, over: &str| {
        let report = tune::in_steps(db, &library, &settled(over), &options, &Silent, &stop).unwrap();
        assert_eq!((report.winners().count(), report.failed().count()), (1, 0));
    };
    put(&held, &won.artifact);
    let after = journal::winner_of(&held.winner(&winner_key).unwrap().unwrap(), &templates).unwrap();
    assert_eq!(after, won, "the winner is as it was");
    let stored = held.winner(&context.in_steps(&library, &problem, &templates)).unwrap().unwrap();
    let stored = journal::winner_of(&stored, &templates).unwrap();
    assert_eq!((&stored.config, stored.evidence.step.as_ref()), (&config, Some(&step(&won.artifact))));
    assert!(!stored.evidence.samples_us.is_empty() && stored.evidence.compared > 0, "{:?}", stored.evidence);
    held.close().unwrap();

    let sealed = |more: &[&str]| {
        done(&place, &[&["export", "-o", "b.jitune"], more].concat());
        let bundle = Bundle::open(place.path().join("b.jitune")).unwrap();
        assert_eq!(bundle.winners().count(), 1);
        bundle.winners().next().unwrap().winner()
    };
    assert_eq!(sealed(&[]), stored);
    assert_eq!(sealed(&["--alone"]), won);
    let said = text(&done(&place, &["explain", "--problem", PROBLEM]));
    assert!(said.contains("in steps: ") && !said.contains("not used"), "{said}");
    // A journal carries both.
    db(&place, &["export-journal", "--winners", "w.jsonl", "--db", "db"]);
    db(&place, &["merge", "w.jsonl", "--db", "other"]);
    assert_eq!(events(&db(&place, &["list", "--json", "--db", "other"]).stdout).len(), 2);
    // Where they come to, neither is run before it was judged there: not even where the code is, as some code of that name may be.
    let copied =
        std::process::Command::new("cp").args(["-r", "db/artifacts", "other/"]).current_dir(place.path()).status();
    assert!(copied.unwrap().success());
    let said = text(
        &place
            .jitune(&["explain", "--problem", PROBLEM, "--target", "cpu", "--threads", "1", "--db", "other"])
            .output()
            .unwrap(),
    );
    assert!(said.contains("  miss\n") && !said.contains("in steps: "), "{said}");
    let tune = ["tune", "--problem", PROBLEM, "--trials", "6", "--budget", "60", "--target", "cpu", "--threads", "1"];
    assert!(place.jitune(&[&tune[..], &["--db", "other"]].concat()).output().unwrap().status.success());
    let said = text(
        &place
            .jitune(&["explain", "--problem", PROBLEM, "--target", "cpu", "--threads", "1", "--db", "other"])
            .output()
            .unwrap(),
    );
    assert!(said.contains("not used: it came with a merged journal"), "{said}");
    let export = place.jitune(&["export", "-o", "o.jitune", "--target", "cpu", "--db", "other"]).output().unwrap();
    assert!(text(&export).contains("not judged here"), "{}", text(&export));
    let winners = Bundle::open(place.path().join("o.jitune")).unwrap();
    assert!(winners.winners().all(|held| held.evidence().step.is_none()));

    // Of another winner it says nothing.
    let held = jitune::db::Db::open(place.path().join("db"), journal::options()).unwrap();
    put(&held, &"0".repeat(64));
    held.close().unwrap();
    assert_eq!(sealed(&[]), won);
    let said = text(&done(&place, &["explain", "--problem", PROBLEM]));
    assert!(said.contains("not used"), "{said}");
    // What steps do not choose any more is withdrawn.
    let held = jitune::db::Db::open(place.path().join("db"), journal::options()).unwrap();
    put(&held, &won.artifact);
    let not = |problems: &[Problem], compared: bool| {
        tune::not_in_steps(&held, &library, &device, problems, &|w| compared && w.config == config).unwrap()
    };
    assert_eq!([not(&[], true), not(&[problem], false), not(&[problem], true), not(&[problem], true)], [0, 0, 1, 0]);
    held.close().unwrap();
    assert_eq!(sealed(&[]), won);
    let said = text(&done(&place, &["explain", "--problem", PROBLEM]));
    assert!(!said.contains("in steps"), "{said}");
}

/// Templates for steps that hang use up the time that there is, and the rest of what came close serves; and comparing steps ends in time.
#[test]
fn what_hangs_and_what_takes_long_ends_in_time() {
    const PROBLEM: &str = "matmul m=1 n=96 k=64 dtype=f32";
    let place = place();
    let (own, plain) =
        (place.path().join("t"), std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/norm_product"));
    std::fs::create_dir(&own).unwrap();
    let toml = std::fs::read_to_string(plain.join("spin_product.toml")).unwrap();
    let toml = toml.replacen("\"spin_product\"\n", "\"hangs\"\nrole = \"step\"\n", 1);
    std::fs::write(own.join("hangs.toml"), toml.replacen("[0, 3000000]", "[9000000000000001, 9000000000000000]", 1))
        .unwrap();
    std::fs::copy(plain.join("spin_product.c"), own.join("hangs.c")).unwrap();
    done(&place, &["tune", "--problem", PROBLEM, "--trials", "6", "--budget", "60"]);
    let mut library = Library::built_in().unwrap();
    library.add_folder(&own).unwrap();
    let problem: Problem = PROBLEM.parse().unwrap();
    let held = jitune::db::Db::open(place.path().join("db"), journal::options()).unwrap();
    let options = Options { budget: Some(Duration::from_secs(6)), ..options() };
    let begun = Instant::now();
    let stop = AtomicBool::new(false);
    let rivals = tune::rivals(&held, &library, &cpu::describe(Some(1)), &[problem], 9, &options, &stop).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    assert!(rivals.len() == 1 && rivals[0].iter().all(|r| r.winner.template() != "hangs"));
    assert!(matches!(
        tune::rivals(&held, &library, &cpu::describe(Some(1)), &[problem], 9, &options, &AtomicBool::new(true)),
        Err(TuneError::Interrupted)
    ));
    held.close().unwrap();

    let sizes = ["--model", "./m", "--batch", "1,2,4,8", "--context", "512"];
    done(&place, &[&["tune"], &sizes[..], &["--prefill", "16", "--trials", "3", "--budget", "60"]].concat());
    let begun = Instant::now();
    let out = done(&place, &[&["tune", "--steps", "--budget", "0"], &sizes[..]].concat());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}: {}", begun.elapsed(), text(&out));
    assert_eq!(text(&out).matches("the time was up before").count(), 4, "{}", text(&out));
    // A signal ends it at once, and loses nothing that was stored.
    let before = db(&place, &["list", "--json", "--db", "db"]).stdout;
    let mut child = place.jitune(&[&["tune", "--steps", "--json"], &sizes[..], &HERE].concat());
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("compared"));
    let pid = child.id().to_string();
    let begun = Instant::now();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    db(&place, &["verify", "--db", "db"]);
    assert_eq!(db(&place, &["list", "--json", "--db", "db"]).stdout, before);
}
