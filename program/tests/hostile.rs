//! Bundles, journals and templates of somebody who means harm, always sealed anew so that every hash is right: whatever reads
//! them ends soon, with little memory, in a success or in an error that says what is wrong.
//!
//! `JITUNE_HOSTILE` says how many of each kind a seed draws besides those that are written here; 300 are the claim.
#![cfg(target_os = "linux")]

mod common;
#[path = "../../tests/bundle/make.rs"]
#[allow(dead_code)]
mod make;

use common::{Place, text};
use jitune::bundle::{Bundle, Extras, Part};
use jitune::device::Device;
use jitune::journal;
use jitune::key::Context;
use jitune::problem::Problem;
use jitune::runtime::Runtime;
use jitune_db::{Db, OpenOptions};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// What a case may take of the processor, and of memory, beyond what the same command takes where nothing is wrong.
const SECONDS: f64 = 2.0;
const BYTES: i64 = 500 << 20;
/// How long a case is waited for, on a machine that does other work too.
const PATIENCE: Duration = Duration::from_secs(60);

fn drawn() -> usize {
    std::env::var("JITUNE_HOSTILE").ok().and_then(|n| n.parse().ok()).unwrap_or(25)
}

/// SplitMix64, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }
}

/// What a process took: seconds of processors, and the most bytes that it or one of its own had at once.
#[derive(Clone, Copy, Default)]
struct Usage {
    seconds: f64,
    bytes: i64,
}

/// Whether a child has ended, how, and what it took.
fn ended(child: &std::process::Child) -> Option<(ExitStatus, Usage)> {
    unsafe extern "C" {
        fn wait4(pid: i32, status: *mut i32, options: i32, usage: *mut i64) -> i32;
    }
    const NO_HANG: i32 = 1;
    let (mut status, mut usage) = (0, [0i64; 18]);
    // SAFETY: a usage is two times of two words each, and fourteen words. The child is waited for here alone.
    let found = unsafe { wait4(child.id() as i32, &mut status, NO_HANG, usage.as_mut_ptr()) };
    let seconds = |at: usize| usage[at] as f64 + usage[at + 1] as f64 * 1e-6;
    (found > 0)
        .then(|| (ExitStatus::from_raw(status), Usage { seconds: seconds(0) + seconds(2), bytes: usage[4] << 10 }))
}

/// The heaviest cases of a kind.
#[derive(Default)]
struct Worst {
    most: Usage,
    slowest: String,
    errors: usize,
    fine: usize,
    /// What the command takes where nothing is wrong, for those that work with as much memory as the machine's caches ask for.
    sound: HashMap<String, Usage>,
}

impl Worst {
    fn say(&self, kind: &str) {
        println!(
            "{kind}: {} runs, {} typed errors, {} harmless; at most {:.2} s ({}) and {} MiB beyond what a sound one takes",
            self.errors + self.fine,
            self.errors,
            self.fine,
            self.most.seconds,
            self.slowest,
            self.most.bytes >> 20
        );
    }

    /// Runs one case and judges how it ends.
    fn run(&mut self, what: &str, mut command: Command) -> Output {
        let (mut out, mut took) = finished(what, &mut command);
        let kind = what.rsplit(": ").next().unwrap().to_string();
        let sound = *self.sound.entry(kind).or_insert(took);
        // The tuner fills as much memory as the caches ask for before it tries anything.
        let most = if what.ends_with(": tune") { 30.0 } else { SECONDS };
        // What its pages cost a process depends on what else the machine does: a case that took too long has another try.
        if took.seconds - sound.seconds >= most {
            (out, took) = finished(what, &mut command);
        }
        let more = Usage { seconds: took.seconds - sound.seconds, bytes: took.bytes - sound.bytes };
        assert!(more.seconds < most, "{what}: {:.2} s: {}", took.seconds, short(&out));
        assert!(more.bytes < BYTES, "{what}: {} MiB: {}", took.bytes >> 20, short(&out));
        self.most.bytes = self.most.bytes.max(more.bytes);
        if most == SECONDS && more.seconds > self.most.seconds {
            (self.most.seconds, self.slowest) = (more.seconds, what.into());
        }
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        let code = out.status.code().unwrap_or_else(|| panic!("{what}: {}", short(&out)));
        assert!((0..=5).contains(&code) && !said.contains("panicked"), "{what}: {}", short(&out));
        assert!(code == 0 || said.len() > 10, "{what}: no word of why: {}", short(&out));
        for bytes in [&out.stdout, &out.stderr] {
            let text = std::str::from_utf8(bytes).unwrap();
            let raw = |c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{202a}'..='\u{202e}');
            assert!(!text.contains(raw), "{what}: {text:?}");
        }
        if code == 0 {
            self.fine += 1
        } else {
            self.errors += 1
        }
        out
    }
}

