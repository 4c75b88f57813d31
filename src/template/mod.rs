//! Templates: the built-in pairs of code and description, users' own, and the rendering of source.
//!
//! Pure but for reading a user's folder. Rendering is text: `#define`s, then the code with its includes in place.

mod render;

use crate::device::{Device, Target};
use crate::file;
use crate::limits::{
    MAX_DESCRIPTION_BYTES, MAX_EXPRESSIONS_BYTES, MAX_FOLDER_BYTES, MAX_SOURCE_BYTES, MAX_TEMPLATE_FILES,
};
use crate::problem::{self, Problem, Storage, Tensor};
use crate::recipe::{Config, Description, Recipe, RecipeError, Role};
use crate::source::Source;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where each target's support code is among the built-in files.
const SUPPORT: [(Target, &str); 2] = [(Target::Cuda, "cuda/support.cu"), (Target::Cpu, "cpu/support.c")];

/// What a session on a GPU needs beside what judges: it looks after memory, measures the rate of products, and makes inputs.
/// Compiled behind the support code.
const BESIDE: [&str; 4] = ["cuda/watch.cu", "cuda/rate.cu", "cuda/fill.cu", CODES];

/// What compares outputs that are codes: the judge of these alone.
const CODES: &str = "cuda/codes.cu";

static BUILT_IN: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/templates.rs"));

/// Templates that cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// A description is not valid TOML of the schema.
    #[error("{file}: {why}")]
    Description {
        /// The file.
        file: String,
        /// The parser's message.
        why: String,
    },
    /// A description without its code, or an include that is not there.
    #[error("{file} needs {missing}, which is not there")]
    MissingFile {
        /// Who needs it.
        file: String,
        /// What is missing.
        missing: String,
    },
    /// A description that cannot be evaluated.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A folder of the user's that cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Two references take one problem: which of them judges would be an accident.
    #[error(
        "'{problem}' has two references, '{first}' and '{second}'; remove one, or give it the other's name to replace it"
    )]
    TwoReferences {
        /// The problem.
        problem: Box<Problem>,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// No template takes the problem.
    #[error("no {target} template takes '{problem}' on {arch}; `jitune model` lists what is supported", target = target.name())]
    NoTemplate {
        /// The problem.
        problem: Problem,
        /// The target.
        target: Target,
        /// The architecture.
        arch: String,
    },
}

/// A template: a recipe and the code that goes with it.
pub struct Template {
    /// Its description, compiled.
    pub recipe: Recipe,
    code: String,
    origin: Origin,
}

/// The text of a file of a template.
fn bounded(path: &Path) -> std::io::Result<String> {
    let description = path.extension().is_some_and(|e| e == "toml");
    file::text(path, if description { MAX_DESCRIPTION_BYTES } else { MAX_SOURCE_BYTES })
}

/// Where files come from: 0 is built in, then a user's folders in their order. A file's includes are looked for beside
/// it, then among the built-in ones.
type Origin = usize;

const BUILT_IN_ORIGIN: Origin = 0;

impl Template {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.recipe.description.name
    }
}

/// All templates that a run may choose from.
pub struct Library {
    templates: Vec<Arc<Template>>,
    includes: HashMap<(Target, Origin, String), String>,
    /// How many folders of the user's were added.
    folders: usize,
    /// What is to be said of them.
    notes: Vec<String>,
    /// What fills, compares and measures ceilings on each target.
    support: HashMap<Target, String>,
    /// What stands behind it on a GPU.
    beside: Vec<String>,
}

impl Library {
    /// The built-in templates.
    pub fn built_in() -> Result<Library, TemplateError> {
        let files: Vec<_> = BUILT_IN.iter().map(|(name, text)| ((*name).to_string(), (*text).to_string())).collect();
        let code = |file: &str| {
            let code = files.iter().find(|(name, _)| name == file).map(|(_, text)| text.clone());
            code.ok_or_else(|| TemplateError::MissingFile { file: "the library".into(), missing: file.into() })
        };
        let mut support = HashMap::new();
        for (target, file) in SUPPORT {
            support.insert(target, code(file)?);
        }
        let beside = BESIDE.into_iter().map(code).collect::<Result<_, _>>()?;
        let mut library =
            Library { templates: Vec::new(), includes: HashMap::new(), folders: 0, notes: Vec::new(), support, beside };
        library.add(&files, BUILT_IN_ORIGIN)?;
        Ok(library)
    }

