//! The functions of `include/jitune.h`.
//!
//! # Safety
//! Of all functions here: pointers are null or what the header says they are, made by this library and not freed yet, or
//! writable where something is put; text ends with a zero byte.
#![allow(clippy::missing_safety_doc)]

pub use crate::handle::Status;
use crate::handle::{self, Bound, Failure, Kernel, Runtime};
use jitune::backend::cuda::StreamRef;
use jitune::bundle::Bundle;
use jitune::runtime::{Queue, View};
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Runs a function's work: what fails is said, and what panics is a failure.
fn status(work: impl FnOnce() -> Result<(), Failure>) -> Status {
    let failure = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(failure)) => failure,
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Failure {
                status: Status::Internal,
                text: format!("a fault of jitune's own: {}", said.unwrap_or("unknown")),
            }
        }
    };
    LAST.with(|last| *last.borrow_mut() = handle::text(&failure.text));
    failure.status
}

/// What a pointer from C points to.
fn given<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: null, or a live value of the caller's, as the module says.
    unsafe { pointer.as_ref() }.ok_or_else(|| Failure::argument(format!("{name} is null")))
}

/// The same, where it is changed.
fn taken<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T, Failure> {
    // SAFETY: null, or a live value that the caller uses from one thread at a time.
    unsafe { pointer.as_mut() }.ok_or_else(|| Failure::argument(format!("{name} is null")))
}

/// Text from C.
fn words<'a>(pointer: *const c_char, name: &str) -> Result<&'a str, Failure> {
    given(pointer, name)?;
    // SAFETY: not null, and ends with a zero byte, as the module says.
    unsafe { CStr::from_ptr(pointer) }.to_str().map_err(|_| Failure::argument(format!("{name} is no UTF-8")))
}

/// Makes a value where the caller wants a pointer to it.
fn make<T>(to: *mut *mut T, name: &str, value: impl FnOnce() -> Result<T, Failure>) -> Status {
    status(|| {
        if to.is_null() {
            return Err(Failure::argument(format!("{name} is null")));
        }
        // SAFETY: not null, and writable, as the module says.
        unsafe { *to = std::ptr::null_mut() };
        let value = Box::into_raw(Box::new(value()?));
        // SAFETY: as above.
        unsafe { *to = value };
        Ok(())
    })
}

/// Takes a value back from the caller.
fn free<T>(pointer: *mut T) {
    if !pointer.is_null() {
        // A panic in a destructor has nobody to be told to.
        // SAFETY: made by `make`, and not freed yet, as the module says.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(pointer) })));
    }
}

/// The version of the library.
#[unsafe(no_mangle)]
pub extern "C" fn jitune_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };
    VERSION.as_ptr()
}

/// What the last failed call of this thread had to say.
#[unsafe(no_mangle)]
pub extern "C" fn jitune_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Opens a bundle on the host's processor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_open_cpu(path: *const c_char, threads: usize, runtime: *mut *mut Runtime) -> Status {
    make(runtime, "runtime", || Runtime::cpu(&Bundle::open(words(path, "path")?)?, threads))
}

/// Opens a bundle on a GPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_open_cuda(path: *const c_char, ordinal: usize, runtime: *mut *mut Runtime) -> Status {
    make(runtime, "runtime", || Runtime::cuda(&Bundle::open(words(path, "path")?)?, ordinal))
}

/// Opens a bundle on the host's processor, if this key signed it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_open_cpu_signed(
    path: *const c_char,
    public_key: *const c_char,
    threads: usize,
    runtime: *mut *mut Runtime,
) -> Status {
    make(runtime, "runtime", || {
        Runtime::cpu(&handle::signed(words(path, "path")?, words(public_key, "public_key")?)?, threads)
    })
}

/// Opens a bundle on a GPU, if this key signed it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_open_cuda_signed(
    path: *const c_char,
    public_key: *const c_char,
    ordinal: usize,
    runtime: *mut *mut Runtime,
) -> Status {
    make(runtime, "runtime", || {
        Runtime::cuda(&handle::signed(words(path, "path")?, words(public_key, "public_key")?)?, ordinal)
    })
}

/// Closes a runtime.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_close(runtime: *mut Runtime) {
    free(runtime);
}

/// The kernel of a problem.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_lookup(
    runtime: *const Runtime,
    problem: *const c_char,
    kernel: *mut *mut Kernel,
) -> Status {
    make(kernel, "kernel", || given(runtime, "runtime")?.lookup(words(problem, "problem")?))
}

/// Frees a kernel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_kernel_free(kernel: *mut Kernel) {
    free(kernel);
}

/// The template and config of a kernel in words.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_kernel_name(kernel: *const Kernel) -> *const c_char {
    given(kernel, "kernel").map_or(c"".as_ptr(), |k| k.name.as_ptr())
}