/// Runs a case to its end.
// It is waited for by `ended`.
#[allow(clippy::zombie_processes)]
fn finished(what: &str, command: &mut Command) -> (Output, Usage) {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let read = |pipe: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    let stdout = read(child.stdout.take().map(|p| Box::new(p) as _));
    let stderr = read(child.stderr.take().map(|p| Box::new(p) as _));
    let (status, took) = loop {
        match ended(&child) {
            Some(end) => break end,
            None if begun.elapsed() > PATIENCE => {
                child.kill().unwrap();
                panic!("{what}: it hangs");
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    (Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }, took)
}

fn short(out: &Output) -> String {
    text(out).chars().take(2000).collect()
}

/// The program, on a leash: what takes four gigabytes is not let to take the machine too.
fn leashed(program: &Path, folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg("ulimit -v 4000000; exec \"$0\" \"$@\"").arg(program).args(args).current_dir(folder);
    for name in ["JITUNE_DB", "JITUNE_CC", "JITUNE_NVRTC", "JITUNE_LOG"] {
        command.env_remove(name);
    }
    command
}

fn jitune(folder: &Path, args: &[&str]) -> Command {
    leashed(Path::new(env!("CARGO_BIN_EXE_jitune")), folder, args)
}

/// A bundle in its parts.
#[derive(Clone)]
struct Parts {
    artifacts: Vec<Vec<u8>>,
    manifest: Vec<u8>,
    winners: u32,
}

/// A sound bundle: four products and norms for this machine, and a kernel for a GPU with its reference.
static SOUND: LazyLock<(Parts, Value)> = LazyLock::new(|| {
    let gpu = Device::ahead_of_time("sm_80").unwrap();
    let (winner, code) = make::fake("rmsnorm", "rmsnorm rows=4 cols=2048 dtype=bf16", &gpu, b"a cubin of some bytes");
    let reference = make::LIBRARY.reference(&winner.problem, &gpu).unwrap().recipe.description.clone();
    let extras = Some(Extras { support: b"support".to_vec(), reference: (b"reference".to_vec(), reference) });
    let own = make::WINNERS[..4].iter().cloned().map(Part::from);
    let bundle = Bundle::seal(own.chain([Part { winner, code, extras }])).unwrap();
    let bytes = bundle.as_bytes();
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let table = 48 + 40 * bundle.artifacts().len();
    let manifest = bytes[table..table + number(32)].to_vec();
    let artifacts = bundle.artifacts().map(|a| a.bytes.to_vec()).collect();
    let value = serde_json::from_slice(&manifest).unwrap();
    (Parts { artifacts, manifest, winners: bundle.len() as u32 }, value)
});

impl Parts {
    /// The file, with every length and hash as it must be.
    fn sealed(&self) -> Vec<u8> {
        let mut out = b"jitune\r\n".to_vec();
        out.extend(1u32.to_le_bytes());
        out.extend((self.artifacts.len() as u32).to_le_bytes());
        out.extend(self.winners.to_le_bytes());
        out.extend([0; 4 + 8]);
        out.extend((self.manifest.len() as u64).to_le_bytes());
        out.extend([0; 8]);
        for bytes in &self.artifacts {
            out.extend((bytes.len() as u64).to_le_bytes());
            out.extend(blake3::hash(bytes).as_bytes());
        }
        out.extend(&self.manifest);
        let start = out.len();
        for bytes in &self.artifacts {
            out.resize(out.len().next_multiple_of(16), 0);
            out.extend(bytes);
        }
        let (payload, file) = ((out.len() - start) as u64, out.len() as u64 + 32);
        out[24..32].copy_from_slice(&file.to_le_bytes());
        out[40..48].copy_from_slice(&payload.to_le_bytes());
        let seal = blake3::hash(&out);
        out.extend(seal.as_bytes());
        out
    }

    fn with(mut self, manifest: &Value) -> Parts {
        self.manifest = written(manifest).into_bytes();
        self.winners = manifest["winners"].as_array().map_or(0, |w| w.len() as u32);
        self
    }
}

fn nested(depth: usize) -> String {
    "(".repeat(depth) + "1" + &")".repeat(depth)
}

/// Values that hurt somewhere.
fn nasty(random: &mut Random) -> Value {
    let deep = nested(25_000);
    let texts = [
        "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\r\u{202e}",
        &deep,
        "dtype * 100000000",
        "'x' ~ 'x'",
        "2147483648",
        "1099511627776",
        "-1",
        "0",
        "9223372036854775807",
        "1 / 0",
        "rows * 1e300",
        "nothing + 1",
        "system",
        "",
        "matmul m=1 n=1073741824 k=1073741824 dtype=f32",
        "gelu rows=9223372036854775807 cols=9223372036854775807 dtype=f32",
        "\n\n\t",
    ];
    match random.below(10) {
        0..6 => (*random.of(&texts)).into(),
        6 => "x".repeat(1 << random.below(20)).into(),
        7 => {
            random.of(&[json!(u64::MAX), json!(-1), json!(1e308), json!(0), json!(1u64 << 31), json!(-1e-300)]).clone()
        }
        8 => random.of(&[json!(null), json!([]), json!({}), json!(true), json!([[[[[]]]]])]).clone(),
        _ => many("{'i32':'1'}", 1 << random.below(21)),
    }
}

/// Changes a value somewhere inside: replaced, taken away, repeated, or put in another's place.
fn mutate(value: &mut Value, random: &mut Random) {
    // Down to a random depth; a whole list or object is changed now and then.
    if random.below(8) == 0 {
        *value = nasty(random);
        return;
    }
    match value {
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(random.below(map.len())).unwrap().clone();
            match random.below(12) {
                0 => drop(map.remove(&key)),
                _ => mutate(map.get_mut(&key).unwrap(), random),
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let i = random.below(list.len());
            match random.below(10) {
                0 => drop(list.remove(i)),
                1 => {
                    let same = list[i].clone();
                    let times = 1 << random.below(if same.to_string().len() < 100 { 13 } else { 6 });
                    list.extend(std::iter::repeat_n(same, times));
                }
                2 => list.swap(i, 0),
                _ => mutate(&mut list[i], random),
            }
        }
        leaf => *leaf = nasty(random),
    }
}

/// Changes bytes: flipped, of numbers, cut out.
fn scramble(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.below(4) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = b"0123456789\"{}[],:-e.\\ \x1b\x00"[random.below(24)],
            2 => bytes.truncate(at),
            _ => drop(bytes.drain(at..(at + random.below(64)).min(bytes.len()))),
        }
    }
}

