//! Artifacts: compiled code on disk under the hash of its bytes, and what its compiler said of it.

use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// Compiled code on disk: a cubin or a shared object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Artifact {
    /// Its file.
    #[serde(with = "any_path")]
    pub path: PathBuf,
    /// The blake3 hash that its bytes must have, in hex.
    pub hash: String,
    /// What the compiler said.
    pub info: ArtifactInfo,
}

/// Paths in messages between processes: text where they are, else their bytes, so that a folder may have any name.
pub(crate) mod any_path {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum AnyPath {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => text.serialize(to),
            None => path.as_os_str().as_bytes().serialize(to),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        Ok(match AnyPath::deserialize(from)? {
            AnyPath::Text(text) => text.into(),
            AnyPath::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}

impl Artifact {
    /// Leaves code in `folder` under its hash. Processes that leave the same code there at the same time do not meet:
    /// each writes a file of its own and moves it into place.
    pub fn put(folder: &Path, code: &[u8], info: ArtifactInfo) -> io::Result<Artifact> {
        let hash = blake3::hash(code).to_hex().to_string();
        let path = folder.join(&hash);
        let own = folder.join(format!("{hash}.{}", std::process::id()));
        std::fs::write(&own, code)?;
        std::fs::rename(&own, &path)?;
        Ok(Artifact { path, hash, info })
    }

    /// Reads the code; an error of kind [`io::ErrorKind::InvalidData`] when it is not what was put there.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let bytes = std::fs::read(&self.path)?;
        match blake3::hash(&bytes).to_hex().as_str() == self.hash {
            true => Ok(bytes),
            false => Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged: its hash differs")),
        }
    }
}

/// What a compiler said of its code.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ArtifactInfo {
    /// Registers a thread (CUDA).
    pub registers: u32,
    /// Bytes of spill stores and loads (CUDA).
    pub spills: u32,
    /// Static shared memory in bytes (CUDA).
    pub smem: u32,
    /// Stack frame in bytes (CUDA).
    pub stack: u32,
    /// Size of the code file in bytes.
    pub bytes: u64,
    /// Seconds the compiler took.
    pub seconds: f64,
    /// Warnings worth keeping.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_lies_under_its_hash_and_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let artifact = Artifact::put(folder.path(), b"code", ArtifactInfo::default()).unwrap();
        assert_eq!(artifact.path, folder.path().join(blake3::hash(b"code").to_hex().as_str()));
        assert_eq!(artifact.bytes().unwrap(), b"code");
        assert_eq!(Artifact::put(folder.path(), b"code", ArtifactInfo::default()).unwrap(), artifact);
        std::fs::write(&artifact.path, b"other").unwrap();
        assert_eq!(artifact.bytes().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
