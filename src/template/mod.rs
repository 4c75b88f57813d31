//! Templates: the built-in pairs of code and description, users' own, and the rendering of source.
//!
//! Pure but for reading a user's folder. Rendering is text: `#define`s, then the code with its includes in place.

mod render;

use crate::device::{Device, Target};
use crate::problem::Problem;
use crate::recipe::{Config, Description, Recipe, RecipeError, Role};
use crate::source::Source;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where each target's support code is among the built-in files.
const SUPPORT: [(Target, &str); 2] = [(Target::Cuda, "cuda/support.cu"), (Target::Cpu, "cpu/support.c")];

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
}

impl Template {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.recipe.description.name
    }
}

/// All templates that a run may choose from.
pub struct Library {
    templates: Vec<Arc<Template>>,
    includes: HashMap<(Target, String), String>,
    /// What fills, compares and measures ceilings on each target.
    support: HashMap<Target, String>,
}

impl Library {
    /// The built-in templates.
    pub fn built_in() -> Result<Library, TemplateError> {
        let files: Vec<_> = BUILT_IN.iter().map(|(name, text)| ((*name).to_string(), (*text).to_string())).collect();
        let mut library = Library { templates: Vec::new(), includes: HashMap::new(), support: HashMap::new() };
        for (target, file) in SUPPORT {
            let code = files.iter().find(|(name, _)| name == file).map(|(_, text)| text.clone());
            let missing = || TemplateError::MissingFile { file: "the library".into(), missing: file.into() };
            library.support.insert(target, code.ok_or_else(missing)?);
        }
        library.add(&files)?;
        Ok(library)
    }

    /// Adds the pairs of a user's folder; one with a built-in's name replaces it.
    pub fn add_folder(&mut self, folder: &Path) -> Result<(), TemplateError> {
        let io = |source| TemplateError::Io { path: folder.into(), source };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let known = path.extension().is_some_and(|e| ["cu", "c", "toml"].iter().any(|k| e == *k));
            if known {
                let text = std::fs::read_to_string(&path)
                    .map_err(|source| TemplateError::Io { path: path.clone(), source })?;
                files.push((path.display().to_string(), text));
            }
        }
        self.add(&files)
    }

    fn add(&mut self, files: &[(String, String)]) -> Result<(), TemplateError> {
        for (name, text) in files {
            let path = Path::new(name);
            let stem = path.file_name().map(|f| f.to_string_lossy().into_owned()).unwrap_or_default();
            match path.extension().and_then(|e| e.to_str()) {
                Some("cuh") => drop(self.includes.insert((Target::Cuda, stem), text.clone())),
                Some("h") => drop(self.includes.insert((Target::Cpu, stem), text.clone())),
                _ => {}
            }
        }
        for (name, text) in files.iter().filter(|(n, _)| n.ends_with(".toml")) {
            let description: Description = toml::from_str(text)
                .map_err(|e| TemplateError::Description { file: name.clone(), why: e.to_string() })?;
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
            let template = Template { recipe: Recipe::new(description)?, code };
            let d = &template.recipe.description;
            let same = |t: &Arc<Template>| {
                let o = &t.recipe.description;
                (o.name.as_str(), o.target, o.role) == (d.name.as_str(), d.target, d.role)
            };
            self.templates.retain(|t| !same(t));
            self.templates.push(Arc::new(template));
        }
        self.templates.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(())
    }

    /// Every template of a role.
    pub fn all(&self, role: Role) -> impl Iterator<Item = &Arc<Template>> {
        self.templates.iter().filter(move |t| t.recipe.description.role == role)
    }

    /// The template of that name for a target.
    pub fn get(&self, target: Target, name: &str) -> Option<&Arc<Template>> {
        self.all(Role::Kernel).find(|t| t.recipe.description.target == target && t.name() == name)
    }

    /// The templates among which the winner of a problem is looked for: those that take it on the device, without the
    /// portable ones where there are others. Of an op's probe the portable ones alone, where there are any: its winner is
    /// the one that answers what no other does.
    pub fn for_problem(&self, problem: &Problem, device: &Device) -> Result<Vec<Arc<Template>>, TemplateError> {
        let taking = self.taking(problem, device)?;
        let wanted = problem.is_probe();
        let chosen: Vec<_> = taking.iter().filter(|t| t.recipe.description.portable == wanted).cloned().collect();
        Ok(if chosen.is_empty() { taking } else { chosen })
    }

    /// The templates that take a problem on a device, the portable ones among them.
    pub fn taking(&self, problem: &Problem, device: &Device) -> Result<Vec<Arc<Template>>, TemplateError> {
        self.matching(Role::Kernel, problem, device)
    }

    /// The template of the f64 reference.
    pub fn reference(&self, problem: &Problem, device: &Device) -> Result<Arc<Template>, TemplateError> {
        self.matching(Role::Reference, problem, device).map(|mut v| v.swap_remove(0))
    }

    fn matching(&self, role: Role, problem: &Problem, device: &Device) -> Result<Vec<Arc<Template>>, TemplateError> {
        let mut found = Vec::new();
        for t in self.all(role) {
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
        let support = self.support(problem, device).map(|s| s.hash()).unwrap_or_default();
        let reference = match device.target {
            Target::Cuda => self.reference(problem, device).map(|t| self.fingerprint(&t)).unwrap_or_default(),
            Target::Cpu => String::new(),
        };
        format!("{support} {reference}")
    }

    /// The device-side support code (fill, compare, ceilings) for a problem's results.
    pub fn support(&self, problem: &Problem, device: &Device) -> Result<Source, TemplateError> {
        render::support(self, problem.types().y, device)
    }
}
