//! A bundle: any bytes under a fitting seal, any manifest with two artifacts, any shared object.
#![no_main]

use jitune::backend::cpu;
use jitune::bundle::Bundle;
use jitune::runtime::{launch_on, served_on};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static HERE: LazyLock<jitune::device::Device> = LazyLock::new(|| cpu::describe(Some(2)));

/// The file of a manifest and two artifacts, as `src/bundle/layout.rs` says.
fn sealed(manifest: &[u8], winners: u32) -> Vec<u8> {
    let artifacts: [&[u8]; 2] = [b"\x7fELF of some bytes", b"reference"];
    let mut out = b"jitune\r\n".to_vec();
    for number in [1, artifacts.len() as u32, winners, 0] {
        out.extend(number.to_le_bytes());
    }
    out.extend([0; 8]);
    out.extend((manifest.len() as u64).to_le_bytes());
    out.extend([0; 8]);
    for bytes in artifacts {
        out.extend((bytes.len() as u64).to_le_bytes());
        out.extend(blake3::hash(bytes).as_bytes());
    }
    out.extend(manifest);
    let start = out.len();
    for bytes in artifacts {
        out.resize(out.len().next_multiple_of(16), 0);
        out.extend(bytes);
    }
    let (payload, file) = ((out.len() - start) as u64, out.len() as u64 + 32);
    out[24..32].copy_from_slice(&file.to_le_bytes());
    out[40..48].copy_from_slice(&payload.to_le_bytes());
    let seal = blake3::hash(&out);
    out.extend(seal.as_bytes());
    out
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    let bytes = match mode % 4 {
        0 => [rest, blake3::hash(rest).as_bytes()].concat(),
        1 => return drop(jitune::backend::fuzz_shared_object(rest)),
        more => sealed(rest, more.into()),
    };
    let Ok(bundle) = Bundle::parse(&bytes[..]) else { return };
    for held in bundle.winners() {
        drop((held.winner(), held.reference().map(|r| r.0.hash()), held.support().map(|a| a.hash())));
        let _ = launch_on(&held, &HERE);
        let _ = launch_on(&held, held.device());
        let _ = served_on(&held, held.device());
    }
});
