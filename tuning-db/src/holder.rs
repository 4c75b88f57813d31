//! Owns what the lock file says of who holds a database.

use crate::clock::now;
use serde::{Deserialize, Serialize};
use std::{fmt, path::Path};

/// Who holds a database, as the lock file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Holder {
    /// Process id; 0 when the file does not say (the holder has just started).
    pub pid: u32,
    /// Host name; differs from ours where the folder is on a shared file system.
    pub host: String,
    /// When it took the lock, in seconds since 1970.
    pub since: u64,
    /// The program's name.
    pub program: String,
}

impl Holder {
    pub(crate) fn this_process() -> Self {
        let program = std::env::args_os().next().unwrap_or_default();
        let program = Path::new(&program).file_name().unwrap_or_default();
        Self {
            pid: std::process::id(),
            host: host_name(),
            since: now(),
            program: program.to_string_lossy().into_owned(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pid == 0 {
            return f.write_str("another process (which has not written its name yet)");
        }
        let age = now().saturating_sub(self.since);
        write!(f, "process {} ({}) on {} for {age} s", self.pid, self.program, self.host)
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "an unnamed host".into())
}
