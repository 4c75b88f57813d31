//! Owns how a record looks as a journal line:
//! `{"crc":"<16 hex>","rec":{…}}`, where crc is the first 8 bytes of blake3 of
//! the text of `rec` exactly as it stands. That a merge brought a record is said at the start of its text, and is no part of what
//! orders it.
//!
//! It does no I/O and does not decide what happens to a bad line.

use crate::{
    Error, Result,
    record::{Key, Kind, MAX_DATE, MERGED, Reader, Record},
};
use serde::Deserialize;
use std::{borrow::Cow, ops::Range};

const OPEN: &[u8] = b"{\"crc\":\"";
const MIDDLE: &[u8] = b"\",\"rec\":";
const CLOSE: &[u8] = b"}";
const CRC_LEN: usize = 16;
/// Where the text of the record starts in a line.
const REC_AT: usize = OPEN.len() + CRC_LEN + MIDDLE.len();

/// Longest line that is stored or read: winners have 10 KB. Longer ones are bad
/// lines, and a parsed one takes up to a hundred times its length, so that a
/// hostile file cannot fill the memory.
pub(crate) const MAX_LINE: usize = 2 << 20;
/// Most line starts that are tried inside one bad line.
const MAX_SALVAGE: usize = 64;

/// What the index needs of a record; the body is not kept.
#[derive(Debug, Deserialize)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) at: u64,
    pub(crate) key: Key,
    #[serde(default)]
    pub(crate) sub: Option<String>,
}

/// A line whose checksum holds.
pub(crate) struct Sealed<'a> {
    /// The text of the record.
    pub(crate) rec: &'a [u8],
    /// blake3 of that text as it is where it was not merged.
    pub(crate) hash: [u8; 32],
}

impl Sealed<'_> {
    /// The head, or why the record is never a current one.
    pub(crate) fn head(&self, reader: &Reader) -> std::result::Result<Head, &'static str> {
        let head: Head = serde_json::from_slice(self.rec).map_err(|_| "a kind of record this version does not know")?;
        if head.at > MAX_DATE {
            return Err("its date is past the year 9999");
        }
        let read = self.record().is_some_and(|record| (reader.reads)(&record));
        if read { Ok(head) } else { Err("this version cannot make sense of its body") }
    }

    /// The whole record, or `None` where a newer version wrote the line.
    pub(crate) fn record(&self) -> Option<Record> {
        serde_json::from_slice(self.rec).ok()
    }
}

/// Checks a line (without its newline).
pub(crate) fn check(line: &[u8]) -> std::result::Result<Sealed<'_>, &'static str> {
    if line.len() > MAX_LINE {
        return Err("longer than a line may be");
    }
    let framed =
        line.starts_with(OPEN) && line.ends_with(CLOSE) && line.get(OPEN.len() + CRC_LEN..REC_AT) == Some(MIDDLE);
    if !framed {
        return Err("not of the form {\"crc\":…,\"rec\":…}");
    }
    let crc = &line[OPEN.len()..OPEN.len() + CRC_LEN];
    let rec = line.get(REC_AT..line.len() - CLOSE.len()).unwrap_or_default();
    let hash = blake3::hash(rec);
    if hash.to_hex().as_bytes().get(..CRC_LEN) != Some(crc) {
        return Err("the checksum does not match");
    }
    let hash = if rec.starts_with(MERGED.as_bytes()) { blake3::hash(&own(rec)) } else { hash };
    Ok(Sealed { rec, hash: *hash.as_bytes() })
}

/// The text of a record without what says that it was merged.
pub(crate) fn own(rec: &[u8]) -> Cow<'_, [u8]> {
    match rec.strip_prefix(MERGED.as_bytes()) {
        Some(rest) => [b"{", rest].concat().into(),
        None => rec.into(),
    }
}

/// The line, with its newline, of a record that comes from elsewhere, or why it cannot be one.
pub(crate) fn merged(rec: &[u8], reader: &Reader) -> std::result::Result<Vec<u8>, &'static str> {
    let rest = own(rec);
    // Were the line damaged later, the one in it would be salvaged, and nothing would say that it was merged.
    if rest.windows(OPEN.len()).any(|w| w == OPEN) {
        return Err("there is a journal line in it");
    }
    let text = [MERGED.as_bytes(), rest.strip_prefix(b"{").unwrap_or_default()].concat();
    let (line, _) = frame(&text);
    // One that says itself, elsewhere in its text, whether it was merged says it twice now, and does not read.
    let sealed = check(&line[..line.len() - 1])?;
    sealed.head(reader)?;
    // An export writes it again.
    sealed.record().and_then(|record| encode(&record).ok()).ok_or("written again it is longer than a line may be")?;
    Ok(line)
}