/// Changes what a loader reads of a shared object, and not its instructions: a bundle's code is run as it is.
fn damage(code: &mut Vec<u8>, random: &mut Random) {
    let number = |code: &[u8], at: usize| u64::from_le_bytes(code[at..at + 8].try_into().unwrap()) as usize;
    match random.below(4) {
        0 => code.truncate(random.below(code.len())),
        1 => *code = random.of(&[&b""[..], b"\x7fELF", b"#!/bin/sh\nid", &[0x7f; 4096]]).to_vec(),
        _ if code.starts_with(b"\x7fELF\x02") && code.len() > 4096 => {
            // The header, the table of segments, the first tables behind it, and the table of sections at the end.
            let tables =
                [(0, 64), (64, 56 * 11), (64 + 56 * 11, 1024), (number(code, 40).min(code.len() - 64), 64 * 20)];
            for _ in 0..1 + random.below(3) {
                let (from, len) = *random.of(&tables);
                let at = (from + random.below(len)).min(code.len() - 8);
                let wide = *random.of(&[0, 1, 0x7fff_ffff, 1 << 40, u64::MAX, u64::MAX - 4095]);
                match random.below(2) {
                    0 => code[at] ^= 1 << random.below(8),
                    _ => code[at..at + 8].copy_from_slice(&wide.to_le_bytes()),
                }
            }
        }
        _ => code.truncate(code.len() / 2),
    }
}

/// The description of the norms.
fn norm(m: &mut Value) -> &mut Value {
    m["descriptions"].as_array_mut().unwrap().iter_mut().find(|d| d["name"] == "cpu_rmsnorm").unwrap()
}

