//! Why a bundle is refused. Every variant carries what was found and where, and says what to do.

use crate::problem::Problem;
use crate::recipe::RecipeError;
use std::path::PathBuf;

/// A bundle that cannot be read or sealed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The first bytes are not a bundle's.
    #[error("not a jitune bundle: it begins with \"{}\"; give a file that `jitune export` wrote", found.escape_ascii())]
    NotABundle {
        /// Its first bytes.
        found: Vec<u8>,
    },
    /// A format of another version.
    #[error("the bundle has format {found} and this jitune reads format {expected}; export it again with this version")]
    Version {
        /// The version in the file.
        found: u32,
        /// The version that is read.
        expected: u32,
    },
    /// Truncated, or with bytes appended.
    #[error("the bundle holds {found} bytes where its header says {expected}; copy it again")]
    Length {
        /// What the header says, or the least that a bundle has.
        expected: u64,
        /// The real length.
        found: u64,
    },
    /// A count or length past its limit.
    #[error("byte {offset}: {what} is {found} and at most {most} is allowed; the file is not a sound bundle")]
    Limit {
        /// Where the number stands.
        offset: usize,
        /// What it counts.
        what: &'static str,
        /// The number.
        found: u64,
        /// The limit.
        most: u64,
    },
    /// A field that holds something else than the format asks.
    #[error("byte {offset}: {what} is {found} and must be {expected}; the file is not a sound bundle")]
    Field {
        /// Where it stands.
        offset: usize,
        /// Which field.
        what: &'static str,
        /// What it must be.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// Bytes whose hash differs.
    #[error(
        "the bundle is damaged: {part} at byte {offset} has blake3 {found}, and {expected} was sealed; copy it again"
    )]
    Damaged {
        /// Which bytes.
        part: String,
        /// Where they begin.
        offset: usize,
        /// The stored hash.
        expected: String,
        /// The hash of the bytes.
        found: String,
    },
    /// A manifest that does not parse.
    #[error("the manifest at byte {offset} does not parse: {why}; export the bundle again")]
    Manifest {
        /// Where it begins.
        offset: usize,
        /// The parser's message.
        why: String,
    },
    /// A manifest that contradicts itself or the header.
    #[error("the manifest's {place} is not sound: {why}; export the bundle again")]
    Unsound {
        /// Which entry.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// A winner that cannot be sealed because its recipe does not evaluate.
    #[error("'{problem}' cannot be sealed: {source}")]
    Recipe {
        /// The winner's problem.
        problem: Problem,
        /// The recipe's error.
        source: Box<RecipeError>,
    },
    /// A winner that cannot be sealed.
    #[error("'{problem}' cannot be sealed: {why}")]
    Unfit {
        /// The winner's problem.
        problem: Problem,
        /// What is wrong.
        why: String,
    },
    /// A bundle that must be signed, without a signature.
    #[error(
        "the bundle is not signed: there is no {signature}; take it from where the bundle is from, or sign it with `jitune export --sign` or `minisign -S`"
    )]
    Unsigned {
        /// Where its signature is looked for.
        signature: PathBuf,
    },
    /// A signature that is not of these bytes, or not by this key.
    #[error("the signature is not good: {why}; the bundle was changed, or signed by another key: do not use it")]
    Signature {
        /// What is wrong.
        why: String,
    },
    /// A text that is no public key.
    #[error(
        "the public key is not one of minisign's: {why}; give the file that `minisign -G` wrote, or its second line"
    )]
    Key {
        /// What is wrong.
        why: String,
    },
    /// The file system.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}
