//! Files that are read where they lie.

use crate::file;
use memmap2::Mmap;
use std::path::Path;

/// The bytes of a file, brought in as they are read.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps a file. Nobody may write to it meanwhile: what is read would change, and where it is shortened reading what is
    /// gone ends the process, as for any mapped file.
    pub fn open(path: &Path) -> std::io::Result<Mapped> {
        let file = file::open(path)?;
        // SAFETY: nobody may write to the file meanwhile, which the documentation above says and nothing can enforce. The bytes
        // are read as numbers of which any is allowed, and lengths are held against the map's; a file that is shortened faults.
        unsafe { Mmap::map(&file) }.map(Mapped)
    }

    /// Says that nothing is read soon: what memory holds of the file counts as the process's no more, and whoever reads it after all has it
    /// from the file again.
    pub fn let_go(&self) {
        // SAFETY: the map is shared with the file and never written through, so pages that are dropped come back as they were.
        #[cfg(unix)]
        let advised = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        // Advice alone: where it is not taken, memory stays as it was.
        #[cfg(unix)]
        drop(advised);
    }
}

impl std::ops::Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
