//! Memory on either kind of device, and views of it that kernels are bound to.

use super::machine::Machine;
use super::{BackendError, cpu, cuda};
use std::ops::Range;
use std::sync::Arc;

/// Memory on the device of the runtime that allocated it. A clone is the same memory; it is freed with the last of them,
/// and of what is bound to it.
///
/// On a processor copies and launches take turns, whatever threads they come from. On a GPU they are ordered by streams:
/// what an upload finds a kernel reading, or a download writing, has whatever values.
#[derive(Clone)]
pub struct Memory(Arc<Kind>);

enum Kind {
    Cuda(cuda::Buffer),
    /// The host's, which kernels of a GPU reach.
    #[cfg(feature = "engine")]
    Host(cuda::HostBuffer),
    Cpu(cpu::Buffer, Arc<cpu::Pool>),
}

impl Memory {
    /// Memory with undefined contents.
    pub(crate) fn new(machine: &Machine, bytes: u64) -> Result<Memory, BackendError> {
        Memory::made(machine, bytes, |b| cuda::Buffer::new(b, bytes), cpu::Buffer::committed)
    }

    /// Memory that holds zeros.
    pub(crate) fn zeroed(machine: &Machine, bytes: u64) -> Result<Memory, BackendError> {
        let on_gpu = |context: &Arc<cuda::Context>| {
            let buffer = cuda::Buffer::new(context, bytes)?;
            buffer.zero().map(|()| buffer)
        };
        Memory::made(machine, bytes, on_gpu, cpu::Buffer::zeroed)
    }

    /// Memory that host and kernels share, of zeros: copies neither wait for kernels nor these for them, so who copies knows that
    /// none is at it.
    #[cfg(feature = "engine")]
    pub(crate) fn shared(machine: &Machine, bytes: u64) -> Result<Memory, BackendError> {
        match machine {
            Machine::Cuda(context) => Ok(Memory(Arc::new(Kind::Host(cuda::HostBuffer::new(context, bytes)?)))),
            Machine::Cpu(_) => Memory::zeroed(machine, bytes),
        }
    }

    fn made(
        machine: &Machine,
        bytes: u64,
        on_gpu: impl FnOnce(&Arc<cuda::Context>) -> Result<cuda::Buffer, BackendError>,
        on_host: impl FnOnce(usize) -> Result<cpu::Buffer, BackendError>,
    ) -> Result<Memory, BackendError> {
        Ok(Memory(Arc::new(match machine {
            Machine::Cuda(context) => Kind::Cuda(on_gpu(context)?),
            Machine::Cpu(pool) => {
                let len = usize::try_from(bytes);
                let len = len.map_err(|_| BackendError::OutOfMemory { needed: bytes, free: usize::MAX as u64 })?;
                Kind::Cpu(on_host(len)?, Arc::clone(pool))
            }
        })))
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        match &*self.0 {
            Kind::Cuda(b) => b.len(),
            #[cfg(feature = "engine")]
            Kind::Host(b) => b.len(),
            Kind::Cpu(b, _) => b.len() as u64,
        }
    }

    /// True for memory of no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its address on the device.
    pub fn address(&self) -> u64 {
        match &*self.0 {
            Kind::Cuda(b) => b.address(),
            #[cfg(feature = "engine")]
            Kind::Host(b) => b.address(),
            Kind::Cpu(b, _) => b.address(),
        }
    }

    /// All of it.
    pub fn view(&self) -> View {
        let (address, bytes) = (self.address(), self.len());
        View { memory: Some(self.clone()), address, bytes, in_range: false, checked: None, scratch: None }
    }

    /// All of it, where it holds inputs that [`crate::problem::Inputs`] made.
    #[cfg(feature = "tuner")]
    pub(crate) fn test_data(&self) -> View {
        // SAFETY: indices of test inputs are within their range.
        unsafe { self.view().assume_in_range() }
    }

    /// Copies from the host to its beginning; returns when done. On a GPU it waits for the work of all streams,
    /// and for captures to end; a capture of a stream that jitune did not make it would break.
    pub fn upload(&self, data: &[u8]) -> Result<(), BackendError> {
        self.write(0, data)
    }

