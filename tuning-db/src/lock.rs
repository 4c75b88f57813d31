//! Owns the `LOCK` file: one writer a database, a bounded wait, and who holds it.
//!
//! It does not protect readers: read-only mode takes no lock, because a journal
//! that only grows (or is replaced by a rename) reads consistently without one.
//! The lock is the kernel's (`flock`), so a killed holder lets go at once; the
//! text inside is for people and for the error message only.

use crate::{Error, Result, error::io_at, files, holder::Holder};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
    time::{Duration, Instant},
};

/// How often a waiting process looks again.
const POLL: Duration = Duration::from_millis(20);
/// Longest lock text that is read.
const MAX_TEXT: u64 = 4096;

/// The held lock; dropping it lets go.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Takes the lock of the database folder `dir`, waiting at most `wait`.
    pub(crate) fn take(dir: &Path, wait: Duration) -> Result<Self> {
        let path = dir.join(files::LOCK);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io_at("open the lock file", &path))?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let waited = started.elapsed();
                    if waited >= wait {
                        let holder = read_holder(&mut file);
                        return Err(Error::Locked { path: dir.into(), holder, waited });
                    }
                    std::thread::sleep(POLL.min(wait - waited));
                }
                Err(TryLockError::Error(e)) => return Err(io_at("lock", &path)(e)),
            }
        }
        let mut text = serde_json::to_string(&Holder::this_process()).unwrap_or_default();
        text.push('\n');
        let mut lock = Self { file };
        // The name is a courtesy to whoever waits: on a full disk the lock holds without it.
        let _ = lock.set_text(text.as_bytes());
        Ok(lock)
    }

    fn set_text(&mut self, text: &[u8]) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(text)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.set_text(b"");
        let _ = self.file.unlock();
    }
}

fn read_holder(file: &mut File) -> Holder {
    let mut text = String::new();
    let read = file.seek(SeekFrom::Start(0)).and_then(|_| file.take(MAX_TEXT).read_to_string(&mut text));
    match read {
        Ok(_) => serde_json::from_str(&text).unwrap_or_default(),
        Err(_) => Holder::default(),
    }
}
