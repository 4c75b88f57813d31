//! The bench: how sources become artifacts on disk, and problems what a measuring session needs of them, whoever compiles.

use crate::artifact::Artifact;
use crate::backend::session::{Runnable, Session, Setup};
use crate::backend::{BackendError, cpu, cuda};
use crate::device::{Device, DeviceId, Target};
use crate::problem::Problem;
use crate::recipe::{Config, Launch};
use crate::source::{Language, Source};
use crate::sync::lock;
use crate::template::{Library, Template, TemplateError};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

/// What turns sources into artifacts: this process, or the tuner's workers.
pub trait Compile {
    /// Why there is no artifact.
    type Error: From<TemplateError>;

    /// Compiles a source; `what` names it where it is reported.
    fn compile(&self, what: &str, source: &Source) -> Result<Artifact, Self::Error>;
}

/// Templates and a compiler for them.
pub struct Bench<'a, C> {
    library: &'a Library,
    compiler: &'a C,
}

impl<'a, C: Compile> Bench<'a, C> {
    /// A bench for these templates.
    pub fn new(library: &'a Library, compiler: &'a C) -> Bench<'a, C> {
        Bench { library, compiler }
    }

    /// The code of a config.
    pub fn artifact(
        &self,
        template: &Template,
        problem: &Problem,
        device: &Device,
        config: &Config,
    ) -> Result<Artifact, C::Error> {
        let source = self.library.render(template, problem, device, config)?;
        self.compiler.compile(template.name(), &source)
    }

    /// The code of a config and how it is launched.
    pub fn runnable(
        &self,
        template: &Template,
        problem: &Problem,
        device: &Device,
        config: &Config,
    ) -> Result<Runnable, C::Error> {
        let launch = template.recipe.launch(problem, device, config).map_err(TemplateError::from)?;
        Ok(Runnable { artifact: self.artifact(template, problem, device, config)?, launch })
    }

    /// The code that fills, compares and measures ceilings on a device.
    pub fn support(&self, problem: &Problem, device: &Device) -> Result<Artifact, C::Error> {
        self.compiler.compile("the support code", &self.library.support(problem, device)?)
    }

    /// What a session needs for a problem; on the host's processor the reference is the host's own.
    pub fn setup(&self, problem: &Problem, device: &Device, seed: u64) -> Result<Setup, C::Error> {
        let problem = *problem;
        if device.target == Target::Cpu {
            return Ok(Setup { problem, seed, support: None, reference: None, single: false });
        }
        let (source, launch) = reference(self.library, &problem, device)?;
        let support = Some(self.support(&problem, device)?);
        let artifact = self.compiler.compile("the reference", &source)?;
        Ok(Setup { problem, seed, support, reference: Some(Runnable { artifact, launch }), single: false })
    }
}

/// The source of a problem's f64 reference, and how it is launched.
pub(crate) fn reference(
    library: &Library,
    problem: &Problem,
    device: &Device,
) -> Result<(Source, Launch), TemplateError> {
    let template = library.reference(problem, device)?;
    let none = Config::default();
    let source = library.render(&template, problem, device, &none)?;
    Ok((source, template.recipe.launch(problem, device, &none)?))
}

/// Opens a device for measuring in this process.
pub fn session(device: DeviceId) -> Result<Box<dyn Session>, BackendError> {
    Ok(match device {
        DeviceId::Cuda(ordinal) => Box::new(cuda::CudaSession::open(ordinal)?),
        DeviceId::Cpu(0) => Box::new(cpu::CpuSession::open(None)?),
        DeviceId::Cpu(threads) => Box::new(cpu::CpuSession::open(Some(threads))?),
    })
}

/// Compiles a source in this process and leaves the artifact in `folder` under its hash.
pub fn compile(source: &Source, folder: &Path) -> Result<Artifact, BackendError> {
    let (code, info) = match source.language {
        Language::Cuda => cuda::nvrtc::compile(source)?,
        Language::C => cpu::cc::compile(source, folder)?,
    };
    Artifact::put(folder, &code, info).map_err(|source| BackendError::Io { path: folder.into(), source })
}

/// Compiles in this process, each source once.
pub struct Here {
    folder: Folder,
    made: Mutex<HashMap<String, Artifact>>,
}

impl Here {
    /// Artifacts lie in a temporary folder of their own, removed when this is dropped.
    pub fn new() -> Result<Here, BackendError> {
        Ok(Here { folder: Folder::temporary()?, made: Mutex::default() })
    }

    /// Where its artifacts lie.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Compile for Here {
    type Error = BenchError;

    fn compile(&self, _: &str, source: &Source) -> Result<Artifact, BenchError> {
        let hash = source.hash();
        let mut made = lock(&self.made);
        if let Some(known) = made.get(&hash) {
            return Ok(known.clone());
        }
        let artifact = compile(source, self.folder.path())?;
        made.insert(hash, artifact.clone());
        Ok(artifact)
    }
}

/// Why something is not made on a bench in this process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A compiler, or the file system.
    #[error(transparent)]
    Target(#[from] BackendError),
}

/// A folder that is removed when dropped.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new one among the temporary files.
    pub fn temporary() -> Result<Folder, BackendError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let base = std::env::temp_dir();
        // A process that was killed may have had the same number, and left its folder.
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = base.join(format!("jitune-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Folder(path)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(BackendError::Io { path, source }),
            }
        }
    }

    /// At this path, made with the folders above it.
    pub fn at(path: PathBuf) -> Result<Folder, BackendError> {
        std::fs::create_dir_all(&path).map_err(|source| BackendError::Io { path: path.clone(), source })?;
        Ok(Folder(path))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is in nobody's way.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
