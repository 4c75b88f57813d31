//! Memory on either device: a convenience for examples and tests, which production replaces by its own.

use super::RuntimeError;
use crate::backend::{BackendError, cpu, cuda};
use crate::device::Target;

/// Memory on the device that a kernel runs on.
pub struct Memory(Kind);

enum Kind {
    Cuda(cuda::Buffer),
    Cpu(cpu::Buffer),
}

impl Memory {
    pub(super) fn new(bytes: u64, target: Target) -> Result<Memory, RuntimeError> {
        Ok(Memory(match target {
            Target::Cuda => Kind::Cuda(cuda::Buffer::new(bytes)?),
            Target::Cpu => {
                // Beyond this an allocation cannot be asked for, and the process would end.
                let len = isize::try_from(bytes).ok().filter(|b| *b < isize::MAX / 2);
                let full = || BackendError::OutOfMemory { needed: bytes, free: isize::MAX as u64 / 2 };
                Kind::Cpu(cpu::Buffer::new(len.ok_or_else(full)? as usize))
            }
        }))
    }

    pub(super) fn zeroed(mut self) -> Result<Memory, RuntimeError> {
        match &mut self.0 {
            Kind::Cuda(b) => b.write(0, &vec![0; b.len() as usize])?,
            Kind::Cpu(b) => b.bytes_mut().fill(0),
        }
        Ok(self)
    }

    /// Its address on the device.
    pub fn address(&self) -> u64 {
        match &self.0 {
            Kind::Cuda(b) => b.address(),
            Kind::Cpu(b) => b.address(),
        }
    }

    /// Copies from the host; returns when done.
    pub fn upload(&mut self, data: &[u8]) -> Result<(), RuntimeError> {
        match &mut self.0 {
            Kind::Cuda(b) => Ok(b.write(0, data)?),
            Kind::Cpu(b) => {
                let have = b.bytes().len();
                let to = b.bytes_mut().get_mut(..data.len());
                to.ok_or(BackendError::OutOfMemory { needed: data.len() as u64, free: have as u64 })?
                    .copy_from_slice(data);
                Ok(())
            }
        }
    }

    /// Copies to the host; waits for the device's work.
    pub fn download(&self, data: &mut [u8]) -> Result<(), RuntimeError> {
        match &self.0 {
            Kind::Cuda(b) => Ok(b.read(0, data)?),
            Kind::Cpu(b) => {
                let have = b.bytes().len();
                let from = b.bytes().get(..data.len());
                data.copy_from_slice(
                    from.ok_or(BackendError::OutOfMemory { needed: data.len() as u64, free: have as u64 })?,
                );
                Ok(())
            }
        }
    }
}
