//! Standard output and standard error. What cannot be written (a full disk, a closed pipe) never panics: of standard
//! output it is the program's error at its end, so that work that goes on beside it is not lost; of standard error it is
//! passed over, since there is nowhere to say it.
//!
//! Much of what is printed was written by others: names in bundles and journals, what compilers and peers say. So nothing
//! reaches a terminal that it would obey, or that would show as something else than it is: see [`escaped`].

use super::CliError;
use std::borrow::Cow;
use std::fmt::Arguments;
use std::io::{Error, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The first failure of standard output.
static FAILED: OnceLock<Error> = OnceLock::new();

/// A text without what a terminal obeys (control characters but for the ends of lines and tabs) and what turns or hides other
/// text (marks of direction, and those without width): in their place stands `\u` with four digits, which within a string of
/// JSON is the same character.
pub fn escaped(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| {
        let control = c.is_control() && !matches!(c, '\n' | '\t');
        control
            || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    if !text.contains(harmful) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match harmful(c) {
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// The same in one line: for cells of tables, and names.
pub fn one_line(text: &str) -> String {
    escaped(text).replace('\n', "\\n").replace('\t', "\\t")
}

/// A path in JSON, which is text: what is no character of its name is shown as one that stands for it.
pub fn lossy(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}

/// The same of several.
pub fn lossy_all(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(lossy).collect()
}

/// Writes to standard output.
pub fn write(text: Arguments<'_>) {
    bytes(escaped(&text.to_string()).as_bytes());
}

/// Writes bytes to standard output as they are.
pub fn bytes(bytes: &[u8]) {
    if FAILED.get().is_none()
        && let Err(e) = std::io::stdout().lock().write_all(bytes)
    {
        let _ = FAILED.set(e);
    }
}

/// Writes a piece of a text that grows, and shows it at once.
#[cfg(feature = "engine")]
pub fn piece(text: &str) {
    write(format_args!("{text}"));
    if FAILED.get().is_none()
        && let Err(e) = std::io::stdout().lock().flush()
    {
        let _ = FAILED.set(e);
    }
}

/// Writes a line to standard error.
pub fn error(text: Arguments<'_>) {
    let text = format!("{text}\n");
    let _ = std::io::stderr().lock().write_all(escaped(&text).as_bytes());
}

/// A failure of standard output as the program's error.
pub fn failed(source: Error) -> CliError {
    CliError::Io { path: "standard output".into(), source }
}

/// Writes what is still held back, and says whether all was written.
pub fn finish() -> Result<(), CliError> {
    let flushed = std::io::stdout().lock().flush();
    let failed = FAILED.get().map(|e| Error::from(e.kind()));
    failed.map_or(flushed, Err).map_err(self::failed)
}

/// Prints a line on standard output.
macro_rules! out {
    ($($text:tt)*) => { $crate::out::write(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints a line on standard error.
macro_rules! err {
    ($($text:tt)*) => { $crate::out::error(format_args!($($text)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_written_out() {
        let plain = "µs ≤ 5, naïve\n\tnext: 漢字 🙂";
        assert!(matches!(escaped(plain), Cow::Borrowed(same) if same == plain));
        for (raw, safe) in [
            ("\x1b]0;title\x07", "\\u001b]0;title\\u0007"),
            ("\x1b[2J", "\\u001b[2J"),
            ("a\rb\x08\x7f", "a\\u000db\\u0008\\u007f"),
            ("\u{9b}31m", "\\u009b31m"),
            ("\u{202e}cba\u{2066}", "\\u202ecba\\u2066"),
            ("a\u{200b}b\u{feff}", "a\\u200bb\\ufeff"),
        ] {
            assert_eq!(escaped(raw), safe);
            // In JSON it is the same text.
            let json = serde_json::to_string(raw).unwrap();
            assert_eq!(serde_json::from_str::<String>(&escaped(&json)).unwrap(), raw);
        }
        assert_eq!(one_line("a\nb\tc\x1b"), "a\\nb\\tc\\u001b");
    }
}
