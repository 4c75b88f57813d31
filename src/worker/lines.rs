//! One JSON object a line, as peers and engines speak.

use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::io::Read;
use std::path::Path;

/// The next line as a message of at most `most` bytes, none at the end; `rest` keeps what came after it.
pub(crate) fn next<T: DeserializeOwned>(
    from: &mut impl Read,
    rest: &mut Vec<u8>,
    most: usize,
) -> std::io::Result<Option<T>> {
    let mut searched = 0;
    loop {
        if let Some(end) = rest[searched..].iter().position(|b| *b == b'\n').map(|i| searched + i) {
            let line: Vec<u8> = rest.drain(..=end).collect();
            return serde_json::from_slice(&line).map(Some).map_err(std::io::Error::other);
        }
        searched = rest.len();
        if searched > most {
            return Err(std::io::Error::other(format!("a line of over {most} bytes")));
        }
        let mut part = [0; 1 << 16];
        match from.read(&mut part)? {
            0 => return Ok(None),
            n => rest.extend_from_slice(&part[..n]),
        }
    }
}

/// How a process was lost, with the last lines that it wrote to its log.
pub(crate) fn last_words(how: &str, log: &Path, lines: usize) -> String {
    let said = std::fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let mut last: Vec<&str> = said.lines().rev().filter(|l| !l.trim().is_empty()).take(lines).collect();
    last.reverse();
    if last.is_empty() { how.into() } else { format!("{how}; it said: {}", last.join(" / ")) }
}

/// A message as it is shown where another was expected.
pub(crate) fn short(message: &impl Debug) -> String {
    const SHOWN: usize = 200;
    let text = format!("{message:?}");
    if text.chars().count() <= SHOWN { text } else { text.chars().take(SHOWN).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jitune_peer::{Answer, Numbered};

    #[test]
    fn lines_are_taken_one_by_one_however_they_arrive() {
        let text = b"{\"id\":1,\"answer\":\"done\"}\n{\"id\":2,\"answer\":\"values\",\"count\":2}\nrubbish\n";
        for size in [1, 3, 1000] {
            let mut from = Chunks(text, size);
            let mut rest = Vec::new();
            let message = |id, message| Some(Numbered { id, message });
            assert_eq!(next(&mut from, &mut rest, 1 << 20).unwrap(), message(1, Answer::Done));
            assert_eq!(next(&mut from, &mut rest, 1 << 20).unwrap(), message(2, Answer::Values { count: 2 }));
            assert!(next::<Numbered<Answer>>(&mut from, &mut rest, 1 << 20).is_err());
            assert_eq!(next::<Numbered<Answer>>(&mut from, &mut rest, 1 << 20).unwrap(), None);
        }
    }

    struct Chunks<'a>(&'a [u8], usize);

    impl Read for Chunks<'_> {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            let n = self.1.min(self.0.len()).min(to.len());
            to[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }
}
