//! Where things lie in a bundle, the limits, and the checks that come before any allocation.

use super::BundleError;
use crate::limits::{MAX_ARTIFACT_BYTES, MAX_ARTIFACTS, MAX_BUNDLE_BYTES, MAX_MANIFEST_BYTES, MAX_WINNERS};
use std::ops::Range;

/// The first bytes: a name, then bytes that a transfer in text mode changes.
pub(super) const MAGIC: [u8; 8] = *b"jitune\r\n";
/// The version of the format that is written and read.
pub const VERSION: u32 = 1;

/// Length of the header.
pub(super) const HEADER_BYTES: usize = 48;
/// Length of one entry of the table.
const ENTRY_BYTES: usize = 40;
/// Length of the seal.
const SEAL_BYTES: usize = 32;
/// Artifacts start at multiples of this, so that a loader finds its words aligned.
const ALIGN: usize = 16;
/// The least that a file can have.
const MIN_BYTES: u64 = (HEADER_BYTES + SEAL_BYTES) as u64;

/// The fixed header. Offsets: magic 0, version 8, artifacts 12, winners 16, reserved 20, file length 24, manifest
/// length 32, length of the artifacts with their padding 40.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub artifacts: u32,
    pub winners: u32,
    pub file: u64,
    pub manifest: u64,
    pub payload: u64,
}

impl Header {
    /// The header for these parts.
    pub fn of(artifacts: &[&[u8]], winners: usize, manifest: usize) -> Result<Header, BundleError> {
        let limit = |offset, what, found: usize, most: u64| match found as u64 {
            found if found > most => Err(BundleError::Limit { offset, what, found, most }),
            found => Ok(found),
        };
        let count = limit(12, "the number of artifacts", artifacts.len(), MAX_ARTIFACTS.into())?;
        let winners = limit(16, "the number of winners", winners, MAX_WINNERS.into())?;
        let manifest = limit(32, "the manifest's length", manifest, MAX_MANIFEST_BYTES)?;
        let start = table_end(count) + manifest;
        let mut end = start;
        for bytes in artifacts {
            end = align(end) + limit(40, "an artifact's length", bytes.len(), MAX_ARTIFACT_BYTES)?;
        }
        let file = limit(24, "the file's length", end as usize + SEAL_BYTES, MAX_BUNDLE_BYTES)?;
        Ok(Header { artifacts: count as u32, winners: winners as u32, file, manifest, payload: end - start })
    }

    /// The header's bytes.
    pub fn write(&self) -> [u8; HEADER_BYTES] {
        let mut b = [0; HEADER_BYTES];
        b[..8].copy_from_slice(&MAGIC);
        b[8..12].copy_from_slice(&VERSION.to_le_bytes());
        b[12..16].copy_from_slice(&self.artifacts.to_le_bytes());
        b[16..20].copy_from_slice(&self.winners.to_le_bytes());
        b[24..32].copy_from_slice(&self.file.to_le_bytes());
        b[32..40].copy_from_slice(&self.manifest.to_le_bytes());
        b[40..48].copy_from_slice(&self.payload.to_le_bytes());
        b
    }

