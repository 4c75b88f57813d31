//! What C holds pointers to, and what goes wrong there.

use jitune::backend::BackendError;
use jitune::bundle::{Bundle, BundleError, PublicKey};
use jitune::problem::{self, Problem, Role};
use jitune::runtime::{self, RuntimeError, View};
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

/// Opens a bundle that this key must have signed.
pub fn signed(path: &str, key: &str) -> Result<Bundle<'static>, Failure> {
    let key = PublicKey::read(key).map_err(|e| Failure::argument(e.to_string()))?;
    Ok(Bundle::open_signed(path, &key)?)
}

impl From<RuntimeError> for Failure {
    fn from(e: RuntimeError) -> Failure {
        let status = match e {
            RuntimeError::Target(e) => return e.into(),
            RuntimeError::Untuned { .. } => Status::Untuned,
            RuntimeError::Bind { .. } => Status::Bind,
            _ => Status::Bundle,
        };
        Failure { status, text: e.to_string() }
    }
}

impl From<BackendError> for Failure {
    fn from(e: BackendError) -> Failure {
        let misfit =
            matches!(e, BackendError::Bind { .. } | BackendError::WrongQueue { .. } | BackendError::WrongGpu { .. });
        Failure { status: if misfit { Status::Bind } else { Status::Device }, text: e.to_string() }
    }
}

/// Text for C; what stands behind a zero byte would be lost to it anyway.
pub fn text(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// A bundle on a device.
pub struct Runtime(runtime::Runtime);

impl Runtime {
    pub fn cpu(bundle: &Bundle<'_>, threads: usize) -> Result<Runtime, Failure> {
        Ok(Runtime(runtime::Runtime::cpu(bundle, (threads > 0).then_some(threads))?))
    }

    pub fn cuda(bundle: &Bundle<'_>, ordinal: usize) -> Result<Runtime, Failure> {
        Ok(Runtime(runtime::Runtime::cuda(bundle, ordinal)?))
    }

    pub fn lookup(&self, problem: &str) -> Result<Kernel, Failure> {
        let problem: Problem = problem.parse().map_err(|e| Failure::argument(format!("{e}")))?;
        let kernel = self.0.lookup(&problem)?;
        let tensor = |t: &problem::Tensor| Tensor { name: text(t.name), bytes: t.bytes(), output: t.role == Role::Out };
        let tensors = kernel.tensors().iter().map(tensor).collect();
        let name = text(&format!("{} {}", kernel.template(), kernel.config()));
        Ok(Kernel { kernel, name, tensors })
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
    pub kernel: Arc<runtime::Kernel>,
    pub name: CString,
    pub tensors: Vec<Tensor>,
}

impl Kernel {
    pub fn bind(&self, tensors: Vec<View>, workspace: View) -> Result<Bound, Failure> {
        Ok(Bound { kernel: Arc::clone(&self.kernel), bound: self.kernel.bind(tensors, workspace)? })
    }
}

/// A kernel with its addresses.
pub struct Bound {
    pub kernel: Arc<runtime::Kernel>,
    pub bound: runtime::Bound,
}
