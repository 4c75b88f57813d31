//! Who sealed a bundle: signatures in minisign's forms, made by `jitune export --sign` or by minisign itself.

#[path = "../../tests/bundle/make.rs"]
#[allow(dead_code)]
mod make;

use jitune::bundle::{Bundle, BundleError, PublicKey, signature_path};
use jitune::journal;
use jitune::key::Context;
use jitune_db::{Db, OpenOptions};
use make::{LIBRARY, WINNERS};
use std::path::Path;
use std::process::Command;

/// Keys that `minisign -G -W` made for these tests.
const SECRET: &str = "untrusted comment: minisign encrypted secret key\nRWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAdPfUlZJFFLszPg3C5Czc2ZH2OUj+M5O7AT3jXTv8MwUmCJZmGEFfaeyHLJt/QR0Q29Xcam9YrGfIGjaasw6N7Oghd1DCeMsjAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n";
const PUBLIC: &str = "untrusted comment: minisign public key BB14459295D4F774\nRWR099SVkkUUu+yHLJt/QR0Q29Xcam9YrGfIGjaasw6N7Oghd1DCeMsj\n";
/// The public half of another one.
const OTHER: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

fn jitune(folder: &Path, args: &[&str]) -> (i32, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_jitune")).current_dir(folder).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    println!("jitune {}\n{text}", args.join(" "));
    (out.status.code().unwrap(), text)
}

/// A folder with a database of one winner, and the keys.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(folder.path().join("db"), OpenOptions::default()).unwrap();
    let (w, code) = &WINNERS[0];
    db.put_artifact(code).unwrap();
    let templates = LIBRARY.for_problem(&w.problem, &w.device).unwrap();
    let context = Context { device: w.device.clone(), compiler: "cc".into() };
    let key = context.winner(&LIBRARY, &w.problem, &templates);
    db.put_winner(&journal::of_winner(key, w).unwrap()).unwrap();
    db.close().unwrap();
    for (name, text) in [("s.key", SECRET), ("p.pub", PUBLIC)] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

const EXPORT: [&str; 7] = ["export", "--target", "cpu", "--db", "db", "-o", "m.jitune"];

#[test]
fn a_signed_bundle_opens_with_its_key_alone() {
    let folder = folder();
    let path = folder.path();
    let (code, text) = jitune(path, &[&EXPORT[..], &["--sign", "s.key"]].concat());
    assert!(code == 0 && text.contains("signed: m.jitune.minisig"), "{text}");
    let line = PUBLIC.lines().nth(1).unwrap();
    for key in ["p.pub", line] {
        let (code, text) = jitune(path, &["inspect", "m.jitune", "--public-key", key]);
        assert!(code == 0 && text.contains("signed by the given key"), "{text}");
        let verify = ["verify", "m.jitune", "--target", "cpu", "--threads", "2", "--no-timing", "--public-key", key];
        let (code, text) = jitune(path, &verify);
        assert!(code == 0 && text.contains(" good"), "{text}");
    }
    let (code, text) = jitune(path, &["inspect", "m.jitune"]);
    assert!(code == 0 && text.contains("not asked who signed it"), "{text}");

    // Another key, a flipped byte under a fitting seal, no signature, one that is none.
    let (code, text) = jitune(path, &["inspect", "m.jitune", "--public-key", OTHER]);
    assert!(code == 4 && text.contains("the signature is not good"), "{text}");
    let sound = std::fs::read(path.join("m.jitune")).unwrap();
    let mut bytes = sound.clone();
    let at = sound.windows(12).position(|w| w == b"samples_us\":").unwrap() + 13;
    bytes[at] ^= 2;
    let seal = bytes.len() - 32;
    let hash = blake3::hash(&bytes[..seal]);
    bytes[seal..].copy_from_slice(hash.as_bytes());
    std::fs::write(path.join("m.jitune"), &bytes).unwrap();
    assert_eq!(jitune(path, &["inspect", "m.jitune"]).0, 0, "its seal is right");
    for command in [&["inspect"][..], &["verify", "--target", "cpu"]] {
        let (code, text) = jitune(path, &[command, &["m.jitune", "--public-key", "p.pub"]].concat());
        assert!(code == 4 && text.contains("the signature is not good"), "{text}");
    }
    std::fs::write(path.join("m.jitune"), &sound).unwrap();
    let signature = std::fs::read_to_string(path.join("m.jitune.minisig")).unwrap();
    std::fs::write(path.join("m.jitune.minisig"), "no signature").unwrap();
    let (code, text) = jitune(path, &["inspect", "m.jitune", "--public-key", "p.pub"]);
    assert!(code == 4 && text.contains("the signature is not good"), "{text}");
    std::fs::remove_file(path.join("m.jitune.minisig")).unwrap();
    let (code, text) = jitune(path, &["inspect", "m.jitune", "--public-key", "p.pub"]);
    assert!(code == 4 && text.contains("the bundle is not signed: there is no m.jitune.minisig"), "{text}");
    for (key, code, said) in
        [("s.key", 2, "--public-key"), ("absent.pub", 4, "absent.pub"), ("RWQAAAA", 2, "--public-key RWQAAAA: ")]
    {
        let (found, text) = jitune(path, &["inspect", "m.jitune", "--public-key", key]);
        assert!(found == code && text.contains(said), "{text}");
    }

    // The same from the library.
    let key = PublicKey::read(PUBLIC).unwrap();
    let parse = |bytes: &[u8], signature: &str, key: &PublicKey| Bundle::parse_signed(bytes.to_vec(), signature, key);
    assert_eq!(parse(&sound, &signature, &key).unwrap().len(), 1);
    for at in (0..sound.len()).step_by(sound.len() / 300) {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x10;
        assert!(matches!(parse(&bytes, &signature, &key), Err(BundleError::Signature { .. })), "byte {at}");
    }
    for at in 0..signature.len() {
        let mut bad = signature.clone().into_bytes();
        bad[at] ^= 1;
        let bad = String::from_utf8_lossy(&bad).into_owned();
        // The first comment is not signed, and says nothing.
        let comment = at < signature.find('\n').unwrap();
        assert!(parse(&sound, &bad, &key).is_err() || comment, "byte {at} of the signature");
        let whole = at >= signature.trim_end().len();
        assert!(parse(&sound, &signature[..at], &key).is_err() || whole, "the first {at} bytes of the signature");
    }
    assert!(matches!(parse(&sound, &signature, &PublicKey::read(OTHER).unwrap()), Err(BundleError::Signature { .. })));
    assert!(matches!(Bundle::open_signed(path.join("m.jitune"), &key), Err(BundleError::Unsigned { .. })));
    for text in ["", "RWQ", "untrusted comment: x\n", "x\ny\nz", &PUBLIC[..PUBLIC.len() - 9]] {
        assert!(matches!(PublicKey::read(text), Err(BundleError::Key { .. })), "{text}");
    }
}

