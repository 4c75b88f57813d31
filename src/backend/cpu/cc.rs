//! The host's C compiler.

use crate::artifact::ArtifactInfo;
use crate::backend::BackendError;
use crate::source::Source;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::ffi::OsStr;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
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
const MOST_WORDS: usize = 1 << 12;

/// Most bytes of a compiler's messages that are kept; the rest is read and dropped.
const MOST_LOG: usize = 64 << 10;
/// Most blocks of a pipe that are read before it is looked whether who writes there has ended: more than a pipe holds.
const BLOCKS: u32 = 128;
/// How often, in milliseconds, it is looked whether a program has ended that says nothing.
const LOOK_MS: i64 = 10;

/// What the system says of a file that it does not give, and what no source can help: a compiler says it of a header in the form
/// of a diagnosis.
const SYSTEM: [&str; 9] = [
    "Too many open files",
    "Too many open files in system",
    "Input/output error",
    "Permission denied",
    "Cannot allocate memory",
    "Stale file handle",
    "Resource temporarily unavailable",
    "Interrupted system call",
    "Connection timed out",
];

/// What a compiler says when it cannot write.
const FULL: [&str; 4] = ["No space left on device", "Disk quota exceeded", "File too large", "Read-only file system"];

/// Finds the compiler once for the process.
pub fn open() -> Result<&'static Compiler, BackendError> {
    static FOUND: OnceLock<Option<Compiler>> = OnceLock::new();
    let tried = || match named() {
        Some(path) => format!("{} as JITUNE_CC says", path.display()),
        None => NAMES.join(", "),
    };
    FOUND.get_or_init(find).as_ref().ok_or_else(|| BackendError::NoCompiler { tried: tried() })
}

