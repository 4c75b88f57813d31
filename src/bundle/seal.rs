//! Making a bundle: from winners and their code to bytes, and from bytes to a file that appears whole or not at all.

use super::manifest::{Manifest, Reference, SCHEMA, SealedWinner};
use super::{ArtifactRole, Bundle, BundleError, layout, signature_path};
use crate::file::Staged;
use crate::recipe::Description;
use crate::winner::{Winner, is_time};
use std::collections::HashMap;
use std::path::Path;

/// One winner to be sealed.
#[derive(Clone, Debug)]
pub struct Part {
    /// The winner.
    pub winner: Winner,
    /// Its artifact's bytes; their hash is the one that the winner names.
    pub code: Vec<u8>,
    /// What verification needs beside.
    pub extras: Option<Extras>,
}

impl From<(Winner, Vec<u8>)> for Part {
    fn from((winner, code): (Winner, Vec<u8>)) -> Part {
        Part { winner, code, extras: None }
    }
}

impl Part {
    /// Says what would make it useless, so that it is found here rather than in production: code that is not the one
    /// named, evidence without a time, a recipe that does not evaluate.
    pub fn check(&self) -> Result<(), BundleError> {
        let w = &self.winner;
        let unfit = |why: String| Err(BundleError::Unfit { problem: w.problem, why });
        let found = blake3::hash(&self.code).to_hex();
        if found.as_str() != w.artifact {
            return unfit(format!("its code has blake3 {found} and it names {}", w.artifact));
        }
        if !is_time(w.evidence.median_us) {
            return unfit(format!("its evidence has a median of {} µs", w.evidence.median_us));
        }
        w.launch().map(drop).map_err(|e| BundleError::Recipe { problem: w.problem, source: Box::new(e) })
    }
}

/// Code that lets a machine without a compiler verify a winner. Production ignores it.
#[derive(Clone, Debug)]
pub struct Extras {
    /// The device-side support code.
    pub support: Vec<u8>,
    /// The f64 reference and its description.
    pub reference: (Vec<u8>, Description),
}

/// Things that stand once each, in the order in which they first came.
struct Once<T> {
    list: Vec<T>,
    index: HashMap<Vec<u8>, u32>,
}

impl<T> Once<T> {
    fn new() -> Once<T> {
        Once { list: Vec::new(), index: HashMap::new() }
    }

    fn put(&mut self, key: Vec<u8>, value: T) -> u32 {
        *self.index.entry(key).or_insert_with(|| {
            self.list.push(value);
            self.list.len() as u32 - 1
        })
    }
}

impl Bundle<'static> {
    /// Seals winners. The bytes depend on the winners alone, not on their order or the time.
    ///
    /// Refuses a winner whose code is not the one it names, whose recipe does not evaluate, or that stands there twice.
    pub fn seal<P: Into<Part>>(parts: impl IntoIterator<Item = P>) -> Result<Bundle<'static>, BundleError> {
        let mut keyed = Vec::new();
        for part in parts {
            let part: Part = part.into();
            part.check()?;
            let d = &part.winner.device;
            // What a device is, without the ceilings that were measured on it in one run or another.
            let key = (d.target, d.arch.clone(), part.winner.problem.to_string(), d.silicon.clone());
            keyed.push((key, part));
        }
        keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
        if let Some(pair) = keyed.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let problem = pair[0].1.winner.problem;
            return Err(BundleError::Unfit { problem, why: "two winners for one device are given".into() });
        }
        let (mut devices, mut descriptions, mut artifacts) = (Once::new(), Once::new(), Once::new());
        let mut winners = Vec::new();
        for (_, part) in &keyed {
            let w = &part.winner;
            let mut code = |role: ArtifactRole, bytes: &'_ [u8]| {
                let mut key = blake3::hash(bytes).as_bytes().to_vec();
                key.push(role as u8);
                artifacts.put(key, (role, bytes.to_vec()))
            };
            let artifact = code(ArtifactRole::Kernel, &part.code);
            let mut winner = SealedWinner {
                problem: w.problem,
                config: w.config.clone(),
                description: descriptions.put(json(&w.description)?, w.description.clone()),
                device: devices.put(json(&w.device)?, w.device.clone()),
                artifact,
                support: None,
                reference: None,
                evidence: w.evidence.clone(),
            };
            if let Some(Extras { support, reference: (bytes, d) }) = &part.extras {
                winner.support = Some(code(ArtifactRole::Support, support));
                let artifact = code(ArtifactRole::Reference, bytes);
                winner.reference = Some(Reference { artifact, description: descriptions.put(json(d)?, d.clone()) });
            }
            winners.push(winner);
        }
        let manifest = Manifest {
            schema: SCHEMA,
            jitune: env!("CARGO_PKG_VERSION").into(),
            created: winners.iter().map(|e| e.evidence.at).max().unwrap_or(0),
            devices: devices.list,
            descriptions: descriptions.list,
            artifacts: artifacts.list.iter().map(|(role, _)| *role).collect(),
            winners,
        };
        let code: Vec<&[u8]> = artifacts.list.iter().map(|(_, bytes)| bytes.as_slice()).collect();
        let bytes = layout::assemble(&code, manifest.winners.len(), &json(&manifest)?)?;
        // Nothing is handed out that would not be taken back.
        Bundle::parse(bytes)
    }
}

impl Bundle<'_> {
    /// Writes the file: a temporary one beside it, synced, then renamed, so that `path` holds the old file or the new one whatever
    /// happens. A symbolic link is followed; [`BundleError::Io`] where something else than a regular file is there.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), BundleError> {
        self.staged(path.as_ref())?.commit().map_err(not_written(path.as_ref()))
    }

    /// The same, with the text of its signature beside it as [`signature_path`] says: where either cannot be written, neither is.
    pub fn write_signed(&self, path: impl AsRef<Path>, signature: &str) -> Result<(), BundleError> {
        let (path, beside) = (path.as_ref(), signature_path(path.as_ref()));
        let (bundle, signature) = (self.staged(path)?, staged(&beside, signature.as_bytes())?);
        bundle.commit().map_err(not_written(path))?;
        signature.commit().map_err(not_written(&beside))
    }

    fn staged(&self, path: &Path) -> Result<Staged, BundleError> {
        staged(path, self.as_bytes())
    }
}

fn staged(path: &Path, bytes: &[u8]) -> Result<Staged, BundleError> {
    Staged::new(path, bytes).map_err(not_written(path))
}

fn not_written(path: &Path) -> impl FnOnce(std::io::Error) -> BundleError {
    move |source| BundleError::Io { doing: "write", path: path.into(), source }
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, BundleError> {
    serde_json::to_vec(value).map_err(|e| BundleError::Manifest { offset: 0, why: e.to_string() })
}
