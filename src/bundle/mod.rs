//! The bundle: winners of one or more architectures sealed into one flat file, and read back.
//!
//! Owns the file format, its checks and its writing. It launches nothing and knows no database: `runtime` launches what
//! it holds, the program's `export` gathers what goes in.
//!
//! ```text
//! header     48 bytes: magic, version, counts and lengths (layout.rs)
//! table      40 bytes an artifact: its length and its blake3
//! manifest   JSON: devices, descriptions, roles of artifacts, winners (manifest.rs)
//! artifacts  one after another, each at the next multiple of 16, zeros between
//! seal       blake3 of every byte before it
//! ```
//! Integers are little-endian. Nothing is allocated before the lengths of the header were found to add up to the length
//! of the file. Same winners, same bytes: there is no clock in it but the winners' own.
#![forbid(unsafe_code)]

mod error;
mod layout;
mod manifest;
mod seal;
mod signature;

pub use crate::limits::{MAX_ARTIFACT_BYTES, MAX_ARTIFACTS, MAX_BUNDLE_BYTES, MAX_MANIFEST_BYTES, MAX_WINNERS};
pub use error::BundleError;
pub use layout::VERSION;
pub use manifest::ArtifactRole;
pub use seal::{Extras, Part};
pub use signature::{PublicKey, signature_path};

use crate::device::{Device, Target};
use crate::file;
use crate::limits::MAX_MANIFEST_WEIGHT;
use crate::problem::Problem;
use crate::recipe::{Config, Description};
use crate::winner::{Evidence, Winner};
use layout::{HEADER_BYTES, Header};
use manifest::{Manifest, SealedWinner};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

/// A checked bundle. Borrows its bytes (`include_bytes!`, a memory map) or owns them.
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    bytes: Cow<'a, [u8]>,
    manifest: Manifest,
    artifacts: Vec<Stored>,
}

#[derive(Clone, Debug)]
struct Stored {
    range: Range<usize>,
    hash: blake3::Hash,
}

/// One artifact of a bundle.
#[derive(Clone, Copy, Debug)]
pub struct SealedArtifact<'b> {
    /// Its position in the file.
    pub index: usize,
    /// What it is for.
    pub role: ArtifactRole,
    /// The code: a cubin or a shared object.
    pub bytes: &'b [u8],
    hash: blake3::Hash,
}

impl SealedArtifact<'_> {
    /// Its blake3 hash in hex.
    pub fn hash(&self) -> String {
        self.hash.to_hex().to_string()
    }
}

/// One winner of a bundle, in place.
#[derive(Clone, Copy)]
pub struct Held<'b> {
    bundle: &'b Bundle<'b>,
    winner: &'b SealedWinner,
}

/// Reads a file, but not at all when its header does not fit its length.
fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    let io = |source| BundleError::Io { doing: "read", path: path.into(), source };
    let mut file = file::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let mut head = [0; HEADER_BYTES];
    let have = usize::try_from(length).unwrap_or(usize::MAX).min(HEADER_BYTES);
    file.read_exact(&mut head[..have]).map_err(io)?;
    Header::read(&head[..have], length)?;
    let mut bytes = Vec::new();
    // A file of holes may be longer than there is memory.
    let full = |_| io(std::io::ErrorKind::OutOfMemory.into());
    bytes.try_reserve_exact(length as usize + 1).map_err(full)?;
    bytes.extend_from_slice(&head);
    // One byte more than stated would show a file that grows while it is read.
    file.take(length - HEADER_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
    Ok(bytes)
}

impl Bundle<'static> {
    /// Reads a file. It is not read at all when its header does not fit its length. That it is as it was sealed does not say
    /// who sealed it: [`Bundle::open_signed`] does.
    pub fn open(path: impl AsRef<Path>) -> Result<Bundle<'static>, BundleError> {
        Bundle::parse(read(path.as_ref())?)
    }
}