    /// Copies from the host to the byte `at` of it and those after it; waits as [`Memory::upload`] does.
    pub(crate) fn write(&self, at: u64, data: &[u8]) -> Result<(), BackendError> {
        let (len, have) = (data.len() as u64, self.len());
        if at.checked_add(len).is_none_or(|end| end > have) {
            return Err(BackendError::Range { at, len, have });
        }
        match &*self.0 {
            Kind::Cuda(b) => b.write(at, data),
            #[cfg(feature = "engine")]
            Kind::Host(b) => {
                let to = (b.address() + at) as *mut u8;
                // SAFETY: inside the buffer, whose contents nobody borrows; no kernel is at it, which who asked for shared memory knows.
                unsafe { to.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
                Ok(())
            }
            Kind::Cpu(b, pool) => {
                let to = (b.address() + at) as *mut u8;
                let _turn = pool.turn();
                // SAFETY: inside the buffer, whose contents nobody borrows; no kernel runs meanwhile.
                unsafe { to.copy_from_nonoverlapping(data.as_ptr(), data.len()) };
                Ok(())
            }
        }
    }

    /// Copies its beginning to the host; waits as [`Memory::upload`] does.
    pub fn download(&self, data: &mut [u8]) -> Result<(), BackendError> {
        fits(data.len() as u64, self.len())?;
        match &*self.0 {
            Kind::Cuda(b) => b.read(0, data),
            #[cfg(feature = "engine")]
            Kind::Host(b) => {
                let from = b.address() as *const u8;
                // SAFETY: as in `write`.
                unsafe { data.as_mut_ptr().copy_from_nonoverlapping(from, data.len()) };
                Ok(())
            }
            Kind::Cpu(b, pool) => {
                let from = b.address() as *const u8;
                let _turn = pool.turn();
                // SAFETY: as in `write`.
                unsafe { data.as_mut_ptr().copy_from_nonoverlapping(from, data.len()) };
                Ok(())
            }
        }
    }

    /// A word of memory that is shared, as it is now: a kernel may be about to write it.
    #[cfg(feature = "engine")]
    pub(crate) fn word(&self, at: u64) -> Result<i32, BackendError> {
        let have = self.len();
        if !at.is_multiple_of(4) || at.checked_add(4).is_none_or(|end| end > have) || matches!(&*self.0, Kind::Cuda(_))
        {
            return Err(BackendError::Range { at, len: 4, have });
        }
        // SAFETY: inside memory of the host's, and aligned.
        Ok(unsafe { ((self.address() + at) as *const i32).read_volatile() })
    }

    /// Whether kernels on this machine may be bound to it.
    fn belongs(&self, machine: &Machine) -> Result<(), BackendError> {
        let on_gpu = |mine: &Arc<cuda::Context>, context: &Arc<cuda::Context>| match mine.ordinal() == context.ordinal()
        {
            true => Ok(()),
            false => Err(BackendError::WrongGpu { kernel: context.ordinal(), other: mine.ordinal() }),
        };
        match (&*self.0, machine) {
            (Kind::Cuda(b), Machine::Cuda(context)) => on_gpu(&b.context, context),
            #[cfg(feature = "engine")]
            (Kind::Host(b), Machine::Cuda(context)) => on_gpu(&b.context, context),
            (Kind::Cpu(_, pool), Machine::Cpu(other)) if Arc::ptr_eq(pool, other) => Ok(()),
            _ => {
                let why = "it was allocated by another runtime; allocate it by the one that looked the kernel up";
                Err(BackendError::Bind { why: why.into() })
            }
        }
    }
}

fn fits(len: u64, have: u64) -> Result<(), BackendError> {
    if len > have {
        return Err(BackendError::Range { at: 0, len, have });
    }
    Ok(())
}

/// Some bytes of memory that a kernel may be bound to. A view of [`Memory`] keeps it; one of an address is its maker's
/// promise.
#[derive(Clone)]
pub struct View {
    memory: Option<Memory>,
    address: u64,
    bytes: u64,
    in_range: bool,
    /// Where its values were checked. Kernels may read it alone.
    checked: Option<Checked>,
    /// Where it is a workspace.
    scratch: Option<Scratch>,
}

/// What is known of a workspace.
#[derive(Clone)]
struct Scratch {
    zeroed: bool,
    order: Arc<cuda::Order>,
}

/// Scratch of kernels. What stands there may say where they read and write, so it is theirs alone: nothing is copied to it, and it
/// stands for no tensor. Kernels may share one, also as clones, where all or none of them want it zeroed. Launches that use it take
/// turns: on a processor all launches do; on a GPU those of one [`Stream`](crate::backend::cuda::Stream), and of graphs that
/// it replays, follow each other, and a launch on another stream waits on the host for the work before it.
#[derive(Clone)]
pub struct Workspace {
    memory: Memory,
    scratch: Scratch,
}

impl Workspace {
    /// For kernels that want zeros and leave zeros, or for those that take it as it is.
    pub(crate) fn new(machine: &Machine, bytes: u64, zeroed: bool) -> Result<Workspace, BackendError> {
        let made = if zeroed { Memory::zeroed } else { Memory::new };
        Ok(Workspace { memory: made(machine, bytes)?, scratch: Scratch { zeroed, order: Arc::default() } })
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.memory.len()
    }