/// How many tensors a kernel has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_tensor_count(kernel: *const Kernel) -> usize {
    given(kernel, "kernel").map_or(0, |k| k.tensors.len())
}

/// `jitune_tensor`.
#[repr(C)]
#[derive(Debug)]
pub struct TensorInfo {
    /// Its name.
    pub name: *const c_char,
    /// Its size.
    pub bytes: u64,
    /// 1 for an output.
    pub output: c_int,
}

/// One tensor of a kernel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_tensor_at(kernel: *const Kernel, index: usize, tensor: *mut TensorInfo) -> Status {
    status(|| {
        let tensors = &given(kernel, "kernel")?.tensors;
        let t = tensors
            .get(index)
            .ok_or_else(|| Failure::argument(format!("there is no tensor {index} of {}", tensors.len())))?;
        if tensor.is_null() {
            return Err(Failure::argument("tensor is null"));
        }
        let info = TensorInfo { name: t.name.as_ptr(), bytes: t.bytes, output: t.output.into() };
        // SAFETY: not null, and writable, as the module says.
        unsafe { tensor.write(info) };
        Ok(())
    })
}

/// Bytes of scratch memory that a launch needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_workspace_bytes(kernel: *const Kernel) -> u64 {
    given(kernel, "kernel").map_or(0, |k| k.kernel.workspace_bytes())
}

/// Whether the scratch memory must be zero before the first launch.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_workspace_zeroed(kernel: *const Kernel) -> c_int {
    given(kernel, "kernel").map_or(0, |k| k.kernel.needs_zeroed_workspace().into())
}

/// Memory of the caller's, of as many bytes as a kernel touches there.
fn view(address: u64, bytes: u64) -> Result<View, Failure> {
    if address.checked_add(bytes).is_none() {
        let text = format!("{bytes} bytes at {address:#x} go beyond the last address");
        return Err(Failure { status: Status::Bind, text });
    }
    // SAFETY: of that size, alive and in nobody else's hands while launches run, its indices in range, as the header asks.
    Ok(unsafe { View::from_raw(address, bytes) })
}

/// Binds a kernel to addresses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_bind(
    kernel: *const Kernel,
    addresses: *const u64,
    count: usize,
    workspace: u64,
    bound: *mut *mut Bound,
) -> Status {
    make(bound, "bound", || {
        let kernel = given(kernel, "kernel")?;
        given(addresses, "addresses")?;
        if count != kernel.tensors.len() {
            return Err(Failure::argument(format!("{count} addresses for {} tensors", kernel.tensors.len())));
        }
        // SAFETY: not null, and of as many elements as the caller says.
        let addresses = unsafe { std::slice::from_raw_parts(addresses, count) };
        let views = addresses.iter().zip(&kernel.tensors).map(|(address, tensor)| view(*address, tensor.bytes));
        kernel.bind(views.collect::<Result<_, _>>()?, view(workspace, kernel.kernel.workspace_bytes())?)
    })
}

/// Puts another address in the place of a tensor's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_set_tensor(bound: *mut Bound, index: usize, address: u64) -> Status {
    status(|| {
        let Bound { kernel, bound } = taken(bound, "bound")?;
        let tensors = kernel.tensors();
        let tensor = tensors
            .get(index)
            .ok_or_else(|| Failure::argument(format!("there is no tensor {index} of {}", tensors.len())))?;
        Ok(bound.set_tensor(index, view(address, tensor.bytes())?)?)
    })
}

/// Puts another workspace in the place of the one it has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_set_workspace(bound: *mut Bound, workspace: u64) -> Status {
    status(|| {
        let Bound { kernel, bound } = taken(bound, "bound")?;
        Ok(bound.set_workspace(view(workspace, kernel.workspace_bytes())?)?)
    })
}

/// Frees a bound kernel.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_bound_free(bound: *mut Bound) {
    free(bound);
}

/// Runs a kernel of the processor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_launch_host(bound: *const Bound) -> Status {
    status(|| Ok(given(bound, "bound")?.bound.launch(Queue::Host)?))
}

/// Enqueues a kernel of a GPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn jitune_launch_cuda(bound: *const Bound, stream: *mut c_void) -> Status {
    // SAFETY: null, or a stream of the context that lives long enough, as the header says.
    status(|| Ok(given(bound, "bound")?.bound.launch(Queue::Cuda(unsafe { StreamRef::from_raw(stream) }))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_failures_with_text() {
        assert_eq!(status(|| panic!("with {}", "words")), Status::Internal);
        // SAFETY: the text is this thread's, and no other call is made meanwhile.
        let said = unsafe { CStr::from_ptr(jitune_last_error()) };
        assert!(said.to_str().unwrap().ends_with("jitune's own: with words"), "{said:?}");
        free(Box::into_raw(Box::new(Falls)));
    }

    struct Falls;

    impl Drop for Falls {
        fn drop(&mut self) {
            panic!("while it is freed");
        }
    }
}