    /// Adds the pairs of a user's folder; one with a built-in's name replaces it. Headers beside them, or in a folder
    /// `include` there, are theirs alone.
    pub fn add_folder(&mut self, folder: &Path) -> Result<(), TemplateError> {
        let io = |source| TemplateError::Io { path: folder.into(), source };
        let mut files = Vec::new();
        let mut total = 0;
        let mut read = |folder: &Path, known: &[&str]| {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                if path.extension().is_some_and(|e| known.iter().any(|k| e == *k)) {
                    let text = bounded(&path);
                    total += text.as_ref().map_or(0, |t| t.len() as u64);
                    files.push((path, text));
                }
                if files.len() > MAX_TEMPLATE_FILES || total > MAX_FOLDER_BYTES {
                    let most = format!("{MAX_TEMPLATE_FILES} files of {MAX_FOLDER_BYTES} bytes together");
                    return Err(file::too_large(format!("it has more templates than are read, {most}")));
                }
            }
            Ok(())
        };
        read(folder, &["cu", "c", "toml", "cuh", "h"]).map_err(io)?;
        let headers = folder.join("include");
        if headers.is_dir() {
            read(&headers, &["cuh", "h"]).map_err(io)?;
        }
        let named = |(path, text): (PathBuf, std::io::Result<String>)| match text {
            Ok(text) => Ok((path.display().to_string(), text)),
            Err(source) => Err(TemplateError::Io { path, source }),
        };
        let files: Vec<_> = files.into_iter().map(named).collect::<Result<_, _>>()?;
        self.folders += 1;
        self.add(&files, self.folders)
    }

    fn add(&mut self, files: &[(String, String)], origin: Origin) -> Result<(), TemplateError> {
        let mut expressions = 0;
        for (name, text) in files {
            let path = Path::new(name);
            let stem = path.file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
            match path.extension().and_then(|e| e.to_str()) {
                Some("cuh") => drop(self.includes.insert((Target::Cuda, origin, stem), text.clone())),
                Some("h") => drop(self.includes.insert((Target::Cpu, origin, stem), text.clone())),
                _ => {}
            }
        }
        for (name, text) in files.iter().filter(|(n, _)| n.ends_with(".toml")) {
            let description: Description = toml::from_str(text)
                .map_err(|e| TemplateError::Description { file: name.clone(), why: e.to_string() })?;
            let refused = |why: String| TemplateError::Description { file: name.clone(), why };
            expressions += description.check().map_err(refused)?;
            if expressions > MAX_EXPRESSIONS_BYTES {
                let most = format!("more than {MAX_EXPRESSIONS_BYTES} bytes, the most");
                return Err(refused(format!("with it the expressions of the folder have {most}")));
            }
            let extension = match description.target {
                Target::Cuda => "cu",
                Target::Cpu => "c",
            };
            let code_file = Path::new(name).with_extension(extension).display().to_string();
            let code = files
                .iter()
                .find(|(name, _)| *name == code_file)
                .map(|(_, text)| text.clone())
                .ok_or_else(|| TemplateError::MissingFile { file: name.clone(), missing: code_file })?;
            let template = Template { recipe: Recipe::new(description)?, code, origin };
            let d = &template.recipe.description;
            let same = |t: &Arc<Template>| {
                let o = &t.recipe.description;
                (o.name.as_str(), o.target, o.role) == (d.name.as_str(), d.target, d.role)
            };
            if origin != BUILT_IN_ORIGIN && self.templates.iter().any(|t| t.origin == BUILT_IN_ORIGIN && same(t)) {
                self.notes.push(format!("{name}: it replaces the built-in template '{}'", d.name));
            }
            self.templates.retain(|t| !same(t));
            self.templates.push(Arc::new(template));
        }
        let code = files
            .iter()
            .map(|(name, _)| Path::new(name))
            .filter(|path| path.extension().is_some_and(|e| e == "cu" || e == "c"));
        for path in code.filter(|_| origin != BUILT_IN_ORIGIN) {
            let description = path.with_extension("toml");
            if !files.iter().any(|(name, _)| Path::new(name) == description) {
                let (file, missing) = (path.display(), description.display());
                self.notes.push(format!("{file} is passed over: {missing}, which would describe it, is not there"));
            }
        }
        self.templates.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(())
    }

    /// What is to be said of the user's folders: which of their pairs replace built-in ones, and what in them is passed over.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Every template of a role.
    pub fn all(&self, role: Role) -> impl Iterator<Item = &Arc<Template>> {
        self.templates.iter().filter(move |t| t.recipe.description.role == role)
    }

    /// The template of that name for a target.
    pub fn get(&self, target: Target, name: &str) -> Option<&Arc<Template>> {
        let mut all = self.templates.iter().filter(|t| t.recipe.description.role.is_run());
        all.find(|t| t.recipe.description.target == target && t.name() == name)
    }

    /// The templates among which the winner of a problem is looked for: those that take it on the device, without the
    /// portable ones where there are others. Of an op's probe the portable ones alone, where there are any: its winner is
    /// the one that answers what no other does.
    pub fn for_problem(&self, problem: &Problem, device: &Device) -> Result<Vec<Arc<Template>>, TemplateError> {
        let taking = self.matching(&[Role::Kernel], problem, device)?;
        let wanted = problem.is_probe();
        let chosen: Vec<_> = taking.iter().filter(|t| t.recipe.description.portable == wanted).cloned().collect();
        Ok(if chosen.is_empty() { taking } else { chosen })
    }

    /// The same, and behind them those that are for whole steps.
    pub fn for_steps(&self, problem: &Problem, device: &Device) -> Result<Vec<Arc<Template>>, TemplateError> {
        let mut templates = self.for_problem(problem, device)?;
        if let Ok(steps) = self.matching(&[Role::Step], problem, device) {
            templates.extend(steps);
        }
        Ok(templates)
    }

    /// The templates that take a problem on a device, the portable ones and those for whole steps among them.
    pub fn taking(&self, problem: &Problem, device: &Device) -> Result<Vec<Arc<Template>>, TemplateError> {
        self.matching(&[Role::Kernel, Role::Step], problem, device)
    }

    /// The template of the f64 reference; that there is one only is seen to.
    pub fn reference(&self, problem: &Problem, device: &Device) -> Result<Arc<Template>, TemplateError> {
        let mut found = self.matching(&[Role::Reference], problem, device)?;
        if let [first, second, ..] = found.as_slice() {
            let (first, second) = (first.name().into(), second.name().into());
            return Err(TemplateError::TwoReferences { problem: Box::new(*problem), first, second });
        }
        Ok(found.swap_remove(0))
    }

    fn matching(
        &self,
        roles: &[Role],
        problem: &Problem,
        device: &Device,
    ) -> Result<Vec<Arc<Template>>, TemplateError> {
        let mut found = Vec::new();
        for t in self.templates.iter().filter(|t| roles.contains(&t.recipe.description.role)) {
            if t.recipe.takes(problem, device)? {
                found.push(t.clone());
            }
        }
        if found.is_empty() {
            let arch = device.arch.clone();
            return Err(TemplateError::NoTemplate { problem: *problem, target: device.target, arch });
        }
        Ok(found)
    }

    /// Renders a template for a problem and a config.
    pub fn render(
        &self,
        template: &Template,
        problem: &Problem,
        device: &Device,
        config: &Config,
    ) -> Result<Source, TemplateError> {
        render::render(self, template, problem, device, config)
    }

    /// A hash of all that a template's kernels can depend on: its description but for summary and cost, its code and every
    /// include it reaches.
    pub fn fingerprint(&self, template: &Template) -> String {
        render::fingerprint(self, template)
    }

    /// What is written into the code of a template's kernels for a problem before the template's own constants.
    pub fn constants(&self, template: &Template, problem: &Problem, device: &Device) -> String {
        render::constants(template, problem, device)
    }

    /// A hash of what judges the candidates of a problem: the support code, and on a GPU the reference.
    pub fn judge(&self, problem: &Problem, device: &Device) -> String {
        // Without what stands behind it, which says of no result whether it is right.
        let support = render::support(self, &[], problem.types().y, device).map(|s| s.hash()).unwrap_or_default();
        let mut reference = match device.target {
            Target::Cuda => self.reference(problem, device).map(|t| self.fingerprint(&t)).unwrap_or_default(),
            Target::Cpu => String::new(),
        };
        let codes = |t: &Tensor| t.role == problem::Role::Out && matches!(t.storage, Storage::E4m3 | Storage::Int8);
        if device.target == Target::Cuda && problem.tensors().iter().any(codes) {
            let text = BUILT_IN.iter().find(|(name, _)| *name == CODES).map_or("", |(_, text)| *text);
            reference = format!("{reference} {}", blake3::hash(text.as_bytes()).to_hex());
        }
        format!("{support} {reference}")
    }

    /// The device-side support code (fill, compare, look after memory, ceilings) for a problem's results.
    pub fn support(&self, problem: &Problem, device: &Device) -> Result<Source, TemplateError> {
        let beside = if device.target == Target::Cuda { &self.beside[..] } else { &[] };
        render::support(self, beside, problem.types().y, device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu;

    const DESCRIPTION: &str = "name = 'mine'\ntarget = 'cpu'\nop = 'gelu'\nsummary = 's'\nwhen = \"dtype == 'f32'\"\n\
        [tunables]\nv = [1]\n[cost]\nus = '1'\n[[launch]]\nentry = 't'\ngrid = [1, 1, 1]\nblock = 1\nargs = []\n";

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    fn rendered(library: &Library, name: &str) -> Result<String, TemplateError> {
        let problem = "gelu rows=4 cols=64 dtype=f32".parse().unwrap();
        let config = Config([("v".to_string(), 1)].into_iter().collect());
        let template = library.get(Target::Cpu, name).unwrap();
        library.render(template, &problem, &cpu::describe(Some(1)), &config).map(|source| source.text)
    }

    #[test]
    fn headers_of_a_folder_are_those_of_its_templates_alone() {
        let built_in = BUILT_IN.iter().find_map(|(name, _)| name.strip_prefix("cpu/include/")).unwrap();
        let own = folder(&[
            ("mine.toml", DESCRIPTION),
            (
                "mine.c",
                &format!("#include \"own.h\"\n#include \"{built_in}\"\n#include \"deep.h\"\nvoid t(void) {{}}\n"),
            ),
            ("own.h", "#pragma once\nint own;\n"),
            (built_in, "int instead;\n"),
            ("include/deep.h", "#include \"own.h\"\nint deep;\n"),
            ("support.c", "this is no C"),
        ]);
        let mut library = Library::built_in().unwrap();
        let device = cpu::describe(Some(1));
        let problem: Problem = "gelu rows=4 cols=64 dtype=f32".parse().unwrap();
        let others: Vec<_> = library.taking(&problem, &device).unwrap();
        let before: Vec<String> = others.iter().map(|t| library.fingerprint(t)).collect();
        let judge = library.judge(&problem, &device);
        library.add_folder(own.path()).unwrap();
        let text = rendered(&library, "mine").unwrap();
        for (part, times) in [("int own;", 1), ("int instead;", 1), ("int deep;", 1), ("#include \"", 0)] {
            assert_eq!(text.matches(part).count(), times, "{part}: {text}");
        }
        // Nothing of it reaches a built-in template, nor what judges; another folder does not see it either.
        assert_eq!(others.iter().map(|t| library.fingerprint(t)).collect::<Vec<_>>(), before);
        assert_eq!(library.judge(&problem, &device), judge);
        let other =
            folder(&[("other.toml", &DESCRIPTION.replace("'mine'", "'other'")), ("other.c", "#include \"own.h\"\n")]);
        library.add_folder(other.path()).unwrap();
        assert!(matches!(rendered(&library, "other"), Err(TemplateError::MissingFile { .. })));
    }

    /// Neither a pair that takes another's place nor a file that nothing describes is passed over in silence.
    #[test]
    fn what_a_folder_replaces_and_what_is_passed_over_are_said() {
        let mut library = Library::built_in().unwrap();
        assert!(library.notes().is_empty());
        let taken = library.templates.iter().find(|t| t.recipe.description.target == Target::Cpu);
        let d = &taken.unwrap().recipe.description;
        assert_eq!(d.role, Role::Kernel);
        let same = DESCRIPTION.replace("'mine'", &format!("'{}'", d.name));
        let said = format!("it replaces the built-in template '{}'", d.name);
        let own = folder(&[
            ("a.toml", &same),
            ("a.c", ""),
            ("mine.toml", DESCRIPTION),
            ("mine.c", ""),
            ("lonely.cu", ""),
            ("lonely.h", ""),
        ]);
        library.add_folder(own.path()).unwrap();
        let [replaced, lonely] = library.notes() else { panic!("{:?}", library.notes()) };
        assert!(replaced.contains("a.toml: ") && replaced.contains(&said), "{replaced}");
        assert!(lonely.contains("lonely.cu is passed over") && lonely.contains("lonely.toml"), "{lonely}");
        // The second of a user's own is no built-in one's.
        library.add_folder(folder(&[("b.toml", &same), ("b.c", "")]).path()).unwrap();
        assert_eq!(library.notes().len(), 2);
    }

    #[test]
    fn dynamic_dimensions_are_those_of_the_op() {
        let with = |name: &str| {
            let text = format!("{DESCRIPTION}[reuse]\ndynamic = ['rows', '{name}']\n");
            let own = folder(&[("mine.toml", &text), ("mine.c", "")]);
            Library::built_in().unwrap().add_folder(own.path())
        };
        assert!(with("cols").is_ok());
        for name in ["foo", "k", ""] {
            let e = with(name).unwrap_err().to_string();
            assert!(e.contains(&format!("reuse.dynamic names '{name}', which is no dimension of gelu")), "{e}");
        }
    }

    #[test]
    fn includes_without_end_are_refused() {
        let mut files =
            vec![("mine.toml".to_string(), DESCRIPTION.to_string()), ("mine.c".into(), "#include \"0.h\"\n".into())];
        files.extend((0..50_000).map(|i| (format!("{i}.h"), format!("#include \"{}.h\"\n", i + 1))));
        let mut library = Library::built_in().unwrap();
        library.add(&files, 1).unwrap();
        assert!(matches!(rendered(&library, "mine"), Err(TemplateError::Description { .. })));
    }

    #[test]
    fn a_second_reference_of_an_op_is_refused_by_both_names() {
        let mut library = Library::built_in().unwrap();
        let device = crate::device::Device::ahead_of_time("sm_90a").unwrap();
        let problem: Problem = "gelu rows=4 cols=64 dtype=f32".parse().unwrap();
        let first = library.reference(&problem, &device).unwrap();
        let (name, text) =
            BUILT_IN.iter().find(|(n, _)| *n == format!("cuda/reference/{}.toml", first.name())).unwrap();
        let code = BUILT_IN.iter().find(|(n, _)| *n == name.replace(".toml", ".cu")).unwrap().1;
        let renamed = text.replacen(&format!("\"{}\"", first.name()), "\"aaa\"", 1);
        assert_ne!(renamed, *text);
        let own = folder(&[("aaa.toml", &renamed), ("aaa.cu", code)]);
        library.add_folder(own.path()).unwrap();
        let refused = library.reference(&problem, &device).map(|t| t.name().to_string()).unwrap_err().to_string();
        assert!(refused.contains("'aaa'") && refused.contains(first.name()), "{refused}");
        // Under its name it takes its place.
        let mut library = Library::built_in().unwrap();
        library.add_folder(folder(&[("r.toml", text), ("r.cu", code)]).path()).unwrap();
        assert_eq!(library.reference(&problem, &device).unwrap().name(), first.name());
    }
}
