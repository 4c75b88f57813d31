//! The example program as production would run it: no PATH, no database, no compiler.

use crate::production::BUNDLE;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

/// When the newest file of a folder was changed.
fn newest(folder: &Path) -> SystemTime {
    let of = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        if path.is_dir() { newest(&path) } else { path.metadata().unwrap().modified().unwrap() }
    };
    std::fs::read_dir(folder).unwrap().map(of).max().unwrap_or(SystemTime::UNIX_EPOCH)
}

#[test]
fn the_production_example_runs_in_an_empty_environment() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.jitune");
    BUNDLE.write(&file).unwrap();
    // `cargo test` builds it; `cargo test --test bundle` alone does not, and may leave an older one there.
    let program = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join("production");
    let made = std::fs::metadata(&program).and_then(|m| m.modified()).ok();
    if made.is_none_or(|made| made < newest(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))) {
        println!("SKIPPED: {} is not up to date; `cargo build --example production`", program.display());
        return;
    }
    let run = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.env_clear().env("PATH", "").current_dir(folder.path()).args(args);
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        println!("{text}");
        (out.status.code(), text)
    };
    let (code, text) = run(&["model.jitune", "--device", "cpu", "--all"]);
    assert_eq!(code, Some(0), "{text}");
    for part in ["all results are right", " bucket ", " exact ", "refused as it must be"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, text) = run(&["model.jitune", "matmul m=3 n=48 k=64 dtype=f32"]);
    assert_eq!(code, Some(0), "{text}");
    for (args, part) in [
        (&["model.jitune", "matmul m=3 n=49 k=64 dtype=f32"][..], "no kernel serves"),
        (&["absent"], "cannot read absent"),
        (&[], "usage"),
        (&["model.jitune", "--device", "cuda"], "NVIDIA driver"),
    ] {
        let (code, text) = run(args);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(part) || part == "NVIDIA driver", "{text}");
    }
    let mut bytes = BUNDLE.as_bytes().to_vec();
    bytes[1000] ^= 1;
    std::fs::write(folder.path().join("bad"), bytes).unwrap();
    let (code, text) = run(&["bad"]);
    assert!(code == Some(2) && text.contains("damaged"), "{text}");
}
