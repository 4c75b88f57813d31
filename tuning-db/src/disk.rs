//! Owns what makes bytes and names durable, and that a failure of it is sticky.
//!
//! After a failed `fsync` the kernel may have dropped the pages that it could not write and call the next one a
//! success. So one failure ends all writing through the handle; whoever opens the database anew reads what is there.

use crate::{Error, Result, error::io_at};
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// The syncing of one open database, shared by all that writes in it.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    dir: PathBuf,
    failed: Arc<AtomicBool>,
}

impl Disk {
    pub(crate) fn of(dir: &Path) -> Self {
        Self { dir: dir.into(), failed: Arc::default() }
    }

    /// An error once anything could not be synced.
    pub(crate) fn usable(&self) -> Result<()> {
        match self.failed.load(Ordering::Acquire) {
            true => Err(Error::SyncFailed { path: self.dir.clone() }),
            false => Ok(()),
        }
    }

    /// Ends all writing through this handle.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }

    /// Makes a file's bytes durable, and its length.
    pub(crate) fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data().inspect_err(|_| self.fail())
    }

    /// Makes the names in a folder durable.
    pub(crate) fn sync_dir(&self, dir: &Path) -> Result<()> {
        let synced = File::open(dir).and_then(|d| d.sync_all());
        synced.inspect_err(|_| self.fail()).map_err(io_at("sync the folder", dir))
    }
}
