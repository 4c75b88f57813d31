//! The files of rows: a comparison's are read, and none is lost to a later run.

use super::{CliError, files};
use jitune::report::Rows;
use jitune::report::text::stamp;
use std::io::ErrorKind;
use std::path::Path;
use std::time::SystemTime;

/// Keeps the rows of an earlier run, which a new one's would take the place of, under a name with their date, and says so.
pub(super) fn set_aside(path: &Path) -> Result<(), CliError> {
    files::outside(path, None)?;
    let io = files::io(path);
    let place = jitune::file::place(path).map_err(&io)?;
    let modified = match std::fs::metadata(&place) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        there => there.and_then(|there| there.modified()).map_err(&io)?,
    };
    let at = stamp(modified.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    let [stem, ending] = [place.file_stem(), place.extension()].map(|part| part.unwrap_or_default().to_string_lossy());
    let names = (1..).map(|n| match n {
        1 => format!("{stem}-{at}.{ending}"),
        n => format!("{stem}-{at}-{n}.{ending}"),
    });
    let Some(aside) = names.map(|name| place.with_file_name(name)).find(|aside| !aside.exists()) else { return Ok(()) };
    std::fs::rename(&place, &aside).map_err(&io)?;
    err!(
        "jitune: note: the rows of an earlier run, which this one does not go on with, are kept in {}",
        aside.display()
    );
    Ok(())
}

/// Reads raw rows.
pub(super) fn read(path: &Path) -> Result<Rows, CliError> {
    Rows::read(&files::rows(path)?).map_err(|source| CliError::Rows { path: path.to_path_buf(), source })
}
