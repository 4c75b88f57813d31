//! `jitune compare` as a user runs it, with peers made for this: right, wrong, crashing, slow and missing ones.

use jitune::report::Rows;
use jitune::report::rows::{Row, State};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const FIRST: &str = "matmul m=4 n=64 k=32 dtype=f32";
const SECOND: &str = "matmul m=2 n=64 k=32 dtype=f32";

/// Peers that say what cannot be.
const HOSTILE: [&str; 14] = [
    "us=-5",
    "us=0",
    "us=1e-300",
    "us=1e308",
    "us=1e9",
    "none",
    "twice",
    "stale",
    "endless",
    "wide",
    "many",
    "count",
    "short",
    "nofile",
];

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("peer.py");
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compare/peer.py"), &script).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["right", "wrong", "crash", "slow", "stuck", "partial"].iter().chain(&HOSTILE) {
            symlink(&script, folder.path().join(format!("jitune-peer-{name}"))).unwrap();
        }
        Bench { folder }
    }

    fn command(&self, peers: &str, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jitune"));
        command
            .args(["compare", "--target", "cpu", "--threads", "2", "--problem", FIRST, "--problem", SECOND])
            .args(["--quick", "--rounds", "4", "--budget", "25", "--peers", peers])
            .arg("--peer-dir")
            .arg(self.folder.path())
            .arg("--db")
            .arg(self.folder.path().join("db"))
            .arg("-o")
            .arg(self.out())
            .args(more);
        command
    }

    fn run(&self, peers: &str, more: &[&str]) -> Output {
        self.command(peers, more).output().unwrap()
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    fn rows(&self) -> Rows {
        Rows::read(&std::fs::read(self.out().join("rows.jsonl")).unwrap()).unwrap()
    }
}

fn row<'a>(rows: &'a Rows, problem: &str, peer: &str) -> &'a Row {
    rows.rows.iter().find(|r| r.problem == problem && r.peer == peer).unwrap_or_else(|| panic!("{peer}: {rows:?}"))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_wrong_peer_is_called_wrong_and_a_crash_costs_its_own_rows() {
    let bench = Bench::new();
    let output = bench.run("right,wrong,crash,partial,absent,torch", &["--python", "/nonexistent/python"]);
    assert!(output.status.success(), "{}", text(&output));
    let rows = bench.rows();
    assert!(!rows.cut());
    for problem in [FIRST, SECOND] {
        let right = row(&rows, problem, "right");
        assert_eq!((right.state, right.error_max.map(|e| e < 1e-5)), (State::Ok, Some(true)), "{right:?}");
        assert!(right.ratio.is_some_and(|r| r > 0.0) && right.compared > 100, "{right:?}");
        assert_eq!(row(&rows, problem, "jitune").state, State::Ok);
        let wrong = row(&rows, problem, "wrong");
        assert_eq!((wrong.state, wrong.kernel.is_none(), wrong.ratio), (State::Wrong, true, None), "{wrong:?}");
        let partial = row(&rows, problem, "partial");
        assert_eq!((partial.state, partial.kernel.is_none()), (State::Failed, true), "{partial:?}");
        // It is started again for the second problem, and dies there too.
        let crash = row(&rows, problem, "crash");
        assert_eq!(crash.state, State::Failed);
        let why = crash.why.as_deref().unwrap();
        assert!(why.contains("segmentation fault") && why.contains("about to die"), "{why}");
    }
    let absent = |name: &str| rows.run.peers.iter().find(|p| p.peer == name).unwrap();
    assert!(!absent("absent").here && absent("absent").why.as_ref().unwrap().contains("jitune-peer-absent"));
    assert!(!absent("torch").here, "{:?}", absent("torch"));
    assert!(rows.run.peers.iter().all(|p| p.here || p.why.is_some()));
    assert!(rows.noise.is_some_and(|n| n.pairs.len() == 2));
    let report = std::fs::read_to_string(bench.out().join("report.md")).unwrap();
    assert!(report.contains("WRONG") && report.contains("not here"), "{report}");
    assert!(std::fs::read_to_string(bench.out().join("report.html")).unwrap().contains("<svg"));
}

#[test]
fn what_jitune_has_no_template_for_is_compared_without_it() {
    let bench = Bench::new();
    let rounded = "matmul m=4 n=64 k=32 dtype=tf32";
    let mut command = Command::new(env!("CARGO_BIN_EXE_jitune"));
    command.args(["compare", "--target", "cpu", "--problem", rounded, "--quick", "--peers", "right,wrong"]);
    command.arg("--peer-dir").arg(bench.folder.path()).arg("--db").arg(bench.folder.path().join("db"));
    let output = command.arg("-o").arg(bench.out()).output().unwrap();
    // Our own row is missing, and that is said.
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let rows = bench.rows();
    let right = row(&rows, rounded, "right");
    assert_eq!((right.state, right.ratio), (State::Ok, None), "{right:?}");
    assert!(right.compared > 100 && right.error_max.is_some_and(|e| e < 1e-5) && right.tflops.is_some(), "{right:?}");
    assert_eq!(row(&rows, rounded, "wrong").state, State::Wrong);
    let ours = row(&rows, rounded, "jitune");
    assert_eq!((ours.state, ours.why.as_deref()), (State::Unsupported, Some("there are no winners")), "{ours:?}");
    let report = std::fs::read_to_string(bench.out().join("report.md")).unwrap();
    assert!(report.contains("no winner: there are no winners"), "{report}");
}

