//! What the tests that drive the program share: commands, event lines, and a search for processes left behind.
#![allow(dead_code)]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The variable that marks every process of a test, whatever became of its parents.
const MARK: &str = "JITUNE_TEST_MARK";

/// A folder of the test's own, and the mark of the processes that it starts.
pub struct Place {
    folder: tempfile::TempDir,
    mark: String,
}

impl Place {
    pub fn new() -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Place { folder: tempfile::tempdir().unwrap(), mark: format!("{}-{number}", std::process::id()) }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A small model of `golden/models.json` in f32, in the folder `m`.
    pub fn model(&self, name: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models.json");
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let held = &golden["models"][name];
        self.file("config/config.json", &held["config"].to_string());
        let init = format!("random:{}", held["seed"]);
        let out = self.jitune(&["model", "./config", "--init", &init, "--dtype", "f32", "-o", "m"]).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
    }

    /// The program with these arguments, with nothing of the caller's settings.
    pub fn jitune(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jitune"));
        command.args(args).env(MARK, &self.mark).stdin(Stdio::null());
        for name in ["JITUNE_DB", "JITUNE_CC", "JITUNE_NVRTC", "JITUNE_LOG", "JITUNE_WORKER_STDERR"] {
            command.env_remove(name);
        }
        command.current_dir(self.path());
        command
    }

    /// The processes with this place's mark that are alive, with their command lines.
    pub fn alive(&self) -> Vec<(u32, String)> {
        let mark = format!("{MARK}={}", self.mark);
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
            // A process may end between any two of these reads, and the environment of one that has ended is empty.
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if environment.split(|b| *b == 0).any(|v| v == mark.as_bytes()) {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
        found
    }
}

/// The JSON lines of an output.
pub fn events(stdout: &[u8]) -> Vec<Value> {
    let whole = stdout.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let text = std::str::from_utf8(&stdout[..whole]).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// The events of one kind.
pub fn of_kind<'a>(list: &'a [Value], kind: &str) -> Vec<&'a Value> {
    list.iter().filter(|e| e["event"] == kind).collect()
}

pub fn text(out: &Output) -> String {
    format!("{}\n{}{}", out.status, String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}