/// Its first launch.
fn launch(m: &mut Value) -> &mut Value {
    &mut norm(m)["launch"][0]
}

/// Stands for a list of so many items, which is only written out in the text: this process stays small, since what it starts
/// is measured with what it had.
fn many(item: &str, times: usize) -> Value {
    format!("@{times}@{item}").into()
}

/// The text of a value, with the lists that are too long for this process.
fn written(value: &Value) -> String {
    let text = value.to_string();
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("\"@") {
        let (list, more) = after.split_once('"').unwrap();
        let (times, item) = list.split_once('@').unwrap();
        let item = item.replace('\'', "\"");
        out += before;
        out.push('[');
        out += &format!("{item},").repeat(times.parse().unwrap());
        out.pop();
        out.push(']');
        rest = more;
    }
    out + rest
}

type Attack = (&'static str, fn(&mut Value), &'static [&'static str]);

/// Attacks that once worked, with what is said of them by one of the runs.
const ATTACKS: [Attack; 21] = [
    ("an expression 25,000 deep", |m| launch(m)["grid"][0] = nested(25_000).into(), &["2000 are the most"]),
    ("an expression 300 deep", |m| launch(m)["grid"][0] = nested(300).into(), &["nests deeper than 32"]),
    (
        "words that double",
        |m| {
            let mut derive = vec![json!(["s0", "'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' * 2500000"])];
            derive.extend((1..10).map(|i| json!([format!("s{i}"), format!("s{0} ~ s{0}", i - 1)])));
            norm(m)["derive"] = derive.into();
        },
        &["means nothing here", "has no value"],
    ),
    ("a million arguments", |m| launch(m)["args"] = many("{'i32':'1'}", 1_000_000), &["at most 2097152"]),
    ("a thousand arguments", |m| launch(m)["args"] = vec![json!({"i32": "1"}); 1000].into(), &["64 are the most"]),
    (
        "a workspace of a TiB",
        |m| norm(m)["workspace"] = json!({"bytes": "1099511627776", "zero": true}),
        &["bytes of workspace"],
    ),
    (
        "ten thousand launches",
        |m| {
            let one = launch(m).clone();
            norm(m)["launch"] = vec![one; 10_000].into();
        },
        &["16 are the most", "at most 2097152"],
    ),
    ("a grid of 2^31", |m| launch(m)["grid"][0] = "2147483648".into(), &["2147483648 tasks"]),
    ("a grid past its type", |m| launch(m)["grid"][0] = "4294967296 * 4294967296".into(), &["grid is", "whole number"]),
    (
        "an entry of libc's",
        |m| {
            let l = launch(m);
            l["entry"] = "system".into();
            l["args"] = json!([{"i64": "7308604897072408169"}]);
        },
        &["entry system: its code defines no such function"],
    ),
    ("an entry of the loader's", |m| launch(m)["entry"] = "dlopen".into(), &["entry dlopen"]),
    (
        "names that a terminal obeys",
        |m| norm(m)["name"] = "\u{1b}]0;x\u{7}\u{202e}".into(),
        &["\\u001b]0;x\\u0007\\u202e"],
    ),
    (
        "a device that a terminal obeys",
        |m| m["devices"][0]["name"] = "\u{1b}[2J\rgood".into(),
        &["\\u001b[2J\\u000dgood"],
    ),
    (
        "a problem that a terminal obeys",
        |m| m["winners"][0]["problem"] = "gelu rows=1 \u{1b}[2J=3".into(),
        &["\\u001b[2J"],
    ),
    (
        "one winner five thousand times",
        |m| {
            let one = m["winners"][0].clone();
            m["winners"] = vec![one; 5000].into();
        },
        &["another is for its problem and device", "at most 2097152"],
    ),
    ("a name of a megabyte", |m| launch(m)["entry"] = "x".repeat(1 << 20).into(), &["256 are the most"]),
    ("a median of nothing", |m| m["winners"][0]["evidence"]["median_us"] = (-5).into(), &["its median is -5"]),
    (
        "samples by the million",
        |m| m["winners"][0]["evidence"]["samples_us"] = many("1", 5_000_000),
        &["at most 2097152"],
    ),
    (
        "as many arguments as a manifest holds",
        |m| launch(m)["args"] = many("{'i32':'1'}", 190_000),
        &["64 are the most"],
    ),
    ("as many ties as a manifest holds", |m| m["winners"][1]["evidence"]["ties"] = many("''", 2_000_000), &["4 bound"]),
    ("a device without threads", |m| m["devices"][0]["units"] = 0.into(), &[""]),
];

/// Opens a bundle and binds each of its problems, as production does; this is run as a process of its own.
#[test]
fn production() {
    let Some(path) = std::env::var_os("JITUNE_HOSTILE_BUNDLE") else { return };
    let done = (|| -> Result<usize, Box<dyn std::error::Error>> {
        let bundle = Bundle::open(path)?;
        let runtime = Runtime::cpu(&bundle, Some(make::THREADS))?;
        let mut bound = 0;
        for problem in runtime.problems().collect::<Vec<Problem>>() {
            let kernel = runtime.lookup(&problem)?;
            let tensors = runtime.allocate_all(&problem)?;
            let workspace = runtime.workspace(&kernel)?;
            // SAFETY: nothing is launched.
            let views = tensors.iter().map(|t| unsafe { t.view().assume_in_range() });
            kernel.bind(views, &workspace)?;
            bound += 1;
        }
        Ok(bound)
    })();
    match done {
        Ok(bound) => println!("{bound} bound"),
        Err(e) => {
            let plain = format!("{e}").replace(|c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c), "?");
            eprintln!("refused: {plain}");
            std::process::exit(1);
        }
    }
}

fn bundle_case(worst: &mut Worst, place: &Place, what: &str, parts: &Parts) -> String {
    let path = place.path().join("h.jitune");
    std::fs::write(&path, parts.sealed()).unwrap();
    let mut said = String::new();
    let verify = ["verify", "--target", "cpu", "--threads", "1", "--no-timing", "--served", "h.jitune"];
    for args in [&["inspect", "h.jitune"][..], &["inspect", "--json", "h.jitune"], &verify] {
        let out = worst.run(&format!("{what}: {}", args[0]), jitune(place.path(), args));
        said += &text(&out);
    }
    let program = std::env::current_exe().unwrap();
    let mut command = leashed(&program, place.path(), &["--exact", "production", "--nocapture"]);
    command.env("JITUNE_HOSTILE_BUNDLE", &path);
    said + &text(&worst.run(&format!("{what}: production"), command))
}

#[test]
fn bundles() {
    let place = Place::new();
    let mut worst = Worst::default();
    let (sound, manifest) = &*SOUND;
    let said = bundle_case(&mut worst, &place, "nothing changed", sound);
    assert!(said.contains("4 bound") && worst.errors == 0, "{said}");
    for (what, attack, parts) in &ATTACKS {
        let mut changed = manifest.clone();
        attack(&mut changed);
        let said = bundle_case(&mut worst, &place, what, &sound.clone().with(&changed));
        assert!(
            parts.iter().any(|part| said.contains(part)),
            "{what}: {}",
            said.chars().take(3000).collect::<String>()
        );
    }
    for seed in 0..drawn() as u64 {
        let mut random = Random(seed);
        let mut parts = sound.clone();
        if random.below(3) > 0 {
            let mut changed = manifest.clone();
            (0..1 + random.below(3)).for_each(|_| mutate(&mut changed, &mut random));
            parts = parts.with(&changed);
        }
        if random.below(4) == 0 {
            scramble(&mut parts.manifest, &mut random);
        }
        if random.below(3) == 0 {
            let i = random.below(parts.artifacts.len());
            damage(&mut parts.artifacts[i], &mut random);
        }
        bundle_case(&mut worst, &place, &format!("bundle {seed}"), &parts);
    }
    worst.say("bundles");
}

/// A journal line of this record.
fn sealed(rec: &Value) -> String {
    let rec = written(rec);
    format!("{{\"crc\":\"{}\",\"rec\":{rec}}}\n", &blake3::hash(rec.as_bytes()).to_hex()[..16])
}

/// A database with the code of sound winners, and their records as a journal.
fn database(place: &Place) -> Vec<Value> {
    let db = Db::open(place.path().join("sound"), OpenOptions::default()).unwrap();
    for (w, code) in &make::WINNERS[..4] {
        db.put_artifact(code).unwrap();
        let templates = make::LIBRARY.for_problem(&w.problem, &w.device).unwrap();
        let context = Context { device: w.device.clone(), compiler: "cc".into() };
        let key = context.winner(&make::LIBRARY, &w.problem, &templates);
        db.put_winner(&journal::of_winner(key, w).unwrap()).unwrap();
    }
    let mut text = Vec::new();
    db.export_journal(&mut text, |_| true).unwrap();
    db.close().unwrap();
    let text = String::from_utf8(text).unwrap();
    text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["rec"].take()).collect()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => assert!(std::fs::copy(entry.path(), to).is_ok()),
        }
    }
}

