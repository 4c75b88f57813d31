//! A program that tunes with the library alone, as `examples/tune_as_library.rs` does. This one is its own worker, so it
//! has no harness of Rust's tests, whose `main` is not ours.

#[path = "../examples/tune_as_library.rs"]
#[allow(dead_code)]
mod example;

use jitune::db::Db;
use jitune::device::DeviceId;
use jitune::key::Context;
use jitune::problem::Problem;
use jitune::template::{Library, Template};
use jitune::tune;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn main() {
    if std::env::var_os(FORGETS).is_none() {
        jitune::worker_main();
        a_program_that_forgets_its_workers_is_told();
        println!("test a_program_that_forgets_its_workers_is_told ... ok");
    }
    let folder = tempfile::tempdir().unwrap();
    let (report, found) = example::tune(folder.path()).unwrap();
    assert!(report.failed().next().is_none() && report.stored() == 0, "{report:?}");
    assert!(report.winners().all(|w| w.evidence.trials > 0 && w.evidence.compared > 0));
    assert!(found.iter().any(|line| line.starts_with("matmul m=1 n=256 k=256")), "{found:?}");
    // Again, they are stored; a search that was cut off, on a busy machine, is gone on with.
    let (mut before, mut found) = (report, found);
    for _ in 0..10 {
        let ended = before.winners().filter(|w| !w.evidence.cut_off).count();
        let (again, found_again) = example::tune(folder.path()).unwrap();
        assert_eq!(again.stored(), ended);
        let same = found_again == found;
        (before, found) = (again, found_again);
        if ended == 2 {
            assert!(same, "{found:?}");
            break;
        }
    }
    assert_eq!(before.stored(), 2);
    println!("test a_program_tunes_with_the_library_alone ... ok");
    a_look_up_has_no_time_that_could_be_up(folder.path());
    println!("test a_look_up_has_no_time_that_could_be_up ... ok");
    a_budget_ends_what_many_lanes_have_asked_for(&folder.path().join("short"));
    println!("test a_budget_ends_what_many_lanes_have_asked_for ... ok");
    who_waits_for_a_turn_is_told_at_once(&folder.path().join("stopped"));
    println!("test who_waits_for_a_turn_is_told_at_once ... ok");
    sizes_between_try_what_was_measured_for_others(&folder.path().join("narrow"));
    lanes_take_turns(&folder.path().join("lanes"));
    println!("test lanes_take_turns ... ok");
    kinds_share_the_time_and_keep_their_reports(&folder.path().join("kinds"));
    println!("test kinds_share_the_time_and_keep_their_reports ... ok");
    println!("test sizes_between_try_what_was_measured_for_others ... ok");
}

/// Says that this program is not to call `worker_main`.
const FORGETS: &str = "JITUNE_TEST_FORGETS";

/// Its worker is the program again, which would start a worker.
fn a_program_that_forgets_its_workers_is_told() {
    let out = std::process::Command::new(std::env::current_exe().unwrap()).env(FORGETS, "1").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("calls jitune::worker_main() at the start of its main"), "{said}");
}

/// Describing a device may take long, as a GPU does, and then nothing is tried.
fn a_look_up_has_no_time_that_could_be_up(folder: &Path) {
    let slow = folder.join("slow");
    let this = std::env::current_exe().unwrap();
    std::fs::write(&slow, format!("#!/bin/sh\nsleep 3\nexec '{}' \"$@\"\n", this.display())).unwrap();
    std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (db, library) = (Db::open(folder, jitune::journal::options()).unwrap(), Library::built_in().unwrap());
    let problems: Vec<Problem> =
        ["matmul m=1 n=256 k=256", "argmax rows=3 cols=7"].map(|t| format!("{t} dtype=f32").parse().unwrap()).into();
    let options = tune::Options {
        exe: Some(slow),
        devices: vec![DeviceId::Cpu(0)],
        budget: Some(Duration::ZERO),
        stored_only: true,
        ..tune::Options::default()
    };
    let report = tune::run(&db, &library, &problems, &options, &(), &AtomicBool::new(false)).unwrap();
    assert_eq!((report.stored(), report.winners().count(), report.failed().count()), (1, 1, 0), "{report:?}");
}

