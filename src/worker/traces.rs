//! What code that ran in this process may have left there: threads, processes, another working folder.

use crate::backend::BackendError;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::path::PathBuf;
use std::time::Duration;

/// Looks at the threads again this often before they count as left: one that has ended is listed for a moment more.
const LOOKS: u32 = 20;

/// The process as it is.
pub(super) struct Traces {
    threads: usize,
    folder: Option<PathBuf>,
}

impl Traces {
    /// As it is now.
    pub(super) fn now() -> Traces {
        // The library's own pool starts its threads when it is first asked for.
        rayon::current_num_threads();
        Traces { threads: threads(), folder: std::env::current_dir().ok() }
    }

    /// Refuses what has come since.
    pub(super) fn check(&self) -> Result<(), BackendError> {
        let left = |what: String| Err(BackendError::LeftBehind { what });
        // A worker that measures has no children of its own.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if waitid(WaitId::All, look).is_ok() {
            return left("a process".into());
        }
        if std::env::current_dir().ok() != self.folder {
            return left("another working folder".into());
        }
        let mut more = 0;
        for _ in 0..LOOKS {
            more = threads().saturating_sub(self.threads);
            if more == 0 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        left(format!("{more} threads"))
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}
