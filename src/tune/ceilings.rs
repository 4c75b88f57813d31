//! A device and its ceilings, measured by themselves.

use super::TuneError;
use super::measurer::Measurer;
use crate::device::Device;
use crate::problem::Dtype;
use crate::template::Library;
use crate::worker::{Answer, Kind, Request, Worker};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the support code may take to compile.
const DEADLINE: Duration = Duration::from_secs(90);

/// Describes the device of `kind` and measures its ceilings, in workers of the program at `exe`. What is compiled for it
/// is left in `folder`.
pub fn ceilings(
    exe: &PathBuf,
    kind: Kind,
    library: &Library,
    dtype: Dtype,
    folder: &Path,
) -> Result<Device, TuneError> {
    let mut measurer = Measurer::start(exe.clone(), kind)?;
    let source = Box::new(library.support(dtype, measurer.device())?);
    let request = Request::Compile { source, folder: folder.to_path_buf() };
    let support = match Worker::start(exe, Kind::Compile)?.ask(&request, DEADLINE)? {
        Answer::Compiled { path, hash, .. } => (path, hash),
        Answer::Failed(f) if f.is_of_the_machine() => return Err(TuneError::Device(f)),
        other => return Err(TuneError::Support { what: "the support code".into(), why: format!("{other:?}") }),
    };
    measurer.ceilings(Some(support))?;
    Ok(measurer.device().clone())
}
