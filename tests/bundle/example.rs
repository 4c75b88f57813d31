//! The example program as production would run it: no PATH, no database, no compiler.

use crate::make;
use crate::production::BUNDLE;
use std::process::Command;

#[test]
fn the_production_example_runs_in_an_empty_environment() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.jitune");
    BUNDLE.write(&file).unwrap();
    let Some(program) = make::example("production") else { return };
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
