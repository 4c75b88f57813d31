//! The one key function: what a compiled artifact depends on, and what a timing depends on too.

use crate::device::{Device, Target};
use crate::problem::Problem;
use crate::template::{Library, Template};
use jitune_db::Key;
use std::collections::BTreeMap;

/// Raised when the meaning of stored records changes.
const SCHEMA: &str = "1";
/// Raised when the way of measuring changes so that older times do not compare.
const METHOD: &str = "2";

/// What every key of a run shares.
#[derive(Clone, Debug)]
pub struct Context {
    /// The device, with its silicon fields.
    pub device: Device,
    /// The compiler as it names itself.
    pub compiler: String,
}

impl Context {
    fn compile(&self, problem: &Problem) -> BTreeMap<String, String> {
        let field = |k: &str, v: &str| (k.to_string(), v.to_string());
        BTreeMap::from([
            field("schema", SCHEMA),
            field("target", self.device.target.name()),
            field("arch", &self.device.arch),
            field("compiler", &self.compiler),
            // Op, shape, dtype, layout and fusion are all in the text form.
            field("problem", &problem.to_string()),
        ])
    }

    fn timing(&self) -> BTreeMap<String, String> {
        let mut fields = self.device.silicon.clone();
        fields.insert("method".into(), METHOD.into());
        fields
    }

    /// The key of the winner of a problem among `templates`.
    pub fn winner(&self, library: &Library, problem: &Problem, templates: &[std::sync::Arc<Template>]) -> Key {
        let mut compile = self.compile(problem);
        let list: Vec<String> = templates.iter().map(|t| library.fingerprint(t)).collect();
        compile.insert("templates".into(), short(&list.join("\n")));
        Key { compile, timing: self.timing() }
    }

    /// The key of the trials of one template on a problem; the config is the record's `sub`.
    pub fn trials(&self, library: &Library, problem: &Problem, template: &Template) -> Key {
        let mut compile = self.compile(problem);
        compile.insert("template".into(), template.name().into());
        compile.insert("source".into(), short(&library.fingerprint(template)));
        Key { compile, timing: self.timing() }
    }
}

/// The first 16 hex digits of a hash: enough to tell sources apart, short enough to read.
fn short(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..16].to_string()
}

/// The compiler of a target as keys name it.
pub fn compiler(target: Target) -> Result<String, crate::backend::BackendError> {
    match target {
        Target::Cuda => crate::backend::cuda::nvrtc::open().map(|n| format!("nvrtc {}", n.version)),
        Target::Cpu => crate::backend::cpu::cc::open().map(|c| c.version.clone()),
    }
}