/// A record as a line, with its newline, and the hash of its text.
pub(crate) fn encode(record: &Record) -> Result<(Vec<u8>, [u8; 32])> {
    if record.at > MAX_DATE {
        return Err(Error::InvalidRecord { why: format!("its date, {}, is past the year 9999", record.at) });
    }
    let rec = record.canonical();
    let (line, hash) = frame(rec.as_bytes());
    if line.len() > MAX_LINE {
        return Err(Error::InvalidRecord {
            why: format!(
                "it is {} bytes long, at most {MAX_LINE} are stored; keep bulky data as an artifact",
                line.len()
            ),
        });
    }
    // What is acknowledged must read back: JSON nested too deep, for one, does not.
    match serde_json::from_str::<Record>(&rec) {
        Ok(back) if back.canonical() == rec => Ok((line, hash)),
        Ok(_) => Err(Error::InvalidRecord { why: "its body does not read back the same".into() }),
        Err(e) => Err(Error::InvalidRecord { why: format!("its body does not read back: {e}") }),
    }
}

/// Puts the frame around the text of a record; gives blake3 of that text too.
pub(crate) fn frame(rec: &[u8]) -> (Vec<u8>, [u8; 32]) {
    let hash = blake3::hash(rec);
    let mut line = Vec::with_capacity(REC_AT + rec.len() + 2);
    line.extend_from_slice(OPEN);
    line.extend_from_slice(&hash.to_hex().as_bytes()[..CRC_LEN]);
    line.extend_from_slice(MIDDLE);
    line.extend_from_slice(rec);
    line.extend_from_slice(CLOSE);
    line.push(b'\n');
    (line, *hash.as_bytes())
}

/// Reads a line, and a record in the frame of a line whose checksum fits, for fuzzing.
#[cfg(fuzzing)]
pub fn fuzz_line(bytes: &[u8], reader: &Reader) -> Option<Record> {
    for part in salvage(bytes) {
        let _ = check(&bytes[part]).map(|sealed| sealed.record());
    }
    let (line, _) = frame(bytes);
    let sealed = check(&line[..line.len() - 1]).ok()?;
    let _ = sealed.head(reader);
    sealed.record()
}

/// The good lines inside a bad one. A damaged newline glues two lines together:
/// both are found again, so that one bad byte costs at most one line.
pub(crate) fn salvage(bad: &[u8]) -> Vec<Range<usize>> {
    let starts: Vec<usize> =
        bad.windows(OPEN.len()).enumerate().filter(|(_, w)| *w == OPEN).map(|(i, _)| i).take(MAX_SALVAGE).collect();
    let mut found: Vec<Range<usize>> = Vec::new();
    for (i, &start) in starts.iter().enumerate() {
        if found.last().is_some_and(|r| start < r.end) {
            continue;
        }
        let ends = starts[i + 1..].iter().copied().chain([bad.len()]);
        let good = ends.flat_map(|end| [end, end - 1]).find(|&end| end > start && check(&bad[start..end]).is_ok());
        if let Some(end) = good {
            found.push(start..end);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn line(n: u64) -> Vec<u8> {
        let mut record = Record::winner(Key::new([("n", n.to_string())], []), json!({"crc": n}));
        record.at = n;
        let (mut line, _) = encode(&record).expect("encodes");
        line.pop();
        line
    }

    #[test]
    fn every_bit_flip_and_every_truncation_is_seen() {
        let good = line(1);
        assert!(check(&good).is_ok());
        for i in 0..good.len() {
            assert!(check(&good[..i]).is_err(), "cut at {i}");
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[i] ^= 1 << bit;
                assert!(check(&bad).is_err(), "byte {i} bit {bit}");
            }
        }
    }

    #[test]
    fn a_damaged_newline_costs_nothing() {
        let (a, b) = (line(1), line(2));
        let glued = [&a[..], b"x", &b[..]].concat();
        assert_eq!(salvage(&glued), [0..a.len(), a.len() + 1..glued.len()]);
        let torn_then_whole = [&a[..40], &b[..]].concat();
        assert_eq!(salvage(&torn_then_whole), vec![40..torn_then_whole.len(); 1]);
        assert!(salvage(&a[1..]).is_empty());
    }

    #[test]
    fn a_body_nested_too_deep_is_refused_before_it_is_acknowledged() {
        let mut body = json!(1);
        for _ in 0..200 {
            body = json!([body]);
        }
        let record = Record::winner(Key::default(), body);
        assert!(matches!(encode(&record), Err(Error::InvalidRecord { .. })));
    }
}
