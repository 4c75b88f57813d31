//! Owns the two 32-byte names of the store: [`KeyId`] (which key) and
//! [`ArtifactHash`] (which bytes). Both print as 64 lower-case hex digits.
//!
//! It does not decide what is hashed: `record` makes key ids and `artifacts`
//! makes artifact hashes.

use crate::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};

/// Hex digits of a full hash.
pub(crate) const HEX_LEN: usize = 64;

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    // Upper case is refused, so that one hash has one spelling on disk.
    if text.len() != HEX_LEN || text.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    blake3::Hash::from_hex(text).ok().map(|h| *h.as_bytes())
}

macro_rules! hash_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(crate) [u8; 32]);

        impl $name {
            /// The raw bytes of the hash.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The first 12 hex digits: enough for a table, never for a look-up.
            pub fn short(&self) -> String {
                self.to_string().chars().take(12).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(blake3::Hash::from_bytes(self.0).to_hex().as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                parse_hex(text).map(Self).ok_or_else(|| Error::BadHash { text: text.into() })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

hash_type! {
    /// The name of a [`Key`](crate::Key): blake3 of its canonical JSON.
    KeyId
}
hash_type! {
    /// The name of an artifact: blake3 of its bytes.
    ArtifactHash
}

impl ArtifactHash {
    /// The hash that `bytes` are stored under.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl KeyId {
    /// The id of the key with this canonical text.
    pub(crate) fn of_canonical(text: &str) -> Self {
        Self(*blake3::hash(text.as_bytes()).as_bytes())
    }
}
