//! Standard output and standard error. What cannot be written (a full disk, a closed pipe) never panics: of standard
//! output it is the program's error at its end, so that work that goes on beside it is not lost; of standard error it is
//! passed over, since there is nowhere to say it.

use super::CliError;
use std::fmt::Arguments;
use std::io::{Error, Write};
use std::sync::OnceLock;

/// The first failure of standard output.
static FAILED: OnceLock<Error> = OnceLock::new();

/// Writes to standard output.
pub fn write(text: Arguments<'_>) {
    if FAILED.get().is_none()
        && let Err(e) = std::io::stdout().lock().write_fmt(text)
    {
        let _ = FAILED.set(e);
    }
}

/// Writes a line to standard error.
pub fn error(text: Arguments<'_>) {
    let _ = std::io::stderr().lock().write_fmt(format_args!("{text}\n"));
}

/// Writes what is still held back, and says whether all was written.
pub fn finish() -> Result<(), CliError> {
    let flushed = std::io::stdout().lock().flush();
    let failed = FAILED.get().map(|e| Error::from(e.kind()));
    match failed.map_or(flushed, Err) {
        Err(source) => Err(CliError::Io { path: "standard output".into(), source }),
        Ok(()) => Ok(()),
    }
}

/// Prints a line on standard output.
macro_rules! out {
    ($($text:tt)*) => { $crate::out::write(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints a line on standard error.
macro_rules! err {
    ($($text:tt)*) => { $crate::out::error(format_args!($($text)*)) };
}