#[test]
fn a_key_that_cannot_sign_is_said_before_anything_is_written() {
    let folder = folder();
    let path = folder.path();
    let encrypted = minisign::KeyPair::generate_encrypted_keypair(Some("password".into())).unwrap();
    let encrypted = encrypted.sk.to_box(None).unwrap().into_string();
    for (name, text, said) in [
        ("encrypted.key", encrypted.as_str(), "minisign -G -W"),
        ("public.key", PUBLIC, "public.key"),
        ("empty.key", "", "empty.key"),
        ("cut.key", &SECRET[..SECRET.len() - 40], "cut.key"),
    ] {
        std::fs::write(path.join(name), text).unwrap();
        let (code, text) = jitune(path, &[&EXPORT[..], &["--sign", name]].concat());
        assert!(code == 4 && text.contains(said), "{name}: {text}");
    }
    assert_eq!(jitune(path, &[&EXPORT[..], &["--sign", "absent.key"]].concat()).0, 4);
    assert!(!path.join("m.jitune").exists());
    // One digit of the public half that a secret key holds.
    let damaged = SECRET.replace("yHLJt", "yHLJu");
    assert_ne!(damaged, SECRET);
    std::fs::write(path.join("damaged.key"), damaged).unwrap();
    let (code, text) = jitune(path, &[&EXPORT[..], &["--sign", "damaged.key"]].concat());
    assert!(code == 4 && text.contains("the secret key is damaged"), "{text}");
    assert!(!path.join("m.jitune.minisig").exists());
}

