//! The tiles of AMX: registers of 16 rows of 64 bytes, whose products a processor adds up in a unit of its own.

use crate::device::Ceilings;
use std::sync::OnceLock;

/// Asks the system, once, to let this process use them: it saves a kilobyte eight times for each thread that does. Without it
/// the first such instruction ends the process.
pub(super) fn allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(ask)
}

#[cfg(target_arch = "x86_64")]
fn ask() -> bool {
    use std::ffi::c_long;
    unsafe extern "C" {
        fn syscall(number: c_long, ...) -> c_long;
    }
    const ARCH_PRCTL: c_long = 158;
    const REQUEST_PERMISSION: c_long = 0x1023;
    const TILES: c_long = 18;
    // SAFETY: a request with a number; no memory is passed.
    unsafe { syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILES) == 0 }
}

#[cfg(not(target_arch = "x86_64"))]
fn ask() -> bool {
    false
}

/// The ceilings of a processor whose vectors do `fma` operations a second and whose tiles of bf16 `by_tiles`, or none.
pub(super) fn ceilings(read: f64, copy: f64, fma: f64, by_tiles: f64, measured: bool) -> Ceilings {
    let single = Ceilings::single_by_bf16(by_tiles).max(fma);
    Ceilings { read, copy, half: by_tiles.max(fma), tf32: single, single, fma, measured }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_are_those_of_tiles_where_these_are_more() {
        let vectors = ceilings(1.0, 2.0, 6.0, 0.0, false);
        assert_eq!((vectors.half, vectors.single, vectors.fma), (6.0, 6.0, 6.0));
        let tiles = ceilings(1.0, 2.0, 6.0, 60.0, true);
        assert_eq!((tiles.half, tiles.single, tiles.fma, tiles.measured), (60.0, 10.0, 6.0, true));
    }
}
