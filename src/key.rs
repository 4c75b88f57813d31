//! The one key function: what a compiled artifact depends on, and what a timing depends on too.

use crate::device::{Device, Target};
use crate::model::{Model, Precision};
use crate::problem::Problem;
use crate::recipe::Role;
use crate::template::{Library, Template};
use jitune_db::Key;
use std::collections::BTreeMap;

/// Raised when the meaning of stored records changes.
pub(crate) const SCHEMA: &str = "2";
/// Raised when verdicts of before are not to be believed: until 1 some were kept that were not the candidate's fault, until
/// 2 nobody looked whether a candidate was still right after its rounds.
const JUDGING: &str = "3";
/// Raised when the way of measuring changes so that older times do not compare.
const METHOD: &str = "2";
/// The field that has it; every other one of a winner's timing is of its device's silicon.
pub(crate) const METHOD_FIELD: &str = "method";
/// The field of a winner's key that names the templates among which it was looked for.
pub(crate) const TEMPLATES: &str = "templates";
/// The field that the key of a winner has beside those of [`Context::winner`] where a whole step of a model chose it, and no other; its
/// value is raised when what that means changes.
const IN_STEPS: &str = "in_steps";
const IN_STEPS_METHOD: &str = "1";
/// The field that keys of what serves a model best have, and no others; its value is raised when what they measure changes.
pub(crate) const SERVING: &str = "serving";
const SERVING_METHOD: &str = "1";

/// What every key of a run shares.
#[derive(Clone, Debug)]
pub struct Context {
    /// The device, with its silicon fields.
    pub device: Device,
    /// The compiler as it names itself.
    pub compiler: String,
}

impl Context {
    fn compile(&self, library: &Library, problem: &Problem) -> BTreeMap<String, String> {
        let field = |k: &str, v: &str| (k.to_string(), v.to_string());
        let options = match self.device.target {
            Target::Cuda => crate::backend::cuda::nvrtc::BASE_OPTIONS.join(" "),
            Target::Cpu => crate::backend::cpu::cc::BASE_OPTIONS.join(" "),
        };
        BTreeMap::from([
            field("schema", SCHEMA),
            field("target", self.device.target.name()),
            field("arch", &self.device.arch),
            field("compiler", &self.compiler),
            field("options", &options),
            // Op, shape, dtype, layout and fusion are all in the text form.
            field("problem", &problem.bucket_text()),
            field("filled", &problem.rest_text()),
            field("judge", &short(&library.judge(problem, &self.device))),
        ])
    }

    fn constants<'t>(
        &self,
        library: &Library,
        problem: &Problem,
        templates: impl IntoIterator<Item = &'t Template>,
    ) -> String {
        let one = |t: &Template| library.constants(t, problem, &self.device);
        short(&templates.into_iter().map(one).collect::<Vec<_>>().join("\n"))
    }

    fn timing(&self) -> BTreeMap<String, String> {
        let mut fields = self.device.silicon.clone();
        fields.insert(METHOD_FIELD.into(), METHOD.into());
        fields
    }

    /// The key of the winner of a problem among `templates`.
    pub fn winner(&self, library: &Library, problem: &Problem, templates: &[std::sync::Arc<Template>]) -> Key {
        let mut compile = self.compile(library, problem);
        compile.insert("constants".into(), self.constants(library, problem, templates.iter().map(|t| &**t)));
        compile.insert(TEMPLATES.into(), self::templates(library, templates));
        Key { compile, timing: self.timing() }
    }

    /// The key of what whole steps run in the place of the winner of a problem: of `templates` those for whole steps are not among what the
    /// winner is looked for.
    pub fn in_steps(&self, library: &Library, problem: &Problem, templates: &[std::sync::Arc<Template>]) -> Key {
        let (own, steps) = parted(templates);
        let mut key = self.winner(library, problem, &own);
        let method = steps_method(library, &steps);
        key.compile.insert(IN_STEPS.into(), method);
        key
    }

    /// The one or the other.
    pub(crate) fn of_winner(
        &self,
        library: &Library,
        problem: &Problem,
        templates: &[std::sync::Arc<Template>],
        in_steps: bool,
    ) -> Key {
        match in_steps {
            true => self.in_steps(library, problem, templates),
            false => self.winner(library, problem, &parted(templates).0),
        }
    }

    /// The key of the trials of one template on a problem; the config is the record's `sub`.
    pub fn trials(&self, library: &Library, problem: &Problem, template: &Template) -> Key {
        let mut compile = self.compile(library, problem);
        compile.insert("constants".into(), self.constants(library, problem, [template]));
        compile.insert("judging".into(), JUDGING.into());
        compile.insert("template".into(), template.name().into());
        compile.insert("source".into(), short(&library.fingerprint(template)));
        Key { compile, timing: self.timing() }
    }
}

