//! `kill -9` of the tuner at random moments: no winner that it announced is lost, no process of its own outlives it, and
//! the next run goes on where it was. JITUNE_KILLS says how many (25), JITUNE_SEED repeats a run that failed.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, events, of_kind, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Small problems of different ops, so that compiling is most of the work and every stage is hit.
const PROBLEMS: [&str; 6] = [
    "silu_mul rows=4 cols=96 dtype=f32",
    "rmsnorm rows=8 cols=256 dtype=f32",
    "matmul m=1 n=64 k=128 dtype=f32",
    "gelu rows=16 cols=96 dtype=f32",
    "softmax rows=8 cols=96 dtype=f32",
    "layernorm rows=8 cols=128 dtype=f32",
];

/// How long workers and compilers may outlive the tuner.
const GRACE: Duration = Duration::from_secs(3);

/// A SplitMix64 generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One database from empty to complete, through as many kills as it takes.
struct Round {
    place: Place,
    db: PathBuf,
    /// The artifact of each announced winner, by problem.
    announced: BTreeMap<String, Value>,
}

impl Round {
    fn new() -> Round {
        let place = Place::new();
        let db = place.path().join("db");
        Round { place, db, announced: BTreeMap::new() }
    }

    fn tuner(&self) -> std::process::Command {
        let db = self.db.to_str().unwrap();
        let mut args = vec!["tune", "--json", "--nominal-ceilings", "--target", "cpu", "--trials", "2", "--db", db];
        PROBLEMS.iter().for_each(|p| args.extend(["--problem", p]));
        let mut command = self.place.jitune(&args);
        // What the killed processes leave in the temporary folder goes with the test's.
        command.env("TMPDIR", self.place.path());
        command
    }

    /// Runs the tuner and kills it at a random moment. True when it was done before that.
    fn kill(&mut self, random: &mut Random) -> bool {
        let mut child = self.tuner().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (tell, chunks) = channel();
        let reader = std::thread::spawn(move || {
            let mut chunk = [0u8; 4096];
            while let Ok(n @ 1..) = out.read(&mut chunk) {
                if tell.send(chunk[..n].to_vec()).is_err() {
                    return;
                }
            }
        });
        let warnings = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = err.read_to_string(&mut text);
            text
        });
        // Half of the kills follow some line of output closely, where something was just written; the others are at any
        // time.
        let lines = if random.below(2) == 0 { u64::MAX } else { 1 + random.below(24) };
        let at = Duration::from_micros(if lines == u64::MAX { random.below(2_500_000) } else { random.below(30_000) });
        let (mut start, mut output, mut counting) = (Instant::now(), Vec::new(), lines != u64::MAX);
        let ended = loop {
            let left = at.saturating_sub(start.elapsed());
            if !counting && left.is_zero() {
                break false;
            }
            match chunks.recv_timeout(if counting { Duration::from_secs(60) } else { left }) {
                Ok(chunk) => {
                    output.extend(chunk);
                    if counting && output.iter().filter(|b| **b == b'\n').count() as u64 >= lines {
                        (start, counting) = (Instant::now(), false);
                    }
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break true,
                Err(_) => assert!(!counting, "no output for a minute"),
            }
        };
        // The tuner alone: what becomes of its children is theirs to see to.
        let _ = child.kill();
        let status = child.wait().unwrap();
        reader.join().unwrap();
        output.extend(chunks.into_iter().flatten());
        for e in of_kind(&events(&output), "won") {
            let winner = &e["winner"];
            let problem = winner["problem"].as_str().unwrap().to_string();
            let before = self.announced.insert(problem.clone(), winner["artifact"].clone());
            // A winner that was announced is found again, not looked for again.
            assert!(before.is_none() || e["stored"] == true, "{problem} was tuned twice");
            assert!(before.is_none_or(|b| b == winner["artifact"]), "{problem} changed");
        }
        if ended {
            let said = warnings.join().unwrap();
            assert_eq!(status.code(), Some(0), "{said}{}", String::from_utf8_lossy(&output));
        }
        ended
    }

    /// Nobody is left, and all that was announced is stored.
    fn inspect(&self) {
        let start = Instant::now();
        loop {
            let left = self.place.alive();
            if left.is_empty() {
                break;
            }
            assert!(start.elapsed() < GRACE, "left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let db = self.db.to_str().unwrap();
        if !self.db.join("journal.jsonl").exists() {
            assert!(self.announced.is_empty(), "the journal is gone");
            return;
        }
        let out = self.place.jitune(&["db", "list", "--json", "--db", db]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        let stored: BTreeMap<String, Value> = events(&out.stdout)
            .iter()
            .map(|w| (w["problem"].as_str().unwrap().into(), w["artifact"].clone()))
            .collect();
        for (problem, artifact) in &self.announced {
            assert_eq!(stored.get(problem), Some(artifact), "the winner of {problem} is lost");
        }
    }

    /// The last run: it finishes the work, and leaves nothing half-done.
    fn finish(&mut self) {
        let out = self.tuner().output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        let list = events(&out.stdout);
        let stored = of_kind(&list, "plan")[0]["stored"].as_u64().unwrap() as usize;
        assert!(stored >= self.announced.len(), "{stored} of {} are found again", self.announced.len());
        for e in of_kind(&list, "won") {
            self.announced.insert(e["winner"]["problem"].as_str().unwrap().into(), e["winner"]["artifact"].clone());
        }
        assert_eq!(self.announced.len(), PROBLEMS.len());
        self.inspect();
        let scratch: Vec<_> = std::fs::read_dir(self.db.join("scratch")).unwrap().flatten().map(|e| e.path()).collect();
        assert!(scratch.is_empty(), "{scratch:?}");
        let db = self.db.to_str().unwrap();
        let out = self.place.jitune(&["db", "verify", "--db", db]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
    }
}

/// A compiler that takes its time when the tuner is killed ends with it: its own parent, the compile worker, sees to that.
#[test]
fn a_slow_compiler_does_not_outlive_the_tuner() {
    use std::os::unix::fs::PermissionsExt;
    let round = Round::new();
    let script = "#!/bin/sh\n[ \"$1\" = --version ] && exec cc --version\nsleep 600\n";
    let cc = round.place.file("slow-cc", script);
    std::fs::set_permissions(&cc, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = round.tuner().env("JITUNE_CC", &cc).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while !round.place.alive().iter().any(|(_, line)| line.starts_with("sleep")) {
        assert!(start.elapsed() < Duration::from_secs(60), "no compiler was started");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    round.inspect();
}

#[test]
fn killed_at_random_moments() {
    let count = number("JITUNE_KILLS").unwrap_or(25);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = number("JITUNE_SEED").unwrap_or(now.as_nanos() as u64);
    // Printed when the test fails.
    println!("JITUNE_SEED={seed}");
    let mut random = Random(seed);
    let (mut kills, mut rounds, mut announced) = (0, 0, 0);
    while kills < count {
        let mut round = Round::new();
        rounds += 1;
        while kills < count {
            if round.kill(&mut random) {
                break;
            }
            kills += 1;
            round.inspect();
        }
        announced += round.announced.len();
        round.finish();
    }
    println!("{kills} kills over {rounds} databases; {announced} winners announced, none lost; no process left behind");
}