/// The program, which has to end by itself soon.
fn soon(folder: &Path, args: &[&str]) -> (i32, String) {
    let mut command = Command::new("timeout");
    command.arg("20").arg(env!("CARGO_BIN_EXE_jitune")).current_dir(folder).args(args);
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    println!("jitune {}\n{text}", args.join(" "));
    (out.status.code().unwrap(), text)
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn is_fifo(path: &Path) -> bool {
    std::os::unix::fs::FileTypeExt::is_fifo(&std::fs::symlink_metadata(path).unwrap().file_type())
}

/// A bundle is written where a link leads to, and over nothing that is no file; with a signature it is there with that or not
/// at all.
#[test]
fn an_export_writes_over_files_alone() {
    let folder = folder();
    let path = folder.path();
    let at = |name: &str| path.join(name);
    let export = |output: &str, more: &[&str]| {
        let args = ["export", "--target", "cpu", "--db", "db", "-o", output];
        soon(path, &[&args[..], more].concat())
    };
    fifo(&at("f.jitune"));
    std::fs::create_dir(at("folder")).unwrap();
    for output in ["f.jitune", "folder"] {
        for more in [&[][..], &["--sign", "s.key"]] {
            let (code, text) = export(output, more);
            assert!(code == 4 && text.contains("no regular file"), "{output}: {text}");
        }
    }
    assert!(is_fifo(&at("f.jitune")) && !at("f.jitune.minisig").exists());
    std::fs::write(at("old.jitune"), "old").unwrap();
    std::os::unix::fs::symlink("old.jitune", at("link.jitune")).unwrap();
    assert_eq!(export("link.jitune", &[]).0, 0);
    assert!(std::fs::symlink_metadata(at("link.jitune")).unwrap().is_symlink());
    assert_eq!(jitune(path, &["inspect", "old.jitune"]).0, 0);
    // A signature that cannot be written.
    std::fs::create_dir(at("m.jitune.minisig")).unwrap();
    let (code, text) = export("m.jitune", &["--sign", "s.key"]);
    assert!(code == 4 && text.contains("m.jitune.minisig") && !at("m.jitune").exists(), "{text}");
    std::fs::write(at("m.jitune"), "the one before").unwrap();
    assert_eq!(export("m.jitune", &["--sign", "s.key"]).0, 4);
    assert_eq!(std::fs::read_to_string(at("m.jitune")).unwrap(), "the one before");
    std::fs::remove_dir(at("m.jitune.minisig")).unwrap();
    assert_eq!(export("m.jitune", &["--sign", "s.key"]).0, 0);
    assert_eq!(jitune(path, &["inspect", "m.jitune", "--public-key", "p.pub"]).0, 0);
    // The same bytes keep their signature; of others it would not be.
    assert_eq!(export("m.jitune", &[]).0, 0);
    assert_eq!(jitune(path, &["inspect", "m.jitune", "--public-key", "p.pub"]).0, 0);
    std::fs::write(at("m.jitune"), "another").unwrap();
    let (code, text) = export("m.jitune", &[]);
    assert!(code == 0 && text.contains("m.jitune.minisig was of the file that was there before"), "{text}");
    assert!(!at("m.jitune.minisig").exists());
    let left = std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.ends_with(".tmp")).count(), 0);
}

/// What nobody writes to, or what has no end, is refused and not waited for.
#[test]
fn pipes_and_endless_files_hold_nothing_up() {
    let folder = folder();
    let path = folder.path();
    let at = |name: &str| path.join(name);
    assert_eq!(jitune(path, &EXPORT).0, 0);
    fifo(&at("m.jitune.minisig"));
    fifo(&at("fifo"));
    for inside in ["templates/a.toml", "model/config.json"] {
        std::fs::create_dir_all(at(inside).parent().unwrap()).unwrap();
        fifo(&at(inside));
    }
    let model = at("model").display().to_string();
    for (args, said) in [
        (&["inspect", "m.jitune", "--public-key", "p.pub"][..], "no regular file"),
        (&["inspect", "fifo"], "no regular file"),
        (&["verify", "fifo", "--target", "cpu"], "no regular file"),
        (&["export", "--target", "cpu", "--db", "db", "-o", "x", "--templates", "templates"], "no regular file"),
        (&["model", &model, "--target", "cpu"], "no regular file"),
        (&["inspect", "m.jitune", "--public-key", "/dev/zero"], "no end in sight"),
        (&["export", "--target", "cpu", "--db", "db", "-o", "x", "--sign", "/dev/zero"], "no end in sight"),
    ] {
        let (code, text) = soon(path, args);
        assert!((1..=4).contains(&code) && text.contains(said), "{args:?}: {code} {text}");
    }
}

/// The stock tool takes what is made here, and makes what is taken here.
#[test]
fn minisign_agrees() {
    if Command::new("minisign").arg("-v").output().is_err() {
        println!("SKIPPED: no minisign here (apt-get install -y minisign)");
        return;
    }
    let folder = folder();
    let path = folder.path();
    let minisign = |args: &[&str]| {
        let out = Command::new("minisign").args(args).current_dir(path).output().unwrap();
        assert!(out.status.success(), "minisign {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    assert_eq!(jitune(path, &[&EXPORT[..], &["--sign", "s.key"]].concat()).0, 0);
    minisign(&["-V", "-p", "p.pub", "-m", "m.jitune"]);
    std::fs::remove_file(signature_path(&path.join("m.jitune"))).unwrap();
    minisign(&["-G", "-W", "-p", "new.pub", "-s", "new.key"]);
    minisign(&["-S", "-s", "new.key", "-m", "m.jitune"]);
    let (code, text) = jitune(path, &["inspect", "m.jitune", "--public-key", "new.pub"]);
    assert!(code == 0 && text.contains("signed by the given key"), "{text}");
    assert_eq!(jitune(path, &["inspect", "m.jitune", "--public-key", "p.pub"]).0, 4);
}