/// Those among which a winner is looked for, and those for whole steps alone.
fn parted(templates: &[std::sync::Arc<Template>]) -> (Vec<std::sync::Arc<Template>>, Vec<std::sync::Arc<Template>>) {
    templates.iter().cloned().partition(|t| t.recipe.description.role == Role::Kernel)
}

/// What the key of what steps run has for the templates for whole steps alone.
fn steps_method(library: &Library, steps: &[std::sync::Arc<Template>]) -> String {
    match steps.is_empty() {
        true => IN_STEPS_METHOD.to_string(),
        false => format!("{IN_STEPS_METHOD} {}", templates(library, steps)),
    }
}

/// Whether a key says of what is under it that it was looked for among just these templates.
pub(crate) fn is_among(key: &Key, library: &Library, list: &[std::sync::Arc<Template>]) -> bool {
    let (own, steps) = parted(list);
    let in_steps = key.get(IN_STEPS);
    key.get(TEMPLATES) == Some(&templates(library, &own))
        && in_steps.is_none_or(|method| *method == steps_method(library, &steps))
}

/// Whether what is under a key is run by whole steps in a winner's place.
pub(crate) fn is_in_steps(key: &Key) -> bool {
    key.get(IN_STEPS).is_some_and(|method| method.split(' ').next() == Some(IN_STEPS_METHOD))
}

/// What a winner's key has for the templates among which it is looked for.
pub(crate) fn templates(library: &Library, templates: &[std::sync::Arc<Template>]) -> String {
    let list: Vec<String> = templates.iter().map(|t| library.fingerprint(t)).collect();
    short(&list.join("\n"))
}

/// The key of what serves a model best on a device: the model by its shapes, in a precision and a context, for what is `asked` of it (a
/// workload with its limits, in the words of `Workload::asked`).
pub fn serving(device: &Device, model: &Model, precision: &Precision, context: i64, asked: &str) -> Key {
    // A label changes nothing.
    let shape = serde_json::to_string(&Model { name: String::new(), dtype: None, ..model.clone() }).unwrap_or_default();
    let field = |k: &str, v: &str| (k.to_string(), v.to_string());
    let compile = BTreeMap::from([
        field(SERVING, SERVING_METHOD),
        field("target", device.target.name()),
        field("arch", &device.arch),
        field("model", &short(&shape)),
        field("dtype", &precision.to_string()),
        field("context", &context.to_string()),
        field("asked", asked),
    ]);
    Key { compile, timing: device.silicon.clone() }
}

/// Whether a key is of what serves this model in this precision on this device, in whatever context and for whatever is asked of it.
pub fn is_serving(key: &Key, device: &Device, model: &Model, precision: &Precision) -> bool {
    let context = key.get("context").and_then(|c| c.parse().ok());
    let own = context.zip(key.get("asked")).map(|(context, asked)| serving(device, model, precision, context, asked));
    own.as_ref() == Some(key)
}

