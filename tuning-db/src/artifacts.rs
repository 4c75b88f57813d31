//! Owns `artifacts/ab/<blake3 hex>`: bytes stored under the hash of themselves,
//! checked on every load, and moved to quarantine when they no longer match.
//!
//! It does not know which record names which artifact (`gc` does).

use crate::{Result, disk::Disk, error::io_at, hash::ArtifactHash, recover::quarantine_dir};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

/// Name of the folder in the database folder.
pub(crate) const FOLDER: &str = "artifacts";
/// What the name of a file that is still being written starts with.
const TEMP: &str = ".tmp-";

static NEXT_TEMP: AtomicU64 = AtomicU64::new(0);

/// Where an artifact is stored.
pub(crate) fn path(dir: &Path, hash: &ArtifactHash) -> PathBuf {
    let hex = hash.to_string();
    dir.join(FOLDER).join(&hex[..2]).join(hex)
}

/// Stores bytes; they are durable when this returns.
pub(crate) fn put(dir: &Path, disk: &Disk, bytes: &[u8]) -> Result<ArtifactHash> {
    let hash = ArtifactHash::of(bytes);
    let path = path(dir, &hash);
    let root = dir.join(FOLDER);
    let folder = path.parent().unwrap_or(&root);
    if fs::read(&path).is_ok_and(|old| old == bytes) {
        // Its bytes were synced before it got this name; the name may not have been.
        return disk.sync_dir(folder).map(|()| hash);
    }
    if !folder.is_dir() {
        fs::create_dir_all(folder).map_err(io_at("create", folder))?;
        disk.sync_dir(&root)?;
        disk.sync_dir(dir)?;
    }
    let n = NEXT_TEMP.fetch_add(1, Ordering::Relaxed);
    let temp = folder.join(format!("{TEMP}{}-{n}", std::process::id()));
    let write = || {
        let mut file = File::create(&temp)?;
        file.write_all(bytes)?;
        disk.sync(&file)?;
        fs::rename(&temp, &path)
    };
    if let Err(e) = write() {
        let _ = fs::remove_file(&temp);
        return Err(io_at("store the artifact", &path)(e));
    }
    disk.sync_dir(folder)?;
    Ok(hash)
}

/// What a load found.
pub(crate) enum Loaded {
    Good(Vec<u8>),
    Missing,
    /// The bytes are not those of the name.
    Corrupt,
}

/// Loads and checks an artifact.
pub(crate) fn load(dir: &Path, hash: &ArtifactHash) -> Result<Loaded> {
    let path = path(dir, hash);
    match fs::read(&path) {
        Ok(bytes) if ArtifactHash::of(&bytes) == *hash => Ok(Loaded::Good(bytes)),
        Ok(_) => Ok(Loaded::Corrupt),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Loaded::Missing),
        Err(e) => Err(io_at("read the artifact", &path)(e)),
    }
}

/// Moves a file to quarantine, under a name that does not hide an earlier one.
pub(crate) fn quarantine(dir: &Path, disk: &Disk, file: &Path) -> Result<PathBuf> {
    let folder = quarantine_dir(dir, disk)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut to = folder.join(format!("artifact-{name}"));
    let mut n = 1;
    while to.exists() {
        to = folder.join(format!("artifact-{name}.{n}"));
        n += 1;
    }
    fs::rename(file, &to).map_err(io_at("move to quarantine", file))?;
    Ok(to)
}

/// A file under `artifacts/`.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) modified: SystemTime,
    /// The hash its name states; `None` where the name is not an artifact's.
    pub(crate) hash: Option<ArtifactHash>,
    /// Left behind by a write that was killed.
    pub(crate) temp: bool,
}

/// Every file under `artifacts/`, sorted by path.
pub(crate) fn list(dir: &Path) -> Result<Vec<Found>> {
    let mut out = Vec::new();
    let root = dir.join(FOLDER);
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(io_at("list", &folder))?,
        };
        for entry in entries {
            let entry = entry.map_err(io_at("list", &folder))?;
            let path = entry.path();
            let meta = match entry.metadata() {
                // A writer beside a reader has just renamed its temporary file.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(io_at("look at", &path))?,
            };
            if meta.is_dir() {
                folders.push(path);
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            let hash = name.parse().ok().filter(|hash| self::path(dir, hash) == path);
            out.push(Found {
                bytes: meta.len(),
                modified: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                hash,
                temp: name.starts_with(TEMP),
                path,
            });
        }
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(out)
}