/// As on a GPU: the candidates of some problems are compiled while those of another are measured.
fn lanes_take_turns(folder: &Path) {
    let texts = [
        "rmsnorm rows=8 cols=64",
        "silu_mul rows=4 cols=64",
        "gelu rows=4 cols=64",
        "matmul m=8 n=64 k=64",
        "matmul m=16 n=64 k=64",
    ];
    let problems: Vec<Problem> = texts.iter().map(|t| format!("{t} dtype=f32").parse().unwrap()).collect();
    let library = Library::built_in().unwrap();
    let tune = |name: &str, lanes: usize| {
        let db = Db::open(folder.join(name), jitune::journal::options()).unwrap();
        let options = tune::Options {
            devices: vec![DeviceId::Cpu(1)],
            budget: Some(Duration::from_secs(120)),
            trials: Some(6),
            nominal: true,
            near_roofline: 0.0,
            lanes: Some(lanes),
            ..tune::Options::default()
        };
        let heard = Heard::default();
        let report = tune::run(&db, &library, &problems, &options, &heard, &AtomicBool::new(false)).unwrap();
        let heard = heard.0.into_inner().unwrap();
        assert_eq!(report.winners().count(), problems.len(), "{report:?}");
        // Who is begun before the first has won.
        let won = heard.iter().position(|(won, _)| *won).unwrap();
        let longest = |lanes| lanes == 1 || heard[..won].iter().any(|(_, p)| p.op().name == "matmul");
        assert!(longest(lanes), "the longest family begins first: {heard:?}");
        (heard[..won].len(), heard.into_iter().filter(|(won, _)| !won).map(|(_, p)| p).collect::<BTreeSet<_>>())
    };
    let (alone, all) = tune("one", 1);
    let (beside, same) = tune("three", 3);
    assert_eq!((alone, beside, all), (1, 3, same));
}

/// Whether a problem has won, or is begun, in the order in which it is told.
#[derive(Default)]
struct Heard(Mutex<Vec<(bool, Problem)>>);

impl tune::Observer for Heard {
    fn event(&self, event: &tune::Event) {
        let said = match event {
            tune::Event::Problem { problem, .. } => (false, *problem),
            tune::Event::Won { winner, .. } => (true, winner.problem),
            _ => return,
        };
        self.0.lock().unwrap().push(said);
    }
}

/// This program, whose workers take a second to start.
fn slow_to_start(folder: &Path) -> PathBuf {
    std::fs::create_dir(folder).unwrap();
    let slow = folder.join("slow");
    let this = std::env::current_exe().unwrap();
    std::fs::write(&slow, format!("#!/bin/sh\nsleep 1\nexec '{}' \"$@\"\n", this.display())).unwrap();
    std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755)).unwrap();
    slow
}

/// Forty lanes have asked for hundreds of candidates when the time is up: no compiler is started for any of those.
fn a_budget_ends_what_many_lanes_have_asked_for(folder: &Path) {
    let slow = slow_to_start(folder);
    let (db, library) = (Db::open(folder, jitune::journal::options()).unwrap(), Library::built_in().unwrap());
    let problems: Vec<Problem> =
        (1..=40).map(|i| format!("matmul m=64 n={} k=64 dtype=f32", 16 * i).parse().unwrap()).collect();
    let options = tune::Options {
        exe: Some(slow),
        devices: vec![DeviceId::Cpu(1)],
        budget: Some(Duration::from_secs(2)),
        nominal: true,
        lanes: Some(40),
        ..tune::Options::default()
    };
    let begun = Instant::now();
    let report = tune::run(&db, &library, &problems, &options, &(), &AtomicBool::new(false)).unwrap();
    assert!(
        report.failed().count() > 0 && begun.elapsed() < Duration::from_secs(5),
        "{:?} {report:?}",
        begun.elapsed()
    );
}

/// Forty lanes wait for a device that a candidate without an end holds, and whose workers take a second to start: told to stop, the run
/// does not start one for each of them.
fn who_waits_for_a_turn_is_told_at_once(folder: &Path) {
    let slow = slow_to_start(folder);
    let templates = folder.join("templates");
    std::fs::create_dir(&templates).unwrap();
    let description = r#"
        name = "endless"
        target = "cpu"
        op = "gelu"
        summary = "never ends"
        when = "dtype == 'f32'"
        [tunables]
        which = [0]
        [cost]
        us = "0.001"
        [defines]
        simd = "max(dev.simd, 16)"
        [[launch]]
        entry = "endless"
        grid = ["1", "1", "1"]
        block = "1"
        args = []
    "#;
    let code = "#include \"base.h\"\nvoid endless(const jt_arg *args, long task, long tasks) {\n  \
        (void)args, (void)task, (void)tasks;\n  for (;;) __asm__ volatile(\"\");\n}\n";
    std::fs::write(templates.join("endless.toml"), description).unwrap();
    std::fs::write(templates.join("endless.c"), code).unwrap();
    let (db, mut library) = (Db::open(folder, jitune::journal::options()).unwrap(), Library::built_in().unwrap());
    library.add_folder(&templates).unwrap();
    let problems: Vec<Problem> =
        (1..=40).map(|i| format!("gelu rows=4 cols={} dtype=f32", 8 * i).parse().unwrap()).collect();
    let options = tune::Options {
        exe: Some(slow),
        devices: vec![DeviceId::Cpu(1)],
        budget: Some(Duration::from_secs(600)),
        patience: Duration::from_secs(300),
        trials: Some(1),
        // The cheapest by prediction, which is the one without an end, and none of the built-in template.
        search: tune::Search::Exhaustive,
        nominal: true,
        lanes: Some(40),
        ..tune::Options::default()
    };
    let stop = AtomicBool::new(false);
    let told = std::thread::scope(|scope| {
        let told = scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(8));
            stop.store(true, Ordering::Relaxed);
            Instant::now()
        });
        let report = tune::run(&db, &library, &problems, &options, &(), &stop).unwrap();
        assert!(report.interrupted && report.winners().next().is_none(), "{report:?}");
        told.join().unwrap()
    });
    assert!(told.elapsed() < Duration::from_millis(3500), "{:?}", told.elapsed());
}

