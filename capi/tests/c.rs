//! The library from C: `examples/run.c` compiled and linked both ways, run on a bundle made here; and what the functions
//! answer to arguments that are wrong.

#[path = "../../tests/bundle/make.rs"]
#[allow(dead_code)]
mod make;

use jitune::bundle::Bundle;
use jitune_c::ffi::*;
use make::WINNERS;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::{null, null_mut};

/// As memory from malloc is.
#[repr(align(16))]
struct Aligned<T>(T);

fn bundle(folder: &Path) -> PathBuf {
    let path = folder.join("m.jitune");
    Bundle::seal(WINNERS.iter().cloned()).unwrap().write(&path).unwrap();
    path
}

fn text(pointer: *const c_char) -> String {
    // SAFETY: the library's texts end with a zero byte, and live until the next call at least.
    unsafe { CStr::from_ptr(pointer) }.to_str().unwrap().to_string()
}

#[test]
fn the_example_in_c_runs() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = bundle(folder.path());
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Where cargo puts the libraries that it builds for this test.
    let libraries = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    let with: [(&str, Vec<String>); 2] = [
        ("dynamic", vec!["-L".into(), libraries.display().to_string(), "-ljitune_c".into()]),
        (
            "static",
            [vec![libraries.join("libjitune_c.a").display().to_string()], vec!["-lpthread".into(), "-ldl".into()]]
                .concat(),
        ),
    ];
    for (how, link) in with {
        let program = folder.path().join(how);
        let mut cc = Command::new("cc");
        cc.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", "-I"]).arg(here.join("include"));
        let status =
            cc.arg(here.join("examples/run.c")).args(link).arg("-lm").arg("-o").arg(&program).status().unwrap();
        assert!(status.success(), "{how}");
        let run = |args: &[&str]| {
            let mut command = Command::new(&program);
            command.arg(&bundle).args(args).env_clear().env("LD_LIBRARY_PATH", &libraries);
            let out = command.output().unwrap();
            (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
        };
        // As it was tuned, and a size that another winner answers for.
        for (m, written) in [("64", "12288 bytes, written"), ("3", "576 bytes, written")] {
            let (code, said) = run(&[m, "48", "64"]);
            assert!(code == Some(0) && said.contains(written) && said.contains("largest error"), "{how}: {said}");
        }
        let (code, said) = run(&["3", "48", "65"]);
        assert!(code == Some(1) && said.contains("no kernel serves"), "{how}: {said}");
    }
}

/// The names behind each place where `before` stands, up to the opening bracket.
fn functions(text: &str, before: &str) -> BTreeSet<String> {
    let names = text.split(before).skip(1).filter_map(|rest| rest.split_once('(').map(|(name, _)| name.trim()));
    names.filter(|n| n.chars().all(|c| c.is_alphanumeric() || c == '_')).map(|n| format!("jitune_{n}")).collect()
}

#[test]
fn the_header_names_what_the_library_has() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let header = std::fs::read_to_string(here.join("include/jitune.h")).unwrap();
    let code: String = header.split("/*").map(|part| part.split_once("*/").map_or(part, |(_, code)| code)).collect();
    let source = std::fs::read_to_string(here.join("src/ffi.rs")).unwrap();
    let declared = functions(&code, "jitune_");
    assert_eq!(declared, functions(&source, "extern \"C\" fn jitune_"));
    assert!(declared.len() > 15);
}

