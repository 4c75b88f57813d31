//! The rows of a comparison of kernels, from their file.

use super::CliError;
use jitune::report::Rows;
use std::path::Path;

/// Reads raw rows.
pub(super) fn read(path: &Path) -> Result<Rows, CliError> {
    let bytes = std::fs::read(path).map_err(|source| CliError::Io { path: path.to_path_buf(), source })?;
    Rows::read(&bytes).map_err(|source| CliError::Rows { path: path.to_path_buf(), source })
}