    /// Reads the header of a file of `length` bytes, of which `bytes` is at least the beginning.
    pub fn read(bytes: &[u8], length: u64) -> Result<Header, BundleError> {
        let known = MAGIC.len().min(bytes.len());
        if bytes.is_empty() || bytes[..known] != MAGIC[..known] {
            return Err(BundleError::NotABundle { found: bytes[..known].to_vec() });
        }
        let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(BundleError::Length { expected: MIN_BYTES, found: length });
        };
        let version = u32_at(head, 8);
        if version != VERSION {
            return Err(BundleError::Version { found: version, expected: VERSION });
        }
        let header = Header {
            artifacts: u32_at(head, 12),
            winners: u32_at(head, 16),
            file: u64_at(head, 24),
            manifest: u64_at(head, 32),
            payload: u64_at(head, 40),
        };
        for (offset, what, found, most) in [
            (12, "the number of artifacts", header.artifacts.into(), MAX_ARTIFACTS.into()),
            (16, "the number of winners", header.winners.into(), MAX_WINNERS.into()),
            (24, "the file's length", header.file, MAX_BUNDLE_BYTES),
            (32, "the manifest's length", header.manifest, MAX_MANIFEST_BYTES),
            (40, "the artifacts' length", header.payload, MAX_BUNDLE_BYTES),
        ] {
            if found > most {
                return Err(BundleError::Limit { offset, what, found, most });
            }
        }
        let reserved = u32_at(head, 20);
        if reserved != 0 {
            return Err(BundleError::Field {
                offset: 20,
                what: "a reserved field",
                expected: 0,
                found: reserved.into(),
            });
        }
        if header.file != length {
            return Err(BundleError::Length { expected: header.file, found: length });
        }
        // All four are within their limits, so the sum is far inside a u64.
        let sum = table_end(header.artifacts.into()) + header.manifest + header.payload + SEAL_BYTES as u64;
        if sum != header.file {
            let what = "the sum of the parts' lengths";
            return Err(BundleError::Field { offset: 24, what, expected: header.file, found: sum });
        }
        Ok(header)
    }

    /// Where the manifest lies.
    pub fn manifest(&self) -> Range<usize> {
        let start = table_end(self.artifacts.into()) as usize;
        start..start + self.manifest as usize
    }

    /// Compares the seal with the hash of all bytes before it. `bytes` has the header's length.
    pub fn check_seal(&self, bytes: &[u8]) -> Result<(), BundleError> {
        let (body, seal) = bytes.split_at(bytes.len() - SEAL_BYTES);
        same_hash("the whole file", 0, body, seal)
    }

    /// Where each artifact lies, and its hash; every byte between them must be zero.
    pub fn table(&self, bytes: &[u8]) -> Result<Vec<(Range<usize>, blake3::Hash)>, BundleError> {
        let end = self.file as usize - SEAL_BYTES;
        let mut at = self.manifest().end;
        let mut list = Vec::with_capacity(self.artifacts as usize);
        for i in 0..self.artifacts as usize {
            let entry = HEADER_BYTES + i * ENTRY_BYTES;
            let found = u64_at(&bytes[entry..], 0);
            if found > MAX_ARTIFACT_BYTES {
                let (what, most) = ("an artifact's length", MAX_ARTIFACT_BYTES);
                return Err(BundleError::Limit { offset: entry, what, found, most });
            }
            let start = align(at as u64) as usize;
            if start + found as usize > end {
                let (what, most) = ("an artifact's length", end.saturating_sub(start) as u64);
                return Err(BundleError::Limit { offset: entry, what, found, most });
            }
            if let Some(dirty) = bytes[at..start].iter().position(|b| *b != 0) {
                let found = bytes[at + dirty].into();
                return Err(BundleError::Field { offset: at + dirty, what: "padding", expected: 0, found });
            }
            let range = start..start + found as usize;
            let hash = &bytes[entry + 8..entry + ENTRY_BYTES];
            same_hash(&format!("artifact {i}"), start, &bytes[range.clone()], hash)?;
            at = range.end;
            list.push((range, blake3::Hash::from_slice(hash).unwrap_or_else(|_| blake3::hash(&[]))));
        }
        if at != end {
            let what = "the end of the last artifact";
            return Err(BundleError::Field { offset: at, what, expected: end as u64, found: at as u64 });
        }
        Ok(list)
    }
}

/// The whole file of these parts.
pub(super) fn assemble(artifacts: &[&[u8]], winners: usize, manifest: &[u8]) -> Result<Vec<u8>, BundleError> {
    let header = Header::of(artifacts, winners, manifest.len())?;
    let mut out = Vec::with_capacity(header.file as usize);
    out.extend_from_slice(&header.write());
    for bytes in artifacts {
        out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        out.extend_from_slice(blake3::hash(bytes).as_bytes());
    }
    out.extend_from_slice(manifest);
    for bytes in artifacts {
        out.resize(align(out.len() as u64) as usize, 0);
        out.extend_from_slice(bytes);
    }
    out.extend_from_slice(blake3::hash(&out).as_bytes());
    Ok(out)
}

fn table_end(artifacts: u64) -> u64 {
    HEADER_BYTES as u64 + artifacts * ENTRY_BYTES as u64
}

fn align(at: u64) -> u64 {
    at.next_multiple_of(ALIGN as u64)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |c| u32::from_le_bytes(*c))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |c| u64::from_le_bytes(*c))
}

fn same_hash(part: &str, offset: usize, bytes: &[u8], stored: &[u8]) -> Result<(), BundleError> {
    let found = blake3::hash(bytes);
    if found.as_bytes()[..] == *stored {
        return Ok(());
    }
    let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let (expected, found) = (hex(stored), hex(found.as_bytes()));
    Err(BundleError::Damaged { part: part.into(), offset, expected, found })
}
