//! The host's C compiler.

use crate::artifact::ArtifactInfo;
use crate::backend::BackendError;
use crate::source::Source;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A C compiler and what it says of itself.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// The program.
    pub path: PathBuf,
    /// First line of `--version`: part of every compile key.
    pub version: String,
}

/// Programs that are tried, after `$JITUNE_CC`.
const NAMES: [&str; 3] = ["cc", "gcc", "clang"];

/// How long a compiler may take to say its version.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of it that are read.
const MOST_WORDS: u64 = 1 << 12;

/// What a compiler says when it cannot write.
const FULL: [&str; 4] = ["No space left on device", "Disk quota exceeded", "File too large", "Read-only file system"];

/// Finds the compiler once for the process.
pub fn open() -> Result<&'static Compiler, BackendError> {
    static FOUND: OnceLock<Option<Compiler>> = OnceLock::new();
    let tried = || match std::env::var_os("JITUNE_CC") {
        Some(path) => format!("{} as JITUNE_CC says", PathBuf::from(path).display()),
        None => NAMES.join(", "),
    };
    FOUND.get_or_init(find).as_ref().ok_or_else(|| BackendError::NoCompiler { tried: tried() })
}

fn find() -> Option<Compiler> {
    let named = std::env::var_os("JITUNE_CC").map(PathBuf::from);
    let candidates = match named {
        Some(path) => vec![path],
        None => NAMES.map(PathBuf::from).to_vec(),
    };
    candidates.into_iter().find_map(|path| {
        let version = first_words(&path)?;
        (!version.is_empty()).then_some(Compiler { path, version })
    })
}

/// The first line that a program says of its version; none where it does not answer soon, or fails.
fn first_words(path: &Path) -> Option<String> {
    let mut child = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let begun = Instant::now();
    // A version fits the pipe, so the program can end before it is read.
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if begun.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                // Nobody waits for what it would say.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    };
    let mut text = Vec::new();
    // What it left running may hold the pipe open: no more is read than a version has.
    child.stdout.take()?.take(MOST_WORDS).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    Some(text.lines().next()?.trim().to_string()).filter(|_| status.success())
}

/// Options that every C source is compiled with.
pub const BASE_OPTIONS: [&str; 6] = [
    "-std=gnu11",
    "-O3",
    if cfg!(target_arch = "x86_64") { "-march=native" } else { "-mcpu=native" },
    "-fPIC",
    "-shared",
    "-fno-math-errno",
];

/// The options that a C source is compiled with.
pub fn options(source: &Source) -> Vec<String> {
    let mut list = BASE_OPTIONS.map(String::from).to_vec();
    list.extend(source.options.iter().cloned());
    list
}

/// Whether a line of its messages says what is wrong with a source or an option, and not with the compiler's own run: it
/// names a line of a file, a symbol, or what it does not recognize.
fn diagnosis(line: &str) -> bool {
    let of_a_line = || {
        let (place, said) = line.split_once(" error: ").or_else(|| line.split_once(" Error: ")).unwrap_or(("", ""));
        let place = place.trim_end_matches(" fatal").trim_end_matches(':');
        let numbered = place.rsplit(':').next().is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        numbered && !said.is_empty()
    };
    ["undefined reference", "multiple definition", "unrecognized", "unknown argument", "undefined symbol"]
        .iter()
        .any(|known| line.contains(known))
        || of_a_line()
}

/// Compiles a source to a shared object, in `folder` for its two files.
pub fn compile(source: &Source, folder: &Path) -> Result<(Vec<u8>, ArtifactInfo), BackendError> {
    let cc = open()?;
    let start = std::time::Instant::now();
    let stem = format!("k{}-{}", std::process::id(), &source.hash()[..16]);
    let (code, object) = (folder.join(format!("{stem}.c")), folder.join(format!("{stem}.so")));
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| BackendError::Io { path, source }
    };
    std::fs::write(&code, &source.text).map_err(io(&code))?;
    let run = Command::new(&cc.path)
        .args(options(source))
        .arg(&code)
        .arg("-o")
        .arg(&object)
        .arg("-lm")
        // Where the compiler is killed, what it leaves goes with the folder.
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .output();
    let _ = std::fs::remove_file(&code);
    let out = run.map_err(io(&cc.path))?;
    let log = String::from_utf8_lossy(&out.stderr);
    if !out.status.success() {
        let _ = std::fs::remove_file(&object);
        if let Some(line) = log.lines().find(|l| FULL.iter().any(|f| l.contains(f))) {
            // The source is not to blame.
            let source = std::io::Error::new(std::io::ErrorKind::StorageFull, line.to_string());
            return Err(BackendError::Io { path: folder.to_path_buf(), source });
        }
        if !log.lines().any(diagnosis) {
            let why = format!("{}, {}", out.status, log.lines().last().unwrap_or("without a word"));
            return Err(BackendError::Compiler { why });
        }
        let log: String = log.lines().take(40).collect::<Vec<_>>().join("\n");
        return Err(BackendError::Compile { log });
    }
    let bytes = std::fs::read(&object).map_err(io(&object));
    let _ = std::fs::remove_file(&object);
    let bytes = bytes?;
    let seconds = start.elapsed().as_secs_f64();
    let info = ArtifactInfo { bytes: bytes.len() as u64, seconds, ..ArtifactInfo::default() };
    Ok((bytes, info))
}
