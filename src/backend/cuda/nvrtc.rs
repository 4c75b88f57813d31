//! NVRTC: from a source to a cubin, on a machine with or without a GPU.

use crate::artifact::ArtifactInfo;
use crate::backend::{BackendError, elf};
use crate::source::Source;
use cudarc::nvrtc::sys;
use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::OnceLock;

/// Names of the library, newest first: the major version is part of the name.
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// Messages of ptxas that make a kernel unfit whatever its speed: setmaxnreg ignored (C7504, C7507 to C7509), registers
/// or accumulators of wgmma serialised (C7510, C7511, C7514, C7515).
const UNFIT: [&str; 8] = ["C7504", "C7507", "C7508", "C7509", "C7510", "C7511", "C7514", "C7515"];

/// Where NVRTC was found and its version.
#[derive(Clone, Debug)]
pub struct Nvrtc {
    /// The library as it was opened.
    pub path: String,
    /// E.g. `13.0`.
    pub version: String,
}

/// The folder that the user names. Then it is there or nowhere: another version would be another compiler.
fn given() -> Option<PathBuf> {
    let given = std::env::var_os("JITUNE_NVRTC").filter(|v| !v.is_empty()).map(PathBuf::from)?;
    Some(if given.is_file() { given.parent().map(Path::to_path_buf).unwrap_or_default() } else { given })
}

/// Folders that may hold NVRTC beside the loader's own path, in the order they are tried.
fn places() -> Vec<PathBuf> {
    if let Some(given) = given() {
        return vec![given];
    }
    let mut list = Vec::new();
    // Where the README's test command puts the wheel: beside the build, `<target>/nvrtc`.
    if let Ok(exe) = std::env::current_exe() {
        for folder in exe.ancestors().skip(1).take(4) {
            list.push(folder.join("nvrtc/nvidia/cu13/lib"));
        }
    }
    for key in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(home) = std::env::var_os(key) {
            list.push(Path::new(&home).join("lib64"));
        }
    }
    if let Some(home) = std::env::var_os("VIRTUAL_ENV") {
        let lib = Path::new(&home).join("lib");
        let pythons = std::fs::read_dir(lib).into_iter().flatten().flatten();
        list.extend(pythons.map(|e| e.path().join("site-packages/nvidia/cu13/lib")));
    }
    list.extend(["/usr/local/cuda/lib64", "/usr/local/cuda-13.0/lib64"].map(PathBuf::from));
    list
}

/// Finds and opens NVRTC once for the process.
pub fn open() -> Result<&'static Nvrtc, BackendError> {
    static FOUND: OnceLock<Option<Nvrtc>> = OnceLock::new();
    let missing = || {
        let list: Vec<String> = places().iter().map(|p| p.display().to_string()).collect();
        let places = match given() {
            Some(given) => format!("{}, as JITUNE_NVRTC says, and nowhere else", given.display()),
            None => format!("the loader's path, {}", list.join(", ")),
        };
        BackendError::NoNvrtc { places }
    };
    FOUND.get_or_init(find).as_ref().ok_or_else(missing)
}

