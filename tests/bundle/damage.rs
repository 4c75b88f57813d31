//! Story: a bundle travels over networks and disks to a machine where nobody looks. Every single-byte change, every
//! truncation and every added byte is refused with a typed error; bytes that were forged with a fitting seal may be taken
//! or refused, but never lead to a panic or to an allocation out of proportion.

use crate::allocations::largest;
use crate::make::{self, fake};
use jitune::bundle::{Bundle, BundleError, Extras, Part};
use jitune::device::Device;
use std::sync::LazyLock;

/// Small, with every part that a bundle can have.
static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (cpu, gpu) = (make::device(), Device::ahead_of_time("sm_80").unwrap());
    let (winner, code) = fake("rmsnorm", "rmsnorm rows=4 cols=2048 dtype=bf16", &gpu, b"a cubin of some bytes");
    let reference = make::LIBRARY.reference(&winner.problem, &gpu).unwrap().recipe.description.clone();
    let extras = Some(Extras { support: b"support".to_vec(), reference: (b"reference".to_vec(), reference) });
    let parts = [
        Part { winner, code, extras },
        fake("cpu_rmsnorm", "rmsnorm rows=4 cols=64 dtype=f32", &cpu, b"a shared object").into(),
    ];
    Bundle::seal(parts).unwrap().as_bytes().to_vec()
});

/// No allocation may be larger than this many times the file: a manifest's structs are larger than its text.
const PROPORTION: usize = 16;

fn refused(bytes: &[u8], what: impl std::fmt::Display) -> BundleError {
    let (most, result) = largest(|| Bundle::parse(bytes).map(drop));
    assert!(most <= PROPORTION * SOUND.len(), "{what}: an allocation of {most} bytes");
    match result {
        Err(e) => e,
        Ok(()) => panic!("{what}: taken"),
    }
}

fn reseal(bytes: &mut [u8]) {
    let at = bytes.len() - 32;
    let hash = blake3::hash(&bytes[..at]);
    bytes[at..].copy_from_slice(hash.as_bytes());
}

#[test]
fn every_changed_byte_is_refused() {
    let mut bytes = SOUND.clone();
    Bundle::parse(&bytes[..]).unwrap();
    for i in 0..bytes.len() {
        for pattern in [0x01, 0x80, 0x10, 0xff, 0x55] {
            bytes[i] ^= pattern;
            refused(&bytes, format_args!("byte {i} ^ {pattern:#x}"));
            bytes[i] ^= pattern;
        }
    }
}

#[test]
fn every_truncation_and_every_addition_is_refused() {
    let bytes = &SOUND[..];
    for n in 0..bytes.len() {
        let e = refused(&bytes[..n], format_args!("the first {n} bytes"));
        assert!(matches!(e, BundleError::Length { .. } | BundleError::NotABundle { .. }), "{n}: {e}");
    }
    for extra in [&[0][..], &[0; 16], &[0xff; 1000], bytes] {
        let e = refused(&[bytes, extra].concat(), format_args!("{} bytes more", extra.len()));
        assert!(matches!(e, BundleError::Length { .. }), "{e}");
    }
    // The same through a file, which is not read past what its header and length agree on.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b");
    for n in [0, 1, 8, 47, 48, 80, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..n]).unwrap();
        Bundle::open(&path).unwrap_err();
    }
}

#[test]
fn lengths_that_lie_are_refused_before_anything_is_allocated() {
    for (at, width) in [(8, 4), (12, 4), (16, 4), (20, 4), (24, 8), (32, 8), (40, 8), (48, 8), (88, 8)] {
        let mut value = vec![0u8; width];
        for lie in
            [0u64, 1, 0xffff, 0x1_0001, 0x7fff_ffff, 0xffff_ffff, 1 << 40, u64::MAX >> 1, u64::MAX - 15, u64::MAX]
        {
            value.copy_from_slice(&lie.to_le_bytes()[..width]);
            let mut bytes = SOUND.clone();
            bytes[at..at + width].copy_from_slice(&value);
            if bytes == *SOUND {
                continue;
            }
            reseal(&mut bytes);
            refused(&bytes, format_args!("{lie} at {at}"));
        }
    }
}

#[test]
fn an_artifact_that_is_not_the_named_one_is_refused_though_the_seal_fits() {
    let at = SOUND.windows(7).position(|w| w == b"a cubin").unwrap();
    let mut bytes = SOUND.clone();
    bytes[at] ^= 1;
    reseal(&mut bytes);
    let e = refused(&bytes, "artifact 0");
    assert!(matches!(&e, BundleError::Damaged { part, .. } if part.starts_with("artifact")), "{e}");
}

/// SplitMix64, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

#[test]
fn forged_bytes_with_a_fitting_seal_never_panic() {
    let mut random = Random(20);
    let (mut taken, mut turned_away) = (0, 0);
    for round in 0..20_000 {
        let mut bytes = SOUND.clone();
        for _ in 0..1 + random.below(4) {
            let i = random.below(bytes.len());
            // Digits become other digits often, so that the numbers of the manifest lie.
            bytes[i] = match bytes[i] {
                b'0'..=b'9' => b'0' + random.below(10) as u8,
                _ if random.below(3) == 0 => b"0123456789\"{}[],:-e. "[random.below(21)],
                _ => random.below(256) as u8,
            };
        }
        if random.below(8) == 0 {
            let (at, n) = (random.below(bytes.len()), random.below(64));
            let end = (at + n).min(bytes.len());
            bytes.drain(at..end);
            if bytes.len() < 32 {
                continue;
            }
        }
        reseal(&mut bytes);
        let (most, result) = largest(|| {
            Bundle::parse(&bytes[..]).map(|b| {
                // What was taken can be walked.
                for h in b.winners() {
                    drop((h.winner(), h.support().map(|a| a.hash()), h.reference().map(|r| r.0.hash())));
                }
            })
        });
        assert!(most <= PROPORTION * SOUND.len(), "round {round}: an allocation of {most} bytes");
        match result {
            Ok(_) => taken += 1,
            Err(_) => turned_away += 1,
        }
    }
    assert!(taken > 100 && turned_away > 1000, "{taken} taken, {turned_away} refused");
}