    /// True for no bytes.
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// Its address on the device, for those who bind by addresses.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }
}

impl From<Workspace> for View {
    fn from(workspace: Workspace) -> View {
        (&workspace).into()
    }
}

impl From<&Workspace> for View {
    fn from(workspace: &Workspace) -> View {
        View { scratch: Some(workspace.scratch.clone()), ..workspace.memory.view() }
    }
}

/// What is known of values that were checked.
#[derive(Clone, Copy)]
struct Checked {
    /// The first that may stand there, and the first after these that may not.
    range: (i64, i64),
    /// The number of the tables that they were checked in.
    tables: u64,
}

impl View {
    /// The same as indices from the first number to below the second, which nobody writes but who checks that, beside others of the tables
    /// of that number.
    #[cfg(feature = "engine")]
    pub(super) fn checked(self, range: (i64, i64), tables: u64) -> View {
        View { in_range: true, checked: Some(Checked { range, tables }), ..self }
    }

    /// Memory that jitune did not allocate: a tensor of another library's, an arena of yours.
    ///
    /// # Safety
    /// As long as anything is bound to it, and until the last launch of that has run (replays of captured graphs too):
    /// * `address` is that of `bytes` bytes of memory that kernels of the runtime can read and write, on its GPU or, for a
    ///   processor, in this process;
    /// * nothing else writes it while a launch runs, or reads what the launch writes there;
    /// * where it stands for a tensor of indices (pages, slots, ids, positions, lengths), its values are within their range
    ///   at every launch: [`View::assume_in_range`] is part of this promise;
    /// * where it is a workspace, it serves one launch at a time, on a GPU to its end, and no one else writes it; it holds zeros
    ///   before the first launch of a kernel that wants that.
    pub unsafe fn from_raw(address: u64, bytes: u64) -> View {
        View { memory: None, address, bytes, in_range: true, checked: None, scratch: None }
    }

    /// No memory: the workspace of a kernel that needs none.
    pub fn none() -> View {
        View { memory: None, address: 0, bytes: 0, in_range: true, checked: None, scratch: None }
    }

    /// Says that the integers it holds are good indices. Kernels that gather and scatter do not check them: an id, a page
    /// or a slot outside of its table is a read or a write outside of memory.
    ///
    /// # Safety
    /// At every launch of what is bound to it, each value is within the range that the op's documentation gives for it.
    pub unsafe fn assume_in_range(mut self) -> View {
        self.in_range = true;
        self
    }

    /// A part of it, by bytes.
    pub fn slice(&self, range: Range<u64>) -> Result<View, BackendError> {
        let (at, len) = (range.start, range.end.saturating_sub(range.start));
        if range.start > range.end || range.end > self.bytes {
            return Err(BackendError::Range { at, len, have: self.bytes });
        }
        Ok(View { address: self.address + at, bytes: len, ..self.clone() })
    }