fn journal_case(worst: &mut Worst, place: &Place, what: &str, journal: &[u8]) -> String {
    let db = place.path().join("db");
    let _ = std::fs::remove_dir_all(&db);
    // With the code that the records name, and no winner of its own that would stay in their place.
    copy(&place.path().join("sound"), &db);
    for own in ["journal.jsonl", "index.bin"] {
        let _ = std::fs::remove_file(db.join(own));
    }
    std::fs::write(place.path().join("h.jsonl"), journal).unwrap();
    let export =
        ["export", "--target", "cpu", "--arch", "all", "--stale", "--no-verification", "--db", "db", "-o", "h.jitune"];
    let merge = jitune(place.path(), &["db", "merge", "h.jsonl", "--db", "db"]);
    let mut said = text(&worst.run(&format!("{what}: merge"), merge));
    said += &text(&worst.run(&format!("{what}: merged"), jitune(place.path(), &["db", "list", "--db", "db"])));
    // What was merged is not sealed before it was judged: as if it had been there always, it is.
    std::fs::write(db.join("journal.jsonl"), journal).unwrap();
    let _ = std::fs::remove_file(db.join("index.bin"));
    for args in [
        &["db", "list", "--db", "db"][..],
        &["db", "show", "rms", "--db", "db"],
        &export,
        &[
            "explain",
            "--target",
            "cpu",
            "--threads",
            "2",
            "--db",
            "db",
            "--problem",
            "rmsnorm rows=4 cols=96 dtype=f32",
        ],
    ] {
        said += &text(&worst.run(&format!("{what}: {}", args[..2].join(" ")), jitune(place.path(), args)));
    }
    if place.path().join("h.jitune").exists() {
        let verify = ["verify", "--target", "cpu", "--threads", "1", "--no-timing", "h.jitune"];
        said += &text(&worst.run(&format!("{what}: verify"), jitune(place.path(), &verify)));
        std::fs::remove_file(place.path().join("h.jitune")).unwrap();
    }
    said
}

