//! Files that the program reads and writes: what is read has an end, what is written is whole before it has its name, and none of
//! it lies in a database.

use super::CliError;
use crate::out::escaped;
use jitune::file::{Staged, place, too_large};
use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Most bytes of a text that people write: a plan, a README.
pub const MAX_TEXT_BYTES: u64 = 16 << 20;
/// Most bytes of what another tool reports.
#[cfg(feature = "bench")]
pub const MAX_REPORT_BYTES: u64 = 256 << 20;
/// Most bytes of the rows of a run.
const MAX_ROWS_BYTES: u64 = 2 << 30;
/// Most bytes of one line of them.
const MAX_LINE_BYTES: usize = 64 << 20;
/// Bytes that are read at a time.
const PART: u64 = 1 << 20;

/// A file's error as the program's.
pub fn io(path: &Path) -> impl Fn(Error) -> CliError + '_ {
    |source| CliError::Io { path: path.into(), source }
}

/// The text of a file of at most `most` bytes, which may be a pipe.
pub fn text(path: &Path, most: u64) -> Result<String, CliError> {
    text_of(File::open(path).map_err(io(path))?, path, most)
}

/// The same of what is open already.
pub fn text_of(from: impl Read, path: &Path, most: u64) -> Result<String, CliError> {
    let mut text = String::new();
    // One byte more shows that there is more.
    from.take(most + 1).read_to_string(&mut text).map_err(io(path))?;
    match text.len() as u64 > most {
        true => Err(io(path)(too_large(format!("it has more than {most} bytes, the most that are read")))),
        false => Ok(text),
    }
}

/// The rows of a run, which may be a pipe.
pub fn rows(path: &Path) -> Result<Vec<u8>, CliError> {
    let mut file = File::open(path).map_err(io(path))?;
    let (mut bytes, mut line) = (Vec::new(), 0);
    loop {
        let before = bytes.len();
        let read = file.by_ref().take(PART).read_to_end(&mut bytes).map_err(io(path))?;
        if read == 0 {
            return Ok(bytes);
        }
        line = bytes[before..].iter().rposition(|b| *b == b'\n').map_or(line + read, |end| read - end - 1);
        let over = match () {
            _ if line > MAX_LINE_BYTES => format!("a line of it has more than {MAX_LINE_BYTES} bytes"),
            _ if bytes.len() as u64 > MAX_ROWS_BYTES => format!("it has more than {MAX_ROWS_BYTES} bytes"),
            _ => continue,
        };
        return Err(io(path)(too_large(format!("{over}, the most that are read"))));
    }
}

/// Refuses an output that would lie in a database, through whatever links: in the one that is asked for, or in a folder that is one.
pub fn outside(path: &Path, asked: Option<&Path>) -> Result<(), CliError> {
    let real = real(path).map_err(io(path))?;
    let asked = asked.and_then(|folder| self::real(folder).ok());
    let is = |folder: &&Path| asked.as_deref() == Some(*folder) || jitune_db::is_database(folder);
    match real.ancestors().find(is) {
        Some(database) => Err(CliError::InDatabase { path: path.into(), database: database.into() }),
        None => Ok(()),
    }
}

/// Where a path leads, whether something is there yet or not.
pub fn real(path: &Path) -> Result<PathBuf, Error> {
    match path.canonicalize() {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        found => return found,
    }
    let path = place(path)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => real(folder)?,
        _ => PathBuf::from(".").canonicalize()?,
    };
    // Without a name it ends in `..`.
    Ok(path.file_name().map_or_else(|| folder.parent().unwrap_or(&folder).into(), |name| folder.join(name)))
}

/// Writes a file that takes the place of one of that name once it is whole.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    outside(path, None)?;
    Staged::new(path, bytes).and_then(Staged::commit).map_err(io(path))
}

/// Writes texts to files of a folder, and says which they are. Part of them is what others wrote, and they are shown in terminals.
pub fn put<N: AsRef<Path>>(folder: &Path, files: Vec<(N, String)>) -> Result<Vec<PathBuf>, CliError> {
    outside(folder, None)?;
    if !folder.as_os_str().is_empty() {
        std::fs::create_dir_all(folder).map_err(io(folder))?;
    }
    let one = |(name, text): (N, String)| {
        let path = folder.join(name);
        write(&path, escaped(&text).as_bytes())?;
        Ok(path)
    };
    files.into_iter().map(one).collect()
}