#[test]
fn an_interrupt_does_not_wait_for_a_peer_that_is_stuck() {
    let bench = Bench::new();
    let mut child = bench.command("stuck", &[]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Ours are set up first, and then the stuck one, which says so.
    let begun = Instant::now();
    while !bench.folder.path().join("is-stuck").exists() {
        assert!(begun.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none(), "it does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    let begun = Instant::now();
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert_eq!(row(&bench.rows(), FIRST, "stuck").state, State::Cut);
}

#[test]
fn what_was_measured_before_an_interrupt_is_kept_and_gone_on_with() {
    let bench = Bench::new();
    let said = std::fs::File::create(bench.folder.path().join("said")).unwrap();
    let mut child = bench.command("slow", &[]).stdout(Stdio::null()).stderr(said).spawn().unwrap();
    let measured = || {
        let text = std::fs::read_to_string(bench.out().join("rows.jsonl")).unwrap_or_default();
        text.lines().any(|l| l.contains("\"kind\":\"row\"") && l.contains("\"slow\""))
    };
    let begun = Instant::now();
    while !measured() {
        assert!(begun.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none(), "no row came");
        std::thread::sleep(Duration::from_millis(20));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let said = std::fs::read_to_string(bench.folder.path().join("said")).unwrap();
    assert!(said.contains("the same command with --resume goes on from there"), "{said}");
    let rows = bench.rows();
    assert!(rows.cut());
    assert_eq!(row(&rows, FIRST, "slow").state, State::Ok);
    assert!(bench.out().join("report.html").exists());
    let before = row(&rows, FIRST, "slow").called.clone();

    let output = bench.run("right", &["--resume", "--no-tune"]);
    assert!(output.status.success(), "{}", text(&output));
    let rows = bench.rows();
    assert!(!rows.cut());
    assert_eq!(row(&rows, FIRST, "slow").called, before, "kept as it was");
    assert_eq!(row(&rows, SECOND, "right").state, State::Ok);
    assert!(rows.rows.iter().all(|r| r.problem != FIRST || r.peer != "right"), "not measured again");

    // A run of its own in the same folder takes nothing away either.
    let before = std::fs::read(bench.out().join("rows.jsonl")).unwrap();
    let output = bench.run("absent", &["--no-tune"]);
    assert!(output.status.success() && text(&output).contains("are kept in"), "{}", text(&output));
    assert!(bench.rows().rows.iter().all(|r| r.peer == "jitune"));
    let names = std::fs::read_dir(bench.out()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let aside: Vec<String> = names.filter(|n| n.starts_with("rows-20") && n.ends_with(".jsonl")).collect();
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(std::fs::read(bench.out().join(&aside[0])).unwrap(), before);
}

#[test]
fn bad_input_is_said_in_one_line() {
    let bench = Bench::new();
    for (more, part) in [
        (["--set", "torch"], "PEER.KEY=VALUE"),
        (["--counters", "--quick"], "--quick"),
        (["--problem", "matmul m=0 n=1 k=1"], "must lie in"),
    ] {
        let output = bench.run("right", &more);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        assert!(text(&output).contains(part), "{}", text(&output));
    }
}

#[test]
fn what_cannot_be_is_no_row_that_is_called_ok() {
    let bench = Bench::new();
    let begun = Instant::now();
    let peers: Vec<&str> = HOSTILE.iter().copied().chain(["right"]).collect();
    let output = bench.run(&peers.join(","), &[]);
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    assert!(output.status.success(), "{}", text(&output));
    let rows = bench.rows();
    for problem in [FIRST, SECOND] {
        assert_eq!(row(&rows, problem, "right").state, State::Ok);
        for (name, why) in [
            ("us=-5", "-5e0 us"),
            ("us=0", "0e0 us"),
            ("us=1e-300", "1e-300 us"),
            ("us=1e308", "1e308 us"),
            ("us=1e9", "1e9 us"),
            ("none", "no call"),
            ("twice", "without being asked"),
            ("stale", "it answered request"),
            ("endless", "without being asked"),
            ("wide", "a line of over"),
            ("many", ""),
            ("count", "to a read of"),
            ("short", "bytes, not"),
            ("nofile", "No such file"),
        ] {
            let row = row(&rows, problem, name);
            let said = row.why.as_deref().unwrap_or_default();
            assert!(row.state == State::Failed && row.kernel.is_none() && said.contains(why), "{name}: {row:?}");
        }
    }
}

/// No tensor travels as text: what has millions of elements is compared element by element.
#[test]
fn outputs_of_any_size_are_compared() {
    let bench = Bench::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_jitune"));
    command.args(["compare", "--target", "cpu", "--threads", "2", "--quick", "--rounds", "2", "--budget", "120"]);
    command.args(["--problem", "gelu rows=2560 cols=2560 dtype=f32", "--peers", "absent"]);
    command.arg("--db").arg(bench.folder.path().join("db")).arg("-o").arg(bench.out());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    for row in bench.rows().rows.iter().filter(|r| r.way == "tuned") {
        assert_eq!((row.state, row.compared), (State::Ok, 2560 * 2560), "{row:?}");
    }
}