#[test]
fn journals() {
    let place = Place::new();
    let records = database(&place);
    let mut worst = Worst::default();
    let newer = |records: &[Value], change: &dyn Fn(&mut Value)| -> Vec<u8> {
        let changed = records.iter().map(|rec| {
            let mut rec = rec.clone();
            rec["at"] = (rec["at"].as_u64().unwrap() + 5).into();
            rec["body"]["evidence"]["at"] = 1_790_000_005.into();
            change(&mut rec);
            sealed(&rec)
        });
        changed.collect::<String>().into_bytes()
    };
    let said = journal_case(&mut worst, &place, "nothing changed", &newer(&records, &|_| ()));
    assert!(said.contains("4 winners for cpu") && worst.errors == 0, "{said}");
    let launch = |r: &mut Value, field: &str, value: Value| r["body"]["description"]["launch"][0][field] = value;
    type Forged<'a> = (&'a str, &'a dyn Fn(&mut Value), &'a str);
    let attacks: [Forged<'_>; 6] = [
        ("expressions 25,000 deep", &|r| launch(r, "block", nested(25_000).into()), "make sense of its body"),
        ("a million arguments", &|r| launch(r, "args", many("{'i32':'1'}", 1_000_000)), "no line is a record"),
        (
            "ten thousand arguments",
            &|r| launch(r, "args", vec![json!({"i32": "1"}); 10_000].into()),
            "make sense of its body",
        ),
        ("an entry of libc's", &|r| launch(r, "entry", "system".into()), "make sense of its body"),
        (
            "a template that a terminal obeys",
            &|r| r["body"]["description"]["name"] = "\u{1b}[2J".into(),
            "make sense of its body",
        ),
        ("a compiler that a terminal obeys", &|r| r["key"]["compile"]["compiler"] = "\u{1b}[2J".into(), "\\u001b[2J"),
    ];
    for (what, attack, part) in attacks {
        let said = journal_case(&mut worst, &place, what, &newer(&records, attack));
        assert!(said.contains(part), "{what}: {}", said.chars().take(3000).collect::<String>());
    }
    for seed in 0..drawn() as u64 {
        let mut random = Random(seed);
        let mut journal = Vec::new();
        for rec in &records {
            let mut rec = rec.clone();
            rec["at"] = (rec["at"].as_u64().unwrap() + random.below(9) as u64).into();
            for _ in 0..random.below(4) {
                let whole = random.below(4) == 0;
                match rec.get_mut("body") {
                    Some(body) if !whole => mutate(body, &mut random),
                    _ => mutate(&mut rec, &mut random),
                }
            }
            journal.extend(sealed(&rec).into_bytes());
        }
        if random.below(4) == 0 {
            scramble(&mut journal, &mut random);
        }
        journal_case(&mut worst, &place, &format!("journal {seed}"), &journal);
    }
    worst.say("journals");
}