impl<'a> Bundle<'a> {
    /// Checks every byte and takes it as a bundle.
    pub fn parse(bytes: impl Into<Cow<'a, [u8]>>) -> Result<Bundle<'a>, BundleError> {
        let bytes = bytes.into();
        let header = Header::read(&bytes, bytes.len() as u64)?;
        header.check_seal(&bytes)?;
        let table = header.table(&bytes)?;
        let text = &bytes[header.manifest()];
        let (offset, found) = (header.manifest().start, manifest::weight(text));
        if found > MAX_MANIFEST_WEIGHT {
            let what = "the weight of the manifest's parts";
            return Err(BundleError::Limit { offset, what, found, most: MAX_MANIFEST_WEIGHT });
        }
        let manifest: Manifest =
            serde_json::from_slice(text).map_err(|e| BundleError::Manifest { offset, why: e.to_string() })?;
        manifest.check(&header)?;
        let artifacts = table.into_iter().map(|(range, hash)| Stored { range, hash }).collect();
        Ok(Bundle { bytes, manifest, artifacts })
    }

    /// The file's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The version of jitune that sealed it.
    pub fn sealed_by(&self) -> &str {
        &self.manifest.jitune
    }

    /// When the newest of its winners was chosen, in Unix seconds.
    pub fn created(&self) -> u64 {
        self.manifest.created
    }

    /// How many winners it holds.
    pub fn len(&self) -> usize {
        self.manifest.winners.len()
    }

    /// True when it holds no winner.
    pub fn is_empty(&self) -> bool {
        self.manifest.winners.is_empty()
    }

    /// Its winners, in the order of the file: by target, architecture, problem.
    pub fn winners(&self) -> impl ExactSizeIterator<Item = Held<'_>> {
        self.manifest.winners.iter().map(|winner| Held { bundle: self, winner })
    }

    /// Its artifacts.
    pub fn artifacts(&self) -> impl ExactSizeIterator<Item = SealedArtifact<'_>> {
        (0..self.artifacts.len()).map(|i| self.artifact(i))
    }

    /// The devices that its winners were tuned on.
    pub fn devices(&self) -> &[Device] {
        &self.manifest.devices
    }

    /// The targets and architectures that it serves.
    pub fn arches(&self) -> BTreeSet<(Target, &str)> {
        self.manifest.devices.iter().map(|d| (d.target, d.arch.as_str())).collect()
    }

    fn artifact(&self, index: usize) -> SealedArtifact<'_> {
        let stored = &self.artifacts[index];
        let bytes = &self.bytes[stored.range.clone()];
        SealedArtifact { index, role: self.manifest.artifacts[index], bytes, hash: stored.hash }
    }
}

impl<'b> Held<'b> {
    /// The problem.
    pub fn problem(&self) -> Problem {
        self.winner.problem
    }

    /// The config.
    pub fn config(&self) -> &'b Config {
        &self.winner.config
    }

    /// The template's description.
    pub fn description(&self) -> &'b Description {
        &self.bundle.manifest.descriptions[self.winner.description as usize]
    }

    /// The position of its description in the file: winners of one template share it.
    pub fn description_index(&self) -> usize {
        self.winner.description as usize
    }

    /// The device it was tuned on.
    pub fn device(&self) -> &'b Device {
        &self.bundle.manifest.devices[self.winner.device as usize]
    }

    /// Why it may be believed.
    pub fn evidence(&self) -> &'b Evidence {
        &self.winner.evidence
    }

    /// Its kernel.
    pub fn artifact(&self) -> SealedArtifact<'b> {
        self.bundle.artifact(self.winner.artifact as usize)
    }

    /// The device-side code that `jitune verify` fills and compares with, where the target needs one.
    pub fn support(&self) -> Option<SealedArtifact<'b>> {
        self.winner.support.map(|i| self.bundle.artifact(i as usize))
    }

    /// The f64 reference that `jitune verify` compares with, where the target needs one.
    pub fn reference(&self) -> Option<(SealedArtifact<'b>, &'b Description)> {
        let r = self.winner.reference.as_ref()?;
        let description = &self.bundle.manifest.descriptions[r.description as usize];
        Some((self.bundle.artifact(r.artifact as usize), description))
    }

    /// Whether both are the same entry of the same file.
    pub fn same(&self, other: &Held<'_>) -> bool {
        std::ptr::addr_eq(self.winner, other.winner)
    }

    /// The winner as the tuner stores it.
    pub fn winner(&self) -> Winner {
        Winner {
            problem: self.problem(),
            config: self.config().clone(),
            artifact: self.artifact().hash(),
            description: self.description().clone(),
            device: self.device().clone(),
            evidence: self.evidence().clone(),
        }
    }
}
