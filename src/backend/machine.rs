//! Kernels on either kind of device: loaded, made ready for a launch, bound to memory, launched.

use super::memory::View;
use super::{BackendError, cpu, cuda};
use crate::bundle::SealedArtifact;
use crate::device::Target;
use crate::problem::{Role, Storage, Tensor};
use crate::recipe::Launch;
use std::sync::Arc;

/// What kernels run on.
#[derive(Clone)]
pub(crate) enum Machine {
    Cuda(Arc<cuda::Context>),
    Cpu(Arc<cpu::Pool>),
}

#[cfg(feature = "engine")]
impl Machine {
    /// Bytes that may be allocated on it.
    pub(crate) fn available(&self) -> Result<u64, BackendError> {
        match self {
            Machine::Cuda(context) => cuda::available(context),
            Machine::Cpu(_) => Ok(cpu::available()),
        }
    }
}

/// Loaded code.
pub(crate) struct Module {
    code: Code,
    machine: Machine,
}

enum Code {
    Cuda(Arc<cuda::Module>),
    Cpu(Arc<cpu::Module>),
}

impl Module {
    /// Loads an artifact of a bundle, and finds those of `entries` that it has. Its code is run as it is: the bundle's seal
    /// shows damage, and who opens a bundle trusts who sealed it, as with any program.
    pub(crate) fn load<'e>(
        artifact: &SealedArtifact<'_>,
        entries: impl IntoIterator<Item = &'e str>,
        machine: &Machine,
    ) -> Result<Module, BackendError> {
        // SAFETY: the artifact comes out of a bundle whose seal and hashes were checked: it is what a compiler made for
        // jitune, unless who sealed it meant harm.
        let code = unsafe {
            match machine {
                Machine::Cuda(context) => Code::Cuda(cuda::Module::load(context, artifact.bytes, entries)?),
                Machine::Cpu(_) => Code::Cpu(cpu::Module::load(artifact.bytes)?),
            }
        };
        Ok(Module { code, machine: machine.clone() })
    }
}

/// A launch that its code and its device can do; it lacks the memory.
pub(crate) struct Executable {
    kind: Ready,
    operands: Vec<Operand>,
    workspace: u64,
    /// Whether it wants zeros there, and leaves zeros.
    zeroed: bool,
    machine: Machine,
}

enum Ready {
    Cuda(Arc<cuda::Executable>),
    Cpu(Arc<cpu::Executable>),
}

/// What a view must be to stand for a tensor.
struct Operand {
    name: &'static str,
    bytes: u64,
    written: bool,
    /// Where its values say where memory is read or written: the first that may, and the first after these that may not.
    indices: Option<(i64, i64)>,
}

impl Executable {
    /// Checks a launch of a module over a problem's tensors.
    pub(crate) fn new(module: &Module, launch: &Launch, tensors: &[Tensor]) -> Result<Executable, BackendError> {
        let kind = match &module.code {
            Code::Cuda(code) => {
                let storages: Vec<Storage> = tensors.iter().map(|t| t.storage).collect();
                Ready::Cuda(cuda::Executable::new(code, launch, &storages)?)
            }
            Code::Cpu(code) => Ready::Cpu(cpu::Executable::new(code, launch, tensors.len())?),
        };
        let operand = |t: &Tensor| Operand {
            name: t.name,
            bytes: t.bytes(),
            written: t.role == Role::Out,
            indices: t.index_range(),
        };
        let operands = tensors.iter().map(operand).collect();
        let (workspace, zeroed, machine) = (launch.workspace, launch.zero, module.machine.clone());
        Ok(Executable { kind, operands, workspace, zeroed, machine })
    }

