//! Reports: from the rows of a comparison to what people read. Pure: no device, no clock, no file.

pub mod bars;
pub mod count;
pub mod html;
pub mod markdown;
pub mod markers;
pub mod palette;
pub mod passes;
pub mod precisions;
pub mod read;
pub mod readme;
pub mod roofline;
pub mod rows;
pub mod series;
pub mod standing;
pub mod summary;
pub mod svg;
pub mod tables;
pub mod terminal;
pub mod text;

pub use read::{Rows, RowsError};
pub use summary::Summary;

use rows::Run;

/// What the run was made on, by name.
pub fn environment(run: &Run) -> Vec<(String, String)> {
    let mut list = Vec::new();
    if let Some(d) = &run.device {
        let c = &d.ceilings;
        let kind = if c.measured { "measured" } else { "nominal" };
        list.push((
            "device".to_string(),
            format!("{} ({}), {} units, {} GiB", d.name, d.arch, d.units, d.memory >> 30),
        ));
        list.push((
            format!("{kind} ceilings"),
            format!(
                "read {:.0} GB/s, copy {:.0} GB/s; products: bf16/f16 {:.1}, TF32 {:.1}, f32 {:.1} TFLOP/s",
                c.read / 1e9,
                c.copy / 1e9,
                c.half / 1e12,
                c.tf32 / 1e12,
                c.single / 1e12
            ),
        ));
        list.extend(d.silicon.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    list.extend(run.host.iter().map(|(name, value)| (name.clone(), value.clone())));
    for p in run.peers.iter().filter(|p| p.here) {
        let libraries = p.libraries.iter().map(|(name, version)| format!("{name} {version}"));
        let parts = p.version.iter().cloned().chain(libraries).chain(p.device.iter().map(|d| format!("on {d}")));
        list.push((p.peer.clone(), parts.collect::<Vec<_>>().join(", ")));
    }
    list
}