fn template_case(worst: &mut Worst, place: &Place, what: &str, toml: &[u8], code: &[u8]) -> String {
    std::fs::write(place.path().join("own/cpu_rmsnorm.toml"), toml).unwrap();
    std::fs::write(place.path().join("own/cpu_rmsnorm.c"), code).unwrap();
    let problem = "rmsnorm rows=4 cols=96 dtype=f32";
    let shared = ["--target", "cpu", "--templates", "own", "--db", "sound"];
    let mut said = String::new();
    for args in [
        &["explain", "--threads", "2", "--problem", problem][..],
        &["export", "--threads", "2", "--arch", "all", "--no-verification", "-o", "h.jitune"],
        // The whole loop but for a compiler, which refuses all.
        &[
            "tune",
            "--threads",
            "1",
            "--trials",
            "1",
            "--budget",
            "30",
            "--nominal-ceilings",
            "--again",
            "--problem",
            problem,
        ],
    ] {
        let args = [args, &shared].concat();
        let mut command = jitune(place.path(), &args);
        command.env("JITUNE_CC", place.path().join("cc"));
        said += &text(&worst.run(&format!("{what}: {}", args[0]), command));
    }
    said
}

#[test]
fn templates() {
    let place = Place::new();
    database(&place);
    std::fs::create_dir(place.path().join("own")).unwrap();
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernel-templates/cpu/cpu_rmsnorm");
    let toml = std::fs::read_to_string(built_in.with_extension("toml")).unwrap();
    let code = std::fs::read_to_string(built_in.with_extension("c")).unwrap();
    // It says what a terminal would obey, too.
    let refuses = "#!/bin/sh\n[ \"$1\" = --version ] && echo cc 1 && exit\nprintf 'k.c:1: error: \\033[2J refused\\n' >&2\nexit 1\n";
    let cc = place.file("cc", refuses);
    std::fs::set_permissions(&cc, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut worst = Worst::default();
    let put = |key: &str, value: &str| {
        let line = toml.lines().find(|l| l.split('=').next().unwrap().trim() == key).unwrap();
        toml.replacen(line, &format!("{key} = {value}"), 1)
    };
    let said = template_case(&mut worst, &place, "nothing changed", toml.as_bytes(), code.as_bytes());
    assert!(said.contains("own/cpu_rmsnorm") || !said.is_empty(), "{said}");
    for (what, text, part) in [
        ("an expression 25,000 deep", put("when", &format!("\"{}\"", nested(25_000))), "2000 are the most"),
        ("an expression 300 deep", put("when", &format!("\"dtype and {}\"", nested(300))), "nests deeper than 32"),
        ("lists 25,000 deep", put("op", &("[".repeat(25_000) + &"]".repeat(25_000))), "own/cpu_rmsnorm.toml"),
        ("words that double", put("when", "\"dtype * 100000000\""), "has no value"),
        ("a summary of a megabyte", put("summary", &format!("\"{}\"", "x".repeat(1 << 20))), "262144 bytes"),
        (
            "a space without end",
            {
                let all: String = ('a'..='h').map(|c| format!("{c} = {:?}\n", (0..250).collect::<Vec<_>>())).collect();
                let never = "\n[[constraint]]\nname = 'never'\nexpr = 'a + b + c + d + e + f + g + h < 0'\n";
                toml.replacen("[tunables]\n", &format!("[tunables]\n{all}"), 1) + never
            },
            "4000000 steps",
        ),
        (
            "a name that a terminal obeys",
            put("name", "\"\\u001b[2J\"").replacen("dtype in", "dtype on", 1),
            "\\u001b[2J",
        ),
        ("ops by the thousand", put("op", &format!("[{}]", "'rmsnorm',".repeat(20_000))), "256 are the most"),
        ("arguments by the thousand", put("args", &format!("[{}]", "{i32='1'},".repeat(10_000))), "64 are the most"),
    ] {
        let said = template_case(&mut worst, &place, what, text.as_bytes(), code.as_bytes());
        assert!(said.contains(part), "{what}: {}", said.chars().take(3000).collect::<String>());
    }
    let said = template_case(&mut worst, &place, "a source of five megabytes", toml.as_bytes(), &vec![b' '; 5 << 20]);
    assert!(said.contains("4194304 bytes"), "{said}");
    let many = "/**/ ".to_string() + &"#include \"cpu_rmsnorm.h\"\n".repeat(10_000);
    template_case(&mut worst, &place, "includes by the thousand", toml.as_bytes(), many.as_bytes());
    for seed in 0..drawn() as u64 {
        let mut random = Random(seed);
        let mut lines: Vec<String> = toml.lines().map(String::from).collect();
        for _ in 0..1 + random.below(3) {
            let i = random.below(lines.len());
            let key = lines[i].split_once('=').map(|(key, _)| key.trim().to_string());
            match (random.below(6), key) {
                (0, _) => drop(lines.remove(i)),
                (1, _) => {
                    let same = lines[i].clone();
                    lines.splice(i..i, std::iter::repeat_n(same, 1 << random.below(9)));
                }
                (2, _) => lines.swap(i, 0),
                (_, Some(key)) => lines[i] = format!("{key} = {}", nasty(&mut random)),
                _ => lines[i] = format!("[{}]", nasty(&mut random)),
            }
        }
        let mut text = lines.join("\n").into_bytes();
        if random.below(4) == 0 {
            scramble(&mut text, &mut random);
        }
        let mut code = code.clone().into_bytes();
        if random.below(4) == 0 {
            scramble(&mut code, &mut random);
        }
        template_case(&mut worst, &place, &format!("template {seed}"), &text, &code);
    }
    worst.say("templates");
}

#[test]
fn rows_of_a_comparison() {
    let place = Place::new();
    let bad = "\u{1b}]0;x\u{7}\u{9b}2J\r\u{202e}";
    let run = json!({"kind": "run", "at": 0, "jitune": bad, "command": bad, "model": bad, "device": null, "rounds": 1});
    let times = json!({"median_us": 5, "low_us": 5, "high_us": 5, "samples_us": [5]});
    let row = |peer: &str, state: &str| {
        json!({"kind": "row", "problem": format!("gelu {bad}"), "peer": peer, "way": bad, "covers": "all", "state": state,
            "why": bad, "kernel": times, "how": bad})
    };
    let problem = json!({"kind": "problem", "problem": format!("gelu {bad}"), "op": bad, "flops": 1, "bytes": 1,
        "roofline_us": 1, "memory_bound": true, "winner": null});
    let lines = [run, problem, row("jitune", "ok"), row(bad, "ok"), row(bad, "failed")].map(|line| format!("{line}\n"));
    place.file("rows.jsonl", &lines.concat());
    let mut worst = Worst::default();
    for args in [&["report", "--from", "rows.jsonl"][..], &["report", "--from", "rows.jsonl", "--readme"]] {
        let out = worst.run(&format!("rows: {}", args.join(" ")), jitune(place.path(), args));
        assert!(out.status.success(), "{}", text(&out));
        assert!(args.len() > 3 || text(&out).contains("gelu "), "{}", text(&out));
    }
    place.file("rows.jsonl", &format!("{}{{\"kind\": \"{bad}\"}}\n{}", lines[0], lines[2]));
    let out = worst.run("rows: no such kind", jitune(place.path(), &["report", "--from", "rows.jsonl"]));
    assert_eq!(out.status.code(), Some(4), "{}", text(&out));
}