    /// Binds it to memory for each tensor, in order, and to a workspace.
    pub(crate) fn bind(self: &Arc<Self>, tensors: Vec<View>, workspace: View) -> Result<Bound, BackendError> {
        if self.operands.len() != tensors.len() {
            let why = format!("it has {} tensors, and memory for {} is given", self.operands.len(), tensors.len());
            return Err(BackendError::Bind { why });
        }
        for (i, view) in tensors.iter().enumerate() {
            self.check(i, view)?;
        }
        self.check_workspace(&workspace)?;
        let views = Views { executable: Arc::clone(self), tensors, workspace };
        (0..self.operands.len()).try_for_each(|i| views.apart(i))?;
        let addresses: Vec<u64> = views.tensors.iter().map(View::address).collect();
        // SAFETY: each view is of this machine and at least of its tensor's size, what is written is apart from all else, and
        // indices are in range, by `check` and `apart`, or by the promise of who made the view. The views are kept as long as
        // the launch and as a graph that captures it. The workspace is written by one launch at a time alone: on the processor whole
        // launches take turns with each other and with copies, and on a GPU `Order` sees to it.
        let kind = unsafe {
            match &self.kind {
                Ready::Cuda(e) => Kind::Cuda(e.bind(&addresses, views.workspace.address())?),
                Ready::Cpu(e) => Kind::Cpu(e.bind(&addresses, views.workspace.address())?),
            }
        };
        Ok(Bound { kind, views })
    }

    fn check(&self, tensor: usize, view: &View) -> Result<(), BackendError> {
        let Some(operand) = self.operands.get(tensor) else {
            let why = format!("it has {} tensors, and tensor {tensor} is given", self.operands.len());
            return Err(BackendError::Bind { why });
        };
        if view.is_workspace() {
            return Err(BackendError::Bind { why: format!("{}: a workspace stands for no tensor", operand.name) });
        }
        named(operand.name, view.check(&self.machine, operand.bytes, operand.written, operand.indices))
    }

    fn check_workspace(&self, view: &View) -> Result<(), BackendError> {
        named("workspace", view.check_workspace(&self.machine, self.workspace, self.zeroed))
    }
}

/// Says what a refusal is about.
fn named(what: &str, checked: Result<(), BackendError>) -> Result<(), BackendError> {
    checked.map_err(|e| match e {
        BackendError::Bind { why } => BackendError::Bind { why: format!("{what}: {why}") },
        other => other,
    })
}

/// The memory of a bound launch.
#[derive(Clone)]
struct Views {
    executable: Arc<Executable>,
    tensors: Vec<View>,
    workspace: View,
}

impl Views {
    /// Refuses a tensor that shares memory with another, or with the workspace, where either is written, and indices that
    /// were checked without each other.
    fn apart(&self, tensor: usize) -> Result<(), BackendError> {
        let operands = &self.executable.operands;
        let (mine, view) = (&operands[tensor], &self.tensors[tensor]);
        let clash = |name: &str| {
            let why = format!("{} and {name} share memory, and a launch writes there", mine.name);
            Err(BackendError::Bind { why })
        };
        for (i, (operand, other)) in operands.iter().zip(&self.tensors).enumerate() {
            if i != tensor && (mine.written || operand.written) && view.overlaps(mine.bytes, other, operand.bytes) {
                return clash(operand.name);
            }
            if view.checked_apart_from(other) {
                let why = format!("{} and {} are of two steps' tables", mine.name, operand.name);
                return Err(BackendError::Bind { why });
            }
        }
        if view.overlaps(mine.bytes, &self.workspace, self.executable.workspace) {
            return clash("the workspace");
        }
        Ok(())
    }
}

/// A kernel with its memory: launched again and again, and captured into graphs. It keeps its code and the
/// [`Memory`](super::Memory) that it is bound to.
pub struct Bound {
    kind: Kind,
    views: Views,
}

enum Kind {
    Cuda(cuda::Bound),
    Cpu(cpu::Bound),
}