/// A processor with one thread is another kind than the same with two.
fn kinds_share_the_time_and_keep_their_reports(folder: &Path) {
    let problems: Vec<Problem> =
        (1..=40).map(|rows| format!("rmsnorm rows={rows} cols=256 dtype=f32").parse().unwrap()).collect();
    let (db, library) = (Db::open(folder, jitune::journal::options()).unwrap(), Library::built_in().unwrap());
    let options = tune::Options {
        devices: vec![DeviceId::Cpu(1), DeviceId::Cpu(2)],
        // Too little for all of them: neither kind takes it whole.
        budget: Some(Duration::from_secs(10)),
        trials: Some(16),
        ..tune::Options::default()
    };
    let report = tune::run(&db, &library, &problems, &options, &(), &AtomicBool::new(false)).unwrap();
    let units: Vec<Vec<u32>> = report.kinds.iter().map(|k| k.devices.iter().map(|d| d.units).collect()).collect();
    assert_eq!(units, [[1], [2]]);
    for kind in &report.kinds {
        let winners: Vec<_> = kind.winners.iter().flatten().collect();
        assert!(!winners.is_empty() && winners.iter().all(|w| w.device.units == kind.devices[0].units), "{kind:?}");
        assert_eq!(winners.len() + kind.failed.len(), problems.len());
    }
    assert_eq!(report.winners().count() + report.failed().count(), 2 * problems.len());
}

fn sizes_between_try_what_was_measured_for_others(folder: &Path) {
    let problem = |m: i64| -> Problem { format!("matmul m={m} n=256 k=256 dtype=f32").parse().unwrap() };
    let (db, library) = (Db::open(folder, jitune::journal::options()).unwrap(), Library::built_in().unwrap());
    let tune = |problems: &[Problem], narrow: &[Problem]| {
        let options = tune::Options {
            devices: vec![DeviceId::Cpu(1)],
            budget: Some(Duration::from_secs(60)),
            trials: Some(3),
            nominal: true,
            near_roofline: 0.0,
            narrow: narrow.to_vec(),
            ..tune::Options::default()
        };
        tune::run(&db, &library, problems, &options, &(), &AtomicBool::new(false)).unwrap()
    };
    // The one between comes first, and is tuned last.
    let report = tune(&[problem(24), problem(8), problem(64)], &[problem(24)]);
    let winners: Vec<_> = report.winners().collect();
    assert_eq!(winners.iter().map(|w| w.evidence.narrow).collect::<Vec<_>>(), [true, false, false], "{report:?}");
    let device = winners[0].device.clone();
    let context = Context { compiler: jitune::key::compiler(device.target).unwrap(), device: device.clone() };
    let tried = |p: &Problem| -> BTreeSet<String> {
        let templates = library.for_problem(p, &device).unwrap();
        let of = |t: &std::sync::Arc<Template>| db.trials(&context.trials(&library, p, t)).unwrap();
        let named =
            |t: &std::sync::Arc<Template>| of(t).into_iter().map(|r| format!("{} {:?}", t.name(), r.sub)).collect();
        templates.iter().flat_map(|t| -> Vec<String> { named(t) }).collect()
    };
    let neighbours: BTreeSet<String> = tried(&problem(8)).union(&tried(&problem(64))).cloned().collect();
    assert!(!tried(&problem(24)).is_empty() && tried(&problem(24)).is_subset(&neighbours), "{neighbours:?}");
    // It stays what it is, until it is asked for in full.
    assert_eq!(tune(&[problem(24), problem(8), problem(64)], &[problem(24)]).stored(), 3);
    let full = tune(&[problem(24)], &[]);
    assert!(full.stored() == 0 && !full.winners().next().unwrap().evidence.narrow, "{full:?}");
    // Without a neighbour it is searched in full at once.
    let alone = tune(&[problem(40)], &[problem(40)]);
    assert!(!alone.winners().next().unwrap().evidence.narrow, "{alone:?}");
}
