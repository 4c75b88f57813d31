//! Sources: rendered code, and all that an artifact depends on beside the compiler.

use serde::{Deserialize, Serialize};

/// What a source is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// CUDA C++ for NVRTC.
    Cuda,
    /// C for the host's compiler.
    C,
}

/// Rendered code and the options it is compiled with. Self-contained: nothing is included from elsewhere but, for C,
/// system headers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// Language.
    pub language: Language,
    /// The text.
    pub text: String,
    /// Exact architecture to compile for.
    pub arch: String,
    /// Compiler options beside those that every source gets.
    pub options: Vec<String>,
    /// The entries that launches name.
    pub entries: Vec<String>,
}

impl Source {
    /// The content hash of all that the artifact depends on beside the compiler itself.
    pub fn hash(&self) -> String {
        let mut h = blake3::Hasher::new();
        for part in [self.text.as_str(), self.arch.as_str()].into_iter().chain(self.options.iter().map(String::as_str))
        {
            h.update(&(part.len() as u64).to_le_bytes());
            h.update(part.as_bytes());
        }
        h.finalize().to_hex().to_string()
    }
}
