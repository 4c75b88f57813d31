//! The manifest: what a bundle says of its artifacts and winners. Descriptions and devices stand once each and are named
//! by position.

use super::BundleError;
use super::layout::Header;
use crate::device::Device;
use crate::limits::{MAX_DESCRIPTIONS, MAX_DEVICES, MAX_EXPRESSIONS_BYTES};
use crate::problem::Problem;
use crate::recipe::{Config, Description, Role};
use crate::winner::{Evidence, is_time};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// The version of the manifest's fields.
pub(super) const SCHEMA: u32 = 1;

/// What an artifact is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactRole {
    /// The kernels that production launches.
    Kernel,
    /// An f64 reference, for `jitune verify`.
    Reference,
    /// Filling and comparing on the device, for `jitune verify`.
    Support,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub schema: u32,
    /// The version that sealed it.
    pub jitune: String,
    /// When the newest winner was chosen.
    pub created: u64,
    pub devices: Vec<Device>,
    pub descriptions: Vec<Description>,
    /// The role of each artifact.
    pub artifacts: Vec<ArtifactRole>,
    pub winners: Vec<SealedWinner>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SealedWinner {
    pub problem: Problem,
    pub config: Config,
    pub description: u32,
    pub device: u32,
    pub artifact: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub support: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Reference>,
    pub evidence: Evidence,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reference {
    pub artifact: u32,
    pub description: u32,
}

/// About how much memory a text of JSON takes when it is parsed, in units of a hundred bytes at most: 8 for an object, 1 for
/// each further value, item and key.
pub(super) fn weight(text: &[u8]) -> u64 {
    let (mut weight, mut inside, mut escaped) = (0, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            _ if inside => {}
            b'{' => weight += 8,
            b'[' | b',' | b':' => weight += 1,
            _ => {}
        }
    }
    weight
}

impl Manifest {
    /// Refuses positions that do not exist, roles and targets that do not fit, and counts that differ from the header's.
    pub fn check(&self, header: &Header) -> Result<(), BundleError> {
        let unsound = |place: &str, why: String| Err(BundleError::Unsound { place: place.into(), why });
        if self.schema != SCHEMA {
            return unsound("schema", format!("it is {} and {SCHEMA} is read", self.schema));
        }
        if self.artifacts.len() != header.artifacts as usize || self.winners.len() != header.winners as usize {
            let (a, w) = (self.artifacts.len(), self.winners.len());
            let why = format!(
                "{a} artifacts and {w} winners where the header has {} and {}",
                header.artifacts, header.winners
            );
            return unsound("list of winners", why);
        }
        let most = |what: &str, found: usize, most: usize| match found > most {
            true => unsound(what, format!("it has {found} entries, and {most} are the most")),
            false => Ok(()),
        };
        most("list of devices", self.devices.len(), MAX_DEVICES)?;
        most("list of descriptions", self.descriptions.len(), MAX_DESCRIPTIONS)?;
        let mut expressions = 0;
        for (i, d) in self.descriptions.iter().enumerate() {
            expressions += d.check().map_err(|why| BundleError::Unsound { place: format!("description {i}"), why })?;
        }
        if expressions > MAX_EXPRESSIONS_BYTES {
            let why = format!("their expressions have {expressions} bytes, and {MAX_EXPRESSIONS_BYTES} are the most");
            return unsound("list of descriptions", why);
        }
        let mut known = HashSet::new();
        for (i, e) in self.winners.iter().enumerate() {
            if !known.insert((e.problem, e.device)) {
                return unsound(&format!("winner {i} ({})", e.problem), "another is for its problem and device".into());
            }
            self.check_winner(e).or_else(|why| unsound(&format!("winner {i} ({})", e.problem), why))?;
        }
        Ok(())
    }

    fn check_winner(&self, e: &SealedWinner) -> Result<(), String> {
        let device = self.devices.get(e.device as usize).ok_or("its device does not exist")?;
        let describe = |i: u32| self.descriptions.get(i as usize).ok_or("its description does not exist");
        let artifact = |i: u32, role: ArtifactRole| match self.artifacts.get(i as usize) {
            Some(found) if *found == role => Ok(()),
            Some(found) => Err(format!("artifact {i} has the role {found:?} and is used as {role:?}")),
            None => Err(format!("artifact {i} does not exist")),
        };
        if !is_time(e.evidence.median_us) {
            return Err(format!("its median is {} µs", e.evidence.median_us));
        }
        let d = describe(e.description)?;
        if !d.role.is_run() || d.target != device.target || !d.op.iter().any(|op| op == e.problem.op().name) {
            return Err(format!("template {} is not a kernel of its op and target", d.name));
        }
        artifact(e.artifact, ArtifactRole::Kernel)?;
        if let Some(i) = e.support {
            artifact(i, ArtifactRole::Support)?;
        }
        if let Some(r) = &e.reference {
            artifact(r.artifact, ArtifactRole::Reference)?;
            let d = describe(r.description)?;
            if d.role != Role::Reference
                || d.target != device.target
                || !d.op.iter().any(|op| op == e.problem.op().name)
            {
                return Err(format!("template {} is not a reference of its op and target", d.name));
            }
        }
        Ok(())
    }
}