/// The key of the rows of a search under `serving`'s key, on the kernels of a bundle.
pub fn serving_rows(serving: &Key, bundle: &[u8]) -> Key {
    let mut key = serving.clone();
    key.compile.insert("kernels".into(), blake3::hash(bundle).to_hex()[..16].to_string());
    key
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu;
    use crate::problem::Dtype;

    const CODE: &str = "void t(const jt_arg *args, long task, long tasks) {}\n";
    const DESCRIPTION: &str = "name = 't'\ntarget = 'cpu'\nop = 'rmsnorm'\nsummary = 's'\nwhen = \"dtype == 'f32'\"\n\
        [tunables]\nv = [1, 2]\n[cost]\nus = '1'\n[[launch]]\nentry = 't'\ngrid = [1, 1, 1]\nblock = 1\nargs = []\n";

    /// The key of a problem of one template, whose pair is as written.
    fn key(description: &str, code: &str, problem: &str) -> Key {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("t.toml"), description).unwrap();
        std::fs::write(folder.path().join("t.c"), code).unwrap();
        let mut library = Library::built_in().unwrap();
        library.add_folder(folder.path()).unwrap();
        let template = std::sync::Arc::clone(library.get(Target::Cpu, "t").unwrap());
        let context = Context { device: cpu::describe(Some(1)), compiler: "cc 1".into() };
        context.winner(&library, &problem.parse().unwrap(), &[template])
    }

    #[test]
    fn what_code_or_judgement_depends_on_is_in_the_key_and_nothing_else_is() {
        const PROBLEM: &str = "rmsnorm rows=4 cols=64 dtype=f32";
        let base = key(DESCRIPTION, CODE, PROBLEM);
        let differs = |description: &str, code: &str, problem: &str| -> Vec<String> {
            base.diff(&key(description, code, problem)).into_iter().map(|d| d.name).collect()
        };
        for text in [DESCRIPTION.replace("'s'", "'other words'"), DESCRIPTION.replace("us = '1'", "us = '2'")] {
            assert_ne!(text, DESCRIPTION);
            assert!(differs(&text, CODE, PROBLEM).is_empty(), "{text}");
        }
        for (description, code, problem, field) in [
            (DESCRIPTION.replace("[1, 2]", "[1, 4]"), CODE.to_string(), PROBLEM.to_string(), "templates"),
            (DESCRIPTION.into(), CODE.replace("{}", "{ }"), PROBLEM.into(), "templates"),
            (DESCRIPTION.into(), CODE.into(), format!("{PROBLEM} | eps=1e-6"), "filled"),
        ] {
            assert_eq!(differs(&description, &code, &problem), [field]);
        }
        let field = |name: &str| base.compile[name].clone();
        assert_eq!(field("options"), cpu::cc::BASE_OPTIONS.join(" "));
        assert!(field("problem").contains("residual=0") && field("filled") == "eps=1e-5");
    }

    /// What serves a model best is of its shapes and its device, whatever it is called; no other key is taken for one.
    #[test]
    fn keys_of_what_serves_a_model() {
        let (device, model) = (cpu::describe(Some(1)), Model::preset("llama-3.2-1b").unwrap());
        let own = serving(&device, &model, &Dtype::F32.into(), 4096, "chat");
        let is = |key: &Key, model: &Model, dtype: Dtype| is_serving(key, &device, model, &dtype.into());
        let renamed = Model { name: "other".into(), ..model.clone() };
        assert!(is(&own, &model, Dtype::F32) && is(&own, &renamed, Dtype::F32));
        let deeper = Model { layers: model.layers + 1, ..model.clone() };
        assert!(!is(&own, &deeper, Dtype::F32) && !is(&own, &model, Dtype::Bf16));
        let elsewhere = Device { silicon: BTreeMap::from([("sm".into(), "1".into())]), ..device.clone() };
        assert!(!is_serving(&own, &elsewhere, &model, &Dtype::F32.into()));
        let other = [(2048, "chat"), (4096, "code")]
            .map(|(context, asked)| serving(&device, &model, &Dtype::F32.into(), context, asked));
        assert!(other.iter().all(|key| *key != own && is(key, &model, Dtype::F32)));
        assert!(!is(&serving_rows(&own, b"kernels"), &model, Dtype::F32));
        assert!(!is(&key(DESCRIPTION, CODE, "rmsnorm rows=4 cols=64 dtype=f32"), &model, Dtype::F32));
    }

    #[test]
    fn constants_are_those_that_rendering_writes() {
        let library = Library::built_in().unwrap();
        let device = cpu::describe(Some(1));
        let problem: Problem = "rmsnorm rows=4 cols=64 dtype=f32".parse().unwrap();
        let template = &library.for_problem(&problem, &device).unwrap()[0];
        let space = crate::space::enumerate(&template.recipe, &problem, &device).unwrap();
        let source = library.render(template, &problem, &device, &space.candidates[0].config).unwrap();
        let constants = library.constants(template, &problem, &device);
        assert!(source.text.starts_with(&constants) && constants.contains("#define OP_RMSNORM 1"), "{constants}");
    }
}
