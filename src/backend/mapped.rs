//! Files that are read where they lie.

use memmap2::Mmap;
use std::fs::File;
use std::path::Path;

/// The bytes of a file, brought in as they are read.
#[derive(Debug)]
pub struct Mapped(Mmap);

impl Mapped {
    /// Maps a file. Whoever shortens it meanwhile ends the processes that read what is gone, as for any mapped file.
    pub fn open(path: &Path) -> std::io::Result<Mapped> {
        let file = File::open(path)?;
        // SAFETY: the bytes are only read, as numbers of which any is allowed, and checked before each is believed; a file
        // that is shortened meanwhile faults, which is no undefined behaviour.
        unsafe { Mmap::map(&file) }.map(Mapped)
    }
}

impl std::ops::Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