impl Bound {
    /// Puts other memory in the place of a tensor, by its position in the problem's tensors. Nothing is built again;
    /// launches that were enqueued or captured keep what they had. After an error nothing has changed.
    pub fn set_tensor(&mut self, tensor: usize, view: impl Into<View>) -> Result<(), BackendError> {
        let view = view.into();
        self.views.executable.check(tensor, &view)?;
        let address = view.address();
        let before = std::mem::replace(&mut self.views.tensors[tensor], view);
        // SAFETY: as in `Executable::bind`; where it is refused, the old address stays with the old view.
        let set = self.views.apart(tensor).and_then(|()| unsafe {
            match &mut self.kind {
                Kind::Cuda(bound) => bound.set_tensor(tensor, address),
                Kind::Cpu(bound) => {
                    bound.set_tensor(tensor, address);
                    Ok(())
                }
            }
        });
        if set.is_err() {
            self.views.tensors[tensor] = before;
        }
        set
    }

    /// Puts another workspace in the place of the one it has.
    pub fn set_workspace(&mut self, view: impl Into<View>) -> Result<(), BackendError> {
        let view = view.into();
        self.views.executable.check_workspace(&view)?;
        let address = view.address();
        let before = std::mem::replace(&mut self.views.workspace, view);
        let apart = (0..self.views.tensors.len()).try_for_each(|i| self.views.apart(i));
        // SAFETY: as in `set_tensor`.
        let set = apart.and_then(|()| unsafe {
            match &mut self.kind {
                Kind::Cuda(bound) => bound.set_workspace(address),
                Kind::Cpu(bound) => {
                    bound.set_workspace(address);
                    Ok(())
                }
            }
        });
        if set.is_err() {
            self.views.workspace = before;
        }
        set
    }

    /// Launches it. On a stream it is enqueued, or captured; on the host it has run when this returns.
    pub fn launch<'q>(&self, queue: impl Into<Queue<'q>>) -> Result<(), BackendError> {
        self.enqueue(queue.into(), true)
    }

    /// The same, but on a stream it begins when all before it has ended, even where the kernel is made to begin earlier.
    #[cfg(feature = "engine")]
    pub(crate) fn launch_behind<'q>(&self, queue: impl Into<Queue<'q>>) -> Result<(), BackendError> {
        self.enqueue(queue.into(), false)
    }

    fn enqueue(&self, queue: Queue<'_>, early: bool) -> Result<(), BackendError> {
        match (&self.kind, queue) {
            (Kind::Cuda(bound), Queue::Cuda(stream)) => {
                let order = self.views.workspace.order().filter(|_| self.views.executable.workspace > 0);
                stream.enter(order, || Box::new(self.views.clone()), || bound.enqueue(stream, early))
            }
            (Kind::Cpu(bound), Queue::Host) => {
                let Machine::Cpu(pool) = &self.views.executable.machine else { return Ok(()) };
                bound.run(pool);
                Ok(())
            }
            (Kind::Cuda(_), Queue::Host) => Err(BackendError::WrongQueue { kernel: Target::Cuda, queue: Target::Cpu }),
            (Kind::Cpu(_), Queue::Cuda(_)) => {
                Err(BackendError::WrongQueue { kernel: Target::Cpu, queue: Target::Cuda })
            }
        }
    }
}

/// Where a launch goes.
#[derive(Clone, Copy)]
pub enum Queue<'s> {
    /// A CUDA stream of the kernel's GPU, capturing or not.
    Cuda(cuda::StreamRef<'s>),
    /// The runtime's pool of threads; the launch returns when it is done.
    Host,
}

impl<'s> From<cuda::StreamRef<'s>> for Queue<'s> {
    fn from(stream: cuda::StreamRef<'s>) -> Queue<'s> {
        Queue::Cuda(stream)
    }
}

impl<'s> From<&'s cuda::Stream> for Queue<'s> {
    fn from(stream: &'s cuda::Stream) -> Queue<'s> {
        Queue::Cuda(stream.into())
    }
}
