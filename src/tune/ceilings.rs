//! A device and its ceilings, measured by themselves.

use super::TuneError;
use super::compilers::Compilers;
use super::measurer::Measurer;
use crate::bench::Bench;
use crate::device::{Device, DeviceId};
use crate::problem::Problem;
use crate::template::Library;
use std::path::Path;
use std::sync::Arc;

/// Describes a device and measures its ceilings with the code of this problem's types, in workers of the program at `exe`. What is compiled for it
/// is left in `folder`.
pub fn ceilings(
    exe: &Path,
    id: DeviceId,
    library: &Library,
    problem: &Problem,
    folder: &Path,
) -> Result<Device, TuneError> {
    let mut measurer = Measurer::start(exe.into(), id, Arc::default())?;
    let compilers = Compilers::start(exe.into(), folder.into(), 1, Arc::default())?;
    let support = Bench::new(library, &compilers).support(problem, measurer.device())?;
    measurer.ceilings(support)?;
    Ok(measurer.device().clone())
}