    /// Its address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size in bytes.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// True for no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Whether it can stand for something of `bytes` bytes on a machine, which the kernel writes or reads; `indices` is the range of
    /// values that address memory.
    pub(crate) fn check(
        &self,
        machine: &Machine,
        bytes: u64,
        written: bool,
        indices: Option<(i64, i64)>,
    ) -> Result<(), BackendError> {
        let refused = |why: String| Err(BackendError::Bind { why });
        match (self.checked, indices) {
            (Some(_), _) if written => {
                return refused("it holds indices that were checked, and the kernel would write others there".into());
            }
            (Some(Checked { range: (from, to), .. }), Some((least, end))) if from < least || to > end => {
                let why =
                    format!("its values were checked to be {from} to {}, and {least} to {} are good", to - 1, end - 1);
                return refused(why);
            }
            _ => {}
        }
        if let Some(memory) = &self.memory {
            memory.belongs(machine)?;
        }
        if self.bytes < bytes {
            return refused(format!("it needs {bytes} bytes, and {} are given", self.bytes));
        }
        if bytes > 0 && self.address == 0 {
            return refused("its address is null".into());
        }
        if !self.address.is_multiple_of(cuda::ALIGNMENT) {
            return refused(format!("its address {:#x} is no multiple of {}", self.address, cuda::ALIGNMENT));
        }
        if indices.is_some() && !self.in_range {
            return refused(
                "its values say where memory is read or written; promise by View::assume_in_range that they are good"
                    .into(),
            );
        }
        Ok(())
    }

    /// Whether it can be the workspace of a kernel on a machine; `zeroed` says whether that wants zeros.
    pub(crate) fn check_workspace(&self, machine: &Machine, bytes: u64, zeroed: bool) -> Result<(), BackendError> {
        self.check(machine, bytes, true, None)?;
        let refused = |why: &str| Err(BackendError::Bind { why: why.into() });
        match (&self.memory, &self.scratch) {
            _ if bytes == 0 => Ok(()),
            (Some(_), None) => refused(
                "what stands in it says where memory is read and written, so it is made by Runtime::workspace, or promised by \
                 View::from_raw",
            ),
            (_, Some(scratch)) if scratch.zeroed != zeroed => refused(match zeroed {
                true => "the kernel wants one of zeros, and others leave it as they like; make one for this kernel",
                false => "the kernel would leave it as it likes, and others want zeros there; make one for this kernel",
            }),
            _ => Ok(()),
        }
    }

    /// Whether it is a workspace, which stands for no tensor.
    pub(crate) fn is_workspace(&self) -> bool {
        self.scratch.is_some()
    }

    /// In which order launches that have it for a workspace run on a GPU.
    pub(crate) fn order(&self) -> Option<&Arc<cuda::Order>> {
        self.scratch.as_ref().map(|scratch| &scratch.order)
    }

    /// Whether both hold indices that were checked, but not together: what one says of the other is not known.
    pub(crate) fn checked_apart_from(&self, other: &View) -> bool {
        matches!((self.checked, other.checked), (Some(a), Some(b)) if a.tables != b.tables)
    }

    /// Whether the first bytes of both share any.
    pub(crate) fn overlaps(&self, bytes: u64, other: &View, others: u64) -> bool {
        bytes > 0
            && others > 0
            && self.address < other.address.saturating_add(others)
            && other.address < self.address.saturating_add(bytes)
    }
}

impl From<&Memory> for View {
    fn from(memory: &Memory) -> View {
        memory.view()
    }
}

impl From<Memory> for View {
    fn from(memory: Memory) -> View {
        memory.view()
    }
}

impl From<&View> for View {
    fn from(view: &View) -> View {
        view.clone()
    }
}

#[cfg(all(test, feature = "engine"))]
mod tests {
    use super::*;

    #[test]
    fn checked_indices_are_bound_only_where_their_range_is_good() {
        let machine = Machine::Cpu(Arc::new(cpu::Pool::new(1).unwrap()));
        let memory = Memory::zeroed(&machine, 64).unwrap();
        let view = memory.view().checked((0, 10), 1).slice(0..32).unwrap();
        let said = |written, indices| view.check(&machine, 32, written, indices).map_err(|e| e.to_string());
        for good in [(0, 10), (-1, 10), (0, 11)] {
            assert_eq!(said(false, Some(good)), Ok(()));
        }
        for bad in [(0, 9), (1, 10), (0, 0)] {
            assert!(said(false, Some(bad)).unwrap_err().contains("checked to be 0 to 9"), "{bad:?}");
        }
        assert!(said(true, None).unwrap_err().contains("the kernel would write others there"));
        // Tables that were checked without each other say nothing of each other, also where they lie in the same place by turns.
        assert!(view.checked_apart_from(&memory.view().checked((0, 10), 2)));
        let own = memory.view().checked((0, 3), 1);
        assert!(!view.checked_apart_from(&own) && !view.checked_apart_from(&memory.view()));
        let plain = memory.view().check(&machine, 32, false, Some((0, 10)));
        assert!(plain.unwrap_err().to_string().contains("assume_in_range"));
    }
}