fn named() -> Option<PathBuf> {
    std::env::var_os("JITUNE_CC").filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn find() -> Option<Compiler> {
    let candidates = match named() {
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
    let mut command = Command::new(path);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let pipe = child.stdout.take()?;
    let (status, text) = heard(&mut child, pipe, MOST_WORDS, Some(PATIENCE)).ok()??;
    let text = String::from_utf8_lossy(&text);
    Some(text.lines().next()?.trim().to_string()).filter(|_| status.success())
}

/// Waits for a program to end, and gives the first `most` bytes of what it says into a pipe; nothing where it takes longer than
/// `patience`, and then it is ended. Its own end counts: what it left running may hold the pipe open for as long as it likes.
fn heard(
    child: &mut Child,
    mut pipe: impl Read + AsFd,
    most: usize,
    patience: Option<Duration>,
) -> std::io::Result<Option<(ExitStatus, Vec<u8>)>> {
    let (begun, mut said, mut open) = (Instant::now(), Vec::new(), true);
    let mut listen = || -> std::io::Result<Option<ExitStatus>> {
        fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
        let mut block = [0; 1 << 14];
        loop {
            // Looked for before the pipe is read, so that what it said before it ended is.
            let ended = child.try_wait()?;
            for _ in 0..BLOCKS {
                match pipe.read(&mut block) {
                    Ok(0) => open = false,
                    Ok(n) => said.extend_from_slice(&block[..n.min(most - said.len())]),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
                if !open {
                    break;
                }
            }
            let late = patience.is_some_and(|patience| begun.elapsed() > patience);
            if ended.is_some() || late {
                return Ok(ended);
            }
            if open {
                let soon = Timespec { tv_sec: 0, tv_nsec: LOOK_MS * 1_000_000 };
                // Interrupted, it is looked again.
                let _ = poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&soon));
            } else {
                std::thread::sleep(Duration::from_millis(LOOK_MS as u64));
            }
        }
    };
    let ended = listen();
    if !matches!(ended, Ok(Some(_))) {
        // Nobody waits for what it would say.
        let _ = child.kill();
        let _ = child.wait();
    }
    Ok(ended?.map(|status| (status, said)))
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

/// Whether a line of its messages ends with what the system said to it.
fn of_the_system(line: &str) -> bool {
    SYSTEM.iter().any(|said| line.trim_end().ends_with(said))
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

/// What any compiler that works takes: the headers of the system that templates use, and its linker.
const PROBE: &str = "#include <stdint.h>\n#include <string.h>\n#include <math.h>\n\
    #ifdef __x86_64__\n#include <immintrin.h>\n#endif\n\
    double probe(double x) { uint64_t bits; memcpy(&bits, &x, sizeof bits); return exp(x) + (double)bits; }\n";

/// Compiles a source to a shared object, in `folder` for its two files.
pub fn compile(source: &Source, folder: &Path) -> Result<(Vec<u8>, ArtifactInfo), BackendError> {
    let cc = open()?;
    let start = std::time::Instant::now();
    let stem = format!("k{}-{}", std::process::id(), &source.hash()[..16]);
    let compiled = run(cc, &source.text, &options(source), folder, &stem);
    let bytes = match compiled {
        // It speaks against the source, if nothing but the source is the matter.
        Err(BackendError::Compile { log }) => {
            return Err(match run(cc, PROBE, &BASE_OPTIONS, folder, &format!("{stem}-probe")) {
                Ok(_) => BackendError::Compile { log },
                Err(_) => {
                    let said = log.lines().find(|line| diagnosis(line)).unwrap_or_default();
                    BackendError::Compiler { why: format!("it refuses what any compiler takes too: {said}") }
                }
            });
        }
        compiled => compiled?,
    };
    let seconds = start.elapsed().as_secs_f64();
    let info = ArtifactInfo { bytes: bytes.len() as u64, seconds, ..ArtifactInfo::default() };
    Ok((bytes, info))
}

/// Runs the compiler on a text; its two files are called `stem`.
fn run(
    cc: &Compiler,
    text: &str,
    options: &[impl AsRef<OsStr>],
    folder: &Path,
    stem: &str,
) -> Result<Vec<u8>, BackendError> {
    let (code, object) = (folder.join(format!("{stem}.c")), folder.join(format!("{stem}.so")));
    let io = |path: &Path| {
        let path = path.to_path_buf();
        move |source| BackendError::Io { path, source }
    };
    std::fs::write(&code, text).map_err(io(&code))?;
    let mut command = Command::new(&cc.path);
    command.args(options).arg(&code).arg("-o").arg(&object).arg("-lm");
    // Where the compiler is killed, what it leaves goes with the folder.
    command.env("TMPDIR", folder).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut runs = || {
        let mut child = command.spawn()?;
        let Some(pipe) = child.stderr.take() else { return Ok(None) };
        heard(&mut child, pipe, MOST_LOG, None)
    };
    let run = runs();
    let _ = std::fs::remove_file(&code);
    let ended = run.map_err(io(&cc.path))?;
    let Some((status, log)) = ended else {
        return Err(BackendError::Compiler { why: "it was not waited for".into() });
    };
    let log = String::from_utf8_lossy(&log);
    if !status.success() {
        let _ = std::fs::remove_file(&object);
        if let Some(line) = log.lines().find(|l| FULL.iter().any(|f| l.contains(f))) {
            // The source is not to blame.
            let source = std::io::Error::new(std::io::ErrorKind::StorageFull, line.to_string());
            return Err(BackendError::Io { path: folder.to_path_buf(), source });
        }
        let refused = log.lines().find(|line| of_the_system(line));
        if refused.is_some() || !log.lines().any(diagnosis) {
            let said = refused.or(log.lines().last()).unwrap_or("without a word");
            let why = format!("{status}, {said}");
            return Err(BackendError::Compiler { why });
        }
        let log: String = log.lines().take(40).collect::<Vec<_>>().join("\n");
        return Err(BackendError::Compile { log });
    }
    let bytes = match std::fs::read(&object) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(BackendError::Compiler { why: "it ended well and wrote nothing".into() });
        }
        bytes => bytes.map_err(io(&object)),
    };
    let _ = std::fs::remove_file(&object);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_waited_for_until_its_own_end_and_heard_so_far() {
        let run = |script: &str, patience| {
            let begun = Instant::now();
            let mut child = Command::new("sh").args(["-c", script]).stderr(Stdio::piped()).spawn().unwrap();
            let pipe = child.stderr.take().unwrap();
            let ended = heard(&mut child, pipe, MOST_LOG, patience).unwrap();
            assert!(begun.elapsed() < Duration::from_secs(15), "{script}: {:?}", begun.elapsed());
            ended.map(|(status, said)| (status.code(), said.len()))
        };
        for (script, ended) in [
            ("echo said >&2; exit 3", (Some(3), 5)),
            // Others hold the pipe open, silent or not.
            ("sleep 30 & echo said >&2; exit 3", (Some(3), 5)),
            ("yes >&2 & sleep 0.3; exit 0", (Some(0), MOST_LOG)),
            ("yes | head -c 300000000 >&2; exit 1", (Some(1), MOST_LOG)),
            ("exec 2>&-; sleep 0.2", (Some(0), 0)),
            ("kill -9 $$", (None, 0)),
        ] {
            assert_eq!(run(script, None), Some(ended), "{script}");
        }
        for script in ["sleep 30", "exec yes >&2", "exec 2>&-; sleep 30"] {
            assert_eq!(run(script, Some(Duration::from_millis(300))), None, "{script}");
        }
    }

    #[test]
    fn what_the_system_says_of_a_header_is_no_diagnosis() {
        for said in SYSTEM {
            assert!(of_the_system(&format!("k.c:5:10: fatal error: immintrin.h: {said}")), "{said}");
        }
        for own in ["k.c:5:10: fatal error: own.h: No such file or directory", "k.c:5:1: error: unknown type name 'x'"]
        {
            assert!(diagnosis(own) && !of_the_system(own), "{own}");
        }
    }
}
