//! What C holds pointers to, and what goes wrong there.

use jitune::bundle::{Bundle, BundleError};
use jitune::problem::{Problem, Role};
use jitune::runtime::{self, Queue, RuntimeError};
use std::ffi::CString;
use std::sync::Arc;

/// What `jitune_status` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The caller's arguments.
    Argument = 1,
    /// The bundle.
    Bundle = 2,
    /// The device.
    Device = 3,
    /// No kernel serves the problem.
    Untuned = 4,
    /// Addresses or queue do not fit.
    Bind = 5,
    /// A fault of jitune's own.
    Internal = 6,
}

/// A failed call.
pub struct Failure {
    pub status: Status,
    pub text: String,
}

impl Failure {
    pub fn argument(text: impl Into<String>) -> Failure {
        Failure { status: Status::Argument, text: text.into() }
    }
}

impl From<BundleError> for Failure {
    fn from(e: BundleError) -> Failure {
        Failure { status: Status::Bundle, text: e.to_string() }
    }
}

impl From<RuntimeError> for Failure {
    fn from(e: RuntimeError) -> Failure {
        let status = match e {
            RuntimeError::Untuned { .. } => Status::Untuned,
            RuntimeError::Bind { .. } | RuntimeError::WrongQueue { .. } => Status::Bind,
            RuntimeError::NoArch { .. } | RuntimeError::Load { .. } | RuntimeError::Recipe { .. } => Status::Bundle,
            _ => Status::Device,
        };
        Failure { status, text: e.to_string() }
    }
}

/// Text for C; what stands behind a zero byte would be lost to it anyway.
pub fn text(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// A bundle on a device.
pub struct Runtime(Arc<runtime::Runtime>);

impl Runtime {
    pub fn cpu(path: &str, threads: usize) -> Result<Runtime, Failure> {
        let threads = (threads > 0).then_some(threads);
        Ok(Runtime(Arc::new(runtime::Runtime::cpu(&Bundle::open(path)?, threads)?)))
    }

    pub fn cuda(path: &str, ordinal: usize) -> Result<Runtime, Failure> {
        Ok(Runtime(Arc::new(runtime::Runtime::cuda(&Bundle::open(path)?, ordinal)?)))
    }

    pub fn make_current(&self) -> Result<(), Failure> {
        Ok(self.0.make_current()?)
    }

    pub fn lookup(&self, problem: &str) -> Result<Kernel, Failure> {
        let problem: Problem = problem.parse().map_err(|e| Failure::argument(format!("{e}")))?;
        let found = self.0.lookup(&problem)?;
        let name = text(&format!("{} {}", found.template(), found.config()));
        let tensor =
            |t: jitune::problem::Tensor| Tensor { name: text(t.name), bytes: t.bytes(), output: t.role == Role::Out };
        let tensors = problem.tensors().into_iter().map(tensor).collect();
        let (workspace, zeroed) = (found.workspace_bytes(), found.needs_zeroed_workspace());
        drop(found);
        Ok(Kernel { runtime: Arc::clone(&self.0), problem, name, tensors, workspace, zeroed })
    }
}

/// One tensor of a problem.
pub struct Tensor {
    pub name: CString,
    pub bytes: u64,
    pub output: bool,
}

/// The kernel of a problem.
pub struct Kernel {
    runtime: Arc<runtime::Runtime>,
    problem: Problem,
    pub name: CString,
    pub tensors: Vec<Tensor>,
    pub workspace: u64,
    pub zeroed: bool,
}

impl Kernel {
    pub fn bind(&self, addresses: &[u64], workspace: u64) -> Result<Bound, Failure> {
        Ok(Bound(self.runtime.lookup(&self.problem)?.bind(addresses, workspace)?))
    }
}

/// A kernel with its addresses.
pub struct Bound(runtime::Bound);

impl Bound {
    pub fn launch(&self, queue: Queue) -> Result<(), Failure> {
        Ok(self.0.launch(queue)?)
    }
}
