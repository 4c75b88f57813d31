//! Files that come from elsewhere or go there: what is no regular file is neither waited for nor written over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Most symbolic links that a name may lead through.
const MAX_LINKS: u32 = 40;

/// Opens a file to read. A pipe, whose reader waits for whoever would write, and a device are refused.
pub fn open(path: &Path) -> io::Result<File> {
    match fs::metadata(path)?.is_file() {
        true => File::open(path),
        false => Err(irregular()),
    }
}

/// The text of a file of at most `most` bytes.
#[cfg(any(feature = "tuner", feature = "engine"))]
pub fn text(path: &Path, most: u64) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    // One byte more shows that there is more.
    open(path)?.take(most + 1).read_to_string(&mut text)?;
    match text.len() as u64 > most {
        true => Err(too_large(format!("it has more than {most} bytes, the most that are read"))),
        false => Ok(text),
    }
}

/// The error of a file that is larger than what is read.
#[cfg(any(feature = "tuner", feature = "engine"))]
pub fn too_large(why: String) -> io::Error {
    io::Error::new(ErrorKind::FileTooLarge, why)
}

/// The file that a name leads to through symbolic links, whether it is there yet or not. Where something else than a regular file
/// is, nothing is to be written.
pub fn place(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_symlink() => {
                let to = fs::read_link(&path)?;
                path = path.parent().unwrap_or(Path::new("")).join(to);
            }
            Ok(found) if found.is_file() => return Ok(path),
            Ok(_) => return Err(irregular()),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(path),
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::new(ErrorKind::InvalidInput, "its symbolic links lead nowhere"))
}

fn irregular() -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, "it is no regular file; give one")
}

/// A file that is written beside the one that it is to become. Where it does not come to that, nothing is left of it.
#[derive(Debug)]
pub struct Staged {
    temp: PathBuf,
    path: PathBuf,
    file: File,
}

impl Staged {
    /// One that holds nothing yet.
    pub fn create(path: &Path) -> io::Result<Staged> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let path = place(path)?;
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let temp = path.with_file_name(format!(".{name}.{}-{number}.tmp", std::process::id()));
        let file = OpenOptions::new().write(true).create_new(true).open(&temp)?;
        Ok(Staged { temp, path, file })
    }

    /// One with these bytes, which are on the disk.
    pub fn new(path: &Path, bytes: &[u8]) -> io::Result<Staged> {
        let mut staged = Staged::create(path)?;
        staged.write_all(bytes)?;
        staged.file.sync_all()?;
        Ok(staged)
    }

    /// Puts it in the place of the other: there are the old bytes or these, whatever happens.
    pub fn commit(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.temp, &self.path)?;
        // The rename is durable once the folder is; a file system that cannot sync one has no better way.
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Ok(folder) = File::open(folder) {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // There is none once it has its name.
        let _ = fs::remove_file(&self.temp);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    #[test]
    fn links_are_followed_and_what_is_no_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("deep")).unwrap();
        symlink("deep/file", at("link")).unwrap();
        symlink(at("link"), at("second")).unwrap();
        symlink("loop", at("loop")).unwrap();
        // Where nothing is yet, and where something is.
        for text in ["old", "new"] {
            Staged::new(&at("second"), text.as_bytes()).unwrap().commit().unwrap();
            assert_eq!(fs::read_to_string(at("deep/file")).unwrap(), text);
        }
        assert!(fs::symlink_metadata(at("second")).unwrap().is_symlink() && at("link").is_symlink());
        drop(Staged::new(&at("second"), b"not taken").unwrap());
        assert_eq!(fs::read_to_string(at("second")).unwrap(), "new");
        assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
        for name in ["fifo", "deep", "loop"] {
            assert!(Staged::new(&at(name), b"x").is_err() && open(&at(name)).is_err(), "{name}");
        }
        let left: Vec<_> = fs::read_dir(at("deep")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["file"]);
    }
}