#[test]
fn wrong_arguments_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = CString::new(bundle(folder.path()).to_str().unwrap()).unwrap();
    let problem = c"matmul m=1 n=48 k=64 dtype=f32".as_ptr();
    let (mut runtime, mut kernel, mut bound) = (null_mut(), null_mut(), null_mut());
    // SAFETY: null, or what the header asks for.
    unsafe {
        assert_eq!(jitune_open_cpu(null(), 1, &mut runtime), Status::Argument);
        assert!(text(jitune_last_error()).contains("path is null"));
        assert_eq!(jitune_open_cpu(path.as_ptr(), 1, null_mut()), Status::Argument);
        assert_eq!(jitune_open_cpu(c"/nonexistent".as_ptr(), 1, &mut runtime), Status::Bundle);
        assert!(runtime.is_null() && text(jitune_last_error()).contains("/nonexistent"));
        assert_eq!(jitune_open_cpu(c"\xff".as_ptr(), 1, &mut runtime), Status::Argument);
        assert!(text(jitune_last_error()).contains("UTF-8"));
        assert_ne!(jitune_open_cuda(path.as_ptr(), 0, &mut runtime), Status::Ok);
        assert_eq!(jitune_lookup(null(), problem, &mut kernel), Status::Argument);

        assert_eq!(jitune_open_cpu(path.as_ptr(), 1, &mut runtime), Status::Ok);
        assert_eq!(jitune_lookup(runtime, c"matmull".as_ptr(), &mut kernel), Status::Argument);
        assert_eq!(jitune_lookup(runtime, c"gelu rows=1 cols=8 dtype=f32".as_ptr(), &mut kernel), Status::Untuned);
        assert!(kernel.is_null());
        assert_eq!(jitune_lookup(runtime, problem, &mut kernel), Status::Ok);
        assert!(text(jitune_kernel_name(kernel)).starts_with("cpu_gemv "));
        jitune_close(runtime);

        let mut tensor = TensorInfo { name: null(), bytes: 0, output: 0 };
        assert_eq!(jitune_tensor_at(kernel, 2, &mut tensor), Status::Ok);
        assert_eq!((text(tensor.name).as_str(), tensor.bytes, tensor.output), ("y", 48 * 4, 1));
        assert_eq!(jitune_tensor_at(kernel, 3, &mut tensor), Status::Argument);
        assert_eq!(jitune_tensor_at(kernel, 2, null_mut()), Status::Argument);
        assert_eq!(
            (jitune_tensor_count(null()), jitune_workspace_bytes(null()), jitune_workspace_zeroed(null())),
            (0, 0, 0)
        );

        let (x, w, mut y) = (Aligned([1f32; 64]), Aligned([0.5f32; 48 * 64]), Aligned([f32::NAN; 48]));
        let addresses = [x.0.as_ptr() as u64, w.0.as_ptr() as u64, y.0.as_mut_ptr() as u64];
        assert_eq!(jitune_bind(kernel, null(), 3, 0, &mut bound), Status::Argument);
        assert_eq!(jitune_bind(kernel, addresses.as_ptr(), 2, 0, &mut bound), Status::Argument);
        assert_eq!(jitune_bind(kernel, [0, 0, 0].as_ptr(), 3, 0, &mut bound), Status::Bind);
        // Memory that would begin again at zero.
        let last = u64::MAX - 15;
        assert_eq!(jitune_bind(kernel, [addresses[0], last, addresses[2]].as_ptr(), 3, 0, &mut bound), Status::Bind);
        assert!(text(jitune_last_error()).contains("beyond the last address"), "{}", text(jitune_last_error()));
        assert_eq!(jitune_bind(kernel, addresses.as_ptr(), 3, 0, &mut bound), Status::Ok);
        assert_eq!(jitune_set_tensor(bound, 0, last), Status::Bind);
        jitune_kernel_free(kernel);
        assert_eq!(jitune_launch_cuda(bound, null_mut()), Status::Bind);
        assert_eq!(jitune_launch_host(null()), Status::Argument);
        assert_eq!(jitune_launch_host(bound), Status::Ok);
        assert_eq!(y.0, [32f32; 48]);
        let twice = Aligned([2f32; 64]);
        assert_eq!(jitune_set_tensor(bound, 3, addresses[0]), Status::Argument);
        assert_eq!(jitune_set_tensor(bound, 0, addresses[2]), Status::Bind);
        assert!(text(jitune_last_error()).contains("y"), "{}", text(jitune_last_error()));
        assert_eq!(jitune_set_tensor(bound, 0, twice.0.as_ptr() as u64), Status::Ok);
        assert_eq!((jitune_set_workspace(bound, 0), jitune_launch_host(bound)), (Status::Ok, Status::Ok));
        assert_eq!(y.0, [64f32; 48]);
        jitune_bound_free(bound);
        jitune_bound_free(null_mut());
        jitune_close(null_mut());
    }
    assert_eq!(text(jitune_version()), env!("CARGO_PKG_VERSION"));
}
