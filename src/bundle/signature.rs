//! Signatures: who sealed a bundle. A bundle is code, and its hashes say only that it is as it was sealed.
//!
//! Keys and signatures have the forms of minisign (<https://jedisct1.github.io/minisign/>): a signature is a file beside the
//! bundle, `FILE.minisig`, which the tool `minisign` makes and checks too.

use super::{Bundle, BundleError};
use crate::file;
use crate::limits::MAX_SIGNATURE_BYTES;
use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A key that says whether a bundle was signed by the one who holds its secret half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(minisign_verify::PublicKey);

impl PublicKey {
    /// Reads a key: the text of a file that `minisign -G` wrote, or its second line alone.
    pub fn read(text: &str) -> Result<PublicKey, BundleError> {
        let text = text.trim();
        let last = text.lines().last().unwrap_or_default().trim();
        let key = minisign_verify::PublicKey::from_base64(last);
        key.map(PublicKey).map_err(|e| BundleError::Key { why: e.to_string() })
    }
}

/// Where the signature of a bundle is: beside it, with `.minisig` after its name.
pub fn signature_path(bundle: &Path) -> PathBuf {
    let mut path = bundle.as_os_str().to_owned();
    path.push(".minisig");
    path.into()
}

impl Bundle<'static> {
    /// Reads a file that `key` must have signed, with its signature beside it as [`signature_path`] says. Nothing of the
    /// bundle but its lengths is looked at before the signature was found right.
    pub fn open_signed(path: impl AsRef<Path>, key: &PublicKey) -> Result<Bundle<'static>, BundleError> {
        let path = path.as_ref();
        let beside = signature_path(path);
        let mut signature = String::new();
        let file = file::open(&beside);
        let read = file.and_then(|file| file.take(MAX_SIGNATURE_BYTES).read_to_string(&mut signature));
        match read {
            Ok(_) => Bundle::parse_signed(super::read(path)?, &signature, key),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(BundleError::Unsigned { signature: beside }),
            Err(source) => Err(BundleError::Io { doing: "read", path: beside, source }),
        }
    }
}

impl<'a> Bundle<'a> {
    /// Takes bytes as a bundle that `key` must have signed, `signature` being the text of its file.
    pub fn parse_signed(
        bytes: impl Into<Cow<'a, [u8]>>,
        signature: &str,
        key: &PublicKey,
    ) -> Result<Bundle<'a>, BundleError> {
        let bytes = bytes.into();
        let refused = |e: minisign_verify::Error| BundleError::Signature { why: e.to_string() };
        let signature = minisign_verify::Signature::decode(signature).map_err(refused)?;
        // Signatures of whole files, which versions of minisign before 0.8 made, are not taken.
        key.0.verify(&bytes, &signature, false).map_err(refused)?;
        Bundle::parse(bytes)
    }
}