fn find() -> Option<Nvrtc> {
    let files = places().into_iter().flat_map(|folder| NAMES.map(|n| folder.join(n)));
    let found = files.filter(|f| f.is_file()).map(|f| f.display().to_string());
    let loader = NAMES.map(String::from).into_iter().filter(|_| given().is_none());
    for path in found.chain(loader) {
        // NVRTC opens its built-in headers by plain name when it first compiles; outside the loader's path it finds them
        // only because they are loaded already.
        let beside = Path::new(&path).parent().map(std::fs::read_dir).into_iter().flatten().flatten().flatten();
        for file in beside.filter(|f| f.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so")) {
            // SAFETY: the library holds data only.
            if let Ok(library) = unsafe { libloading::Library::new(file.path()) } {
                std::mem::forget(library);
            }
        }
        // SAFETY: NVRTC's initialisers have no preconditions.
        let Ok(library) = (unsafe { libloading::Library::new(&path) }) else { continue };
        // It stays open for the process: cudarc opens it again by its plain name, and the loader answers a name that is
        // already loaded with the loaded library.
        std::mem::forget(library);
        if !super::present(&NAMES) {
            continue;
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two integers.
        if unsafe { sys::nvrtcVersion(&mut major, &mut minor) } == sys::nvrtcResult::NVRTC_SUCCESS {
            return Some(Nvrtc { path, version: format!("{major}.{minor}") });
        }
    }
    None
}

struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is ours.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

/// Options that every CUDA source is compiled with, beside its architecture.
pub const BASE_OPTIONS: [&str; 3] = ["-std=c++17", "-default-device", "--ptxas-options=-v"];

/// The options that a CUDA source is compiled with.
pub fn options(source: &Source) -> Vec<String> {
    let mut list = vec![format!("--gpu-architecture={}", source.arch)];
    list.extend(BASE_OPTIONS.map(String::from));
    list.extend(source.options.iter().cloned());
    list
}

/// Compiles a source to a cubin.
pub fn compile(source: &Source) -> Result<(Vec<u8>, ArtifactInfo), BackendError> {
    open()?;
    let start = std::time::Instant::now();
    let text = |s: &str| CString::new(s).map_err(|e| BackendError::Compile { log: e.to_string() });
    let code = text(&source.text)?;
    let name = text("kernel.cu")?;
    let options: Vec<CString> = options(source).iter().map(|o| text(o)).collect::<Result<_, _>>()?;
    let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
    let mut program = Program(ptr::null_mut());
    let failed = |call: &str, code: sys::nvrtcResult| BackendError::Compiler { why: format!("{call}: {code:?}") };
    // SAFETY: all strings outlive the calls, and the arrays are as long as said.
    let (compiled, log) = unsafe {
        let made = sys::nvrtcCreateProgram(&mut program.0, code.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null());
        if made != sys::nvrtcResult::NVRTC_SUCCESS {
            return Err(failed("nvrtcCreateProgram", made));
        }
        let compiled = sys::nvrtcCompileProgram(program.0, pointers.len() as i32, pointers.as_ptr());
        let mut size = 0;
        sys::nvrtcGetProgramLogSize(program.0, &mut size);
        let mut log = vec![0u8; size.max(1)];
        sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast());
        let log = CStr::from_bytes_until_nul(&log).map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
        (compiled, log)
    };
    match compiled {
        sys::nvrtcResult::NVRTC_SUCCESS => {}
        // The source, or an option that it comes with.
        sys::nvrtcResult::NVRTC_ERROR_COMPILATION | sys::nvrtcResult::NVRTC_ERROR_INVALID_OPTION => {
            return Err(BackendError::Compile { log: clip(&log) });
        }
        other => return Err(failed("nvrtcCompileProgram", other)),
    }
    let mut cubin = Vec::new();
    // SAFETY: the second call writes as many bytes as the first one said.
    unsafe {
        let mut size = 0;
        let sized = sys::nvrtcGetCUBINSize(program.0, &mut size);
        if sized != sys::nvrtcResult::NVRTC_SUCCESS || size == 0 {
            return Err(BackendError::Compile {
                log: format!("no machine code for {}: {sized:?}\n{log}", source.arch),
            });
        }
        cubin.resize(size, 0u8);
        let got = sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast());
        if got != sys::nvrtcResult::NVRTC_SUCCESS {
            return Err(failed("nvrtcGetCUBIN", got));
        }
    }
    // By the same check as when it is loaded: nothing is measured and sealed that does not load later.
    elf::check_cubin(&cubin).map_err(|why| BackendError::Compiler { why: format!("its cubin: {why}") })?;
    let mut info = report(&log);
    info.bytes = cubin.len() as u64;
    info.seconds = start.elapsed().as_secs_f64();
    if let Some(line) = log.lines().find(|l| UNFIT.iter().any(|c| l.contains(c))) {
        return Err(BackendError::Unfit { why: line.trim().into() });
    }
    Ok((cubin, info))
}

/// The last 4 KiB of a compiler's messages: enough to see the errors, small enough to store.
fn clip(log: &str) -> String {
    let from = log.char_indices().map(|(i, _)| i).find(|i| log.len() - i <= 4096).unwrap_or(0);
    log[from..].trim().to_string()
}

/// Reads registers, spills, stack and shared memory out of ptxas' messages; of several entries the largest of each.
fn report(log: &str) -> ArtifactInfo {
    let mut info = ArtifactInfo::default();
    let number_before = |line: &str, word: &str| -> u32 {
        let words: Vec<&str> = line.split_whitespace().collect();
        let of = |i: usize| words[i].trim_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
        let first = word.split(' ').next().unwrap_or(word);
        let matches = |i: usize| words[i..].join(" ").starts_with(word);
        (1..words.len()).filter(|&i| words[i].starts_with(first) && matches(i)).map(|i| of(i - 1)).max().unwrap_or(0)
    };
    for line in log.lines() {
        if line.contains("registers") {
            info.registers = info.registers.max(number_before(line, "registers"));
            let smem = if line.contains("bytes smem") { number_before(line, "bytes smem") } else { 0 };
            info.smem = info.smem.max(smem);
        }
        if line.contains("bytes spill") {
            info.spills =
                info.spills.max(number_before(line, "bytes spill stores") + number_before(line, "bytes spill loads"));
            info.stack = info.stack.max(number_before(line, "bytes stack frame"));
        }
        if line.contains("warning") {
            info.log.push_str(line.trim());
            info.log.push('\n');
        }
    }
    info
}

#[cfg(test)]
mod tests {
    use super::report;

    #[test]
    fn ptxas_reports_are_read() {
        let log = "ptxas info    : 0 bytes gmem\n\
            ptxas info    : Compiling entry function 'k' for 'sm_90a'\n\
            ptxas info    : Function properties for k\n    \
            24 bytes stack frame, 16 bytes spill stores, 8 bytes spill loads\n\
            ptxas info    : Used 168 registers, used 1 barriers, 24 bytes cumulative stack size, 512 bytes smem\n";
        let info = report(log);
        assert_eq!((info.registers, info.spills, info.stack, info.smem), (168, 24, 24, 512));
    }
}
