//! The host's C compiler.

use crate::artifact::ArtifactInfo;
use crate::backend::BackendError;
use crate::source::Source;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

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
        let out = Command::new(&path).arg("--version").stdin(Stdio::null()).output().ok()?;
        let version = String::from_utf8_lossy(&out.stdout).lines().next()?.trim().to_string();
        (out.status.success() && !version.is_empty()).then_some(Compiler { path, version })
    })
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
