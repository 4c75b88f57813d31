//! Signing bundles, and the keys that they are checked with.

use super::CliError;
use super::files;
use ct_codecs::{Base64, Decoder};
use jitune::bundle::{Bundle, BundleError, PublicKey, signature_path};
use std::io::{Cursor, Error, ErrorKind};
use std::path::{Path, PathBuf};

/// A bundle's error as the program's: the file cannot be used.
pub(super) fn unusable(path: &Path, e: BundleError) -> CliError {
    match e {
        BundleError::Io { path, source, .. } => CliError::Io { path, source },
        other => CliError::Io { path: path.into(), source: std::io::Error::other(other) },
    }
}

/// Most bytes of a key's file: two short lines.
const MOST: u64 = 64 << 10;

/// The text of a key's file, which may be a pipe, and endless.
fn text(path: &Path) -> Result<String, CliError> {
    let no_key = |e| match e {
        CliError::Io { path, source } if source.kind() == ErrorKind::FileTooLarge => {
            let why = "it is no key of minisign's: it has no end in sight";
            CliError::Io { path, source: Error::new(ErrorKind::FileTooLarge, why) }
        }
        other => other,
    };
    files::text(path, MOST).map_err(no_key)
}

/// Who must have signed a bundle.
#[derive(clap::Args, Clone, Default)]
pub struct Signer {
    /// Take the bundle only with a good signature by this key, beside it in FILE.minisig: a file that `minisign -G` wrote, or
    /// its second line.
    #[arg(long, value_name = "KEY")]
    public_key: Option<String>,
}

impl Signer {
    /// Opens a bundle.
    pub fn open(&self, path: &Path) -> Result<Bundle<'static>, CliError> {
        let Some(key) = &self.public_key else { return Bundle::open(path).map_err(|e| unusable(path, e)) };
        let key = match PublicKey::read(key) {
            Ok(key) => key,
            // It is the name of a file.
            Err(e) => {
                // What begins as keys do, and has nothing of a path, is one that is damaged.
                let like_one = key.starts_with("RW") && !key.contains(['/', '.']);
                if like_one && !Path::new(key).exists() {
                    return Err(CliError::Usage(format!("--public-key {key}: {e}; and no file has this name")));
                }
                let text = text(Path::new(key))?;
                PublicKey::read(&text).map_err(|e| CliError::Usage(format!("--public-key {key}: {e}")))?
            }
        };
        Bundle::open_signed(path, &key).map_err(|e| unusable(path, e))
    }

    /// What is said of a bundle that was opened.
    pub fn said(&self) -> &'static str {
        if self.public_key.is_some() { "signed by the given key" } else { "not asked who signed it" }
    }
}

/// Bytes of a secret key.
const BYTES: usize = 158;

/// A secret key of minisign's, without a password.
pub struct SecretKey(minisign::SecretKey);

impl SecretKey {
    /// Reads the file of a key.
    pub fn read(path: &Path) -> Result<SecretKey, CliError> {
        let failed = |why: String| CliError::Io { path: path.into(), source: Error::new(ErrorKind::InvalidData, why) };
        let text = text(path)?;
        let second = text.lines().nth(1).unwrap_or_default().trim();
        let bytes = Base64::decode_to_vec(second, None).unwrap_or_default();
        // What signs, what hides it, what guards it, then the key; without a password minisign writes no checksum.
        let [algorithm, hidden] = [0, 2].map(|at| bytes.get(at..at + 2).unwrap_or_default());
        if bytes.len() != BYTES || algorithm != b"Ed" {
            return Err(failed("it is no secret key of minisign's".into()));
        }
        if hidden != [0, 0] {
            let instead = "a key without a password (`minisign -G -W`), or sign the file with `minisign -S -m FILE`";
            return Err(failed(format!("it is behind a password, and jitune asks for none: give {instead}")));
        }
        minisign::SecretKey::from_bytes(&bytes).map(SecretKey).map_err(|e| failed(e.to_string()))
    }

    /// Writes a bundle and its signature, both or neither, and says where the signature is.
    pub fn sign(&self, bundle: &Bundle<'_>, path: &Path) -> Result<PathBuf, CliError> {
        let beside = signature_path(path);
        let failed =
            |e: &dyn std::fmt::Display| CliError::Io { path: beside.clone(), source: Error::other(e.to_string()) };
        let name = path.file_name().unwrap_or_default().to_string_lossy().replace(char::is_control, "_");
        let comment = format!("timestamp:{}\tfile:{name}\thashed", jitune_db::now());
        let made =
            minisign::sign(None, &self.0, Cursor::new(bundle.as_bytes()), Some(&comment), Some("signature by jitune"));
        let signature = made.map_err(|e| failed(&e))?.into_string();
        // A key whose parts do not belong together signs what nobody can check.
        let public = minisign::PublicKey::from_secret_key(&self.0).map_err(|e| failed(&e))?;
        let public = PublicKey::read(&public.to_base64()).map_err(|e| failed(&e))?;
        Bundle::parse_signed(bundle.as_bytes(), &signature, &public)
            .map_err(|_| failed(&"the secret key is damaged: what it signs does not agree with its public half"))?;
        bundle.write_signed(path, &signature).map_err(|e| unusable(path, e))?;
        Ok(beside)
    }
}
