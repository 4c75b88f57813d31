use super::CliError;
use std::path::Path;
pub(super) fn write(_: &Path, _: &Path, _: bool) -> Result<(), CliError> {
    Ok(())
}
