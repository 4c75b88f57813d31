//! What goes into a bundle comes out again, and what cannot be launched is not sealed.

use crate::make::{self, fake, problem};
use jitune::bundle::{ArtifactRole, Bundle, BundleError, Extras, Part};
use jitune::device::{Device, Target};
use jitune::winner::Winner;

fn devices() -> (Device, Device) {
    (make::device(), Device::ahead_of_time("sm_90a").unwrap())
}

/// Winners of two architectures; two of them share their code.
fn mixed() -> Vec<(Winner, Vec<u8>)> {
    let (cpu, gpu) = devices();
    vec![
        fake("cpu_rmsnorm", "rmsnorm rows=4 cols=64 dtype=f32", &cpu, b"one"),
        fake("cpu_rmsnorm", "rmsnorm rows=64 cols=64 dtype=f32", &cpu, b"one"),
        fake("rmsnorm", "rmsnorm rows=4 cols=2048 dtype=bf16", &gpu, b"a cubin"),
        fake("cpu_gemv", "matmul m=1 n=64 k=64 dtype=f32", &cpu, b""),
    ]
}

#[test]
fn what_is_sealed_is_read_back() {
    let parts = mixed();
    let bundle = Bundle::seal(parts.clone()).unwrap();
    assert_eq!((bundle.len(), bundle.artifacts().len(), bundle.devices().len()), (4, 3, 2));
    assert_eq!(bundle.created(), 1_790_000_000);
    assert_eq!(bundle.arches().len(), 2);
    assert!(
        bundle.artifacts().all(|a| a.role == ArtifactRole::Kernel
            && a.bytes.as_ptr().addr() % 16 == bundle.as_bytes().as_ptr().addr() % 16)
    );
    let read: Vec<(Winner, Vec<u8>)> = bundle.winners().map(|h| (h.winner(), h.artifact().bytes.to_vec())).collect();
    for part in &parts {
        assert!(read.contains(part), "{}", part.0.problem);
    }
    // The order is that of target, architecture, problem.
    let order: Vec<Target> = read.iter().map(|(w, _)| w.device.target).collect();
    assert!(order.is_sorted(), "{order:?}");
}

#[test]
fn the_bytes_depend_on_the_winners_alone() {
    let one = Bundle::seal(mixed()).unwrap();
    let mut turned = mixed();
    turned.reverse();
    let two = Bundle::seal(turned).unwrap();
    assert!(one.as_bytes() == two.as_bytes());
    let again = Bundle::parse(one.as_bytes()).unwrap();
    let resealed = Bundle::seal(again.winners().map(|h| (h.winner(), h.artifact().bytes.to_vec()))).unwrap();
    assert!(one.as_bytes() == resealed.as_bytes());
}

#[test]
fn extras_are_kept_apart_from_kernels() {
    let (_, gpu) = devices();
    let (winner, code) = fake("rmsnorm", "rmsnorm rows=4 cols=2048 dtype=bf16", &gpu, b"kernel");
    let reference = make::LIBRARY.reference(&winner.problem, &gpu).unwrap();
    // The reference happens to have the kernel's bytes: it is still another artifact.
    let reference = (b"kernel".to_vec(), reference.recipe.description.clone());
    let extras = Some(Extras { support: b"support".to_vec(), reference });
    let bundle = Bundle::seal([Part { winner, code, extras }]).unwrap();
    let held = bundle.winners().next().unwrap();
    assert_eq!(held.support().unwrap().bytes, b"support");
    assert_eq!(held.reference().unwrap().0.role, ArtifactRole::Reference);
    assert_eq!(held.artifact().role, ArtifactRole::Kernel);
    assert_eq!(bundle.artifacts().len(), 3);
}

#[test]
fn an_empty_bundle_is_a_bundle() {
    let bundle = Bundle::seal(Vec::<Part>::new()).unwrap();
    assert!(bundle.is_empty() && bundle.arches().is_empty());
}

#[test]
fn what_cannot_be_launched_is_not_sealed() {
    let (cpu, _) = devices();
    let sound = || fake("cpu_rmsnorm", "rmsnorm rows=4 cols=64 dtype=f32", &cpu, b"code");
    let case = |change: &dyn Fn(&mut Winner), part: &str| {
        let (mut winner, code) = sound();
        change(&mut winner);
        let e = Bundle::seal([(winner, code)]).unwrap_err().to_string();
        assert!(e.contains(part), "{e}");
    };
    case(&|w| w.artifact = "00".into(), "names 00");
    case(&|w| w.evidence.median_us = f64::INFINITY, "median of inf");
    case(&|w| w.config = Default::default(), "rows_each");
    case(&|w| w.description.launches.clear(), "no [[launch]]");
    case(&|w| w.problem = problem("gelu rows=4 cols=64 dtype=f32"), "cannot be sealed");
    let e = Bundle::seal([sound(), sound()]).unwrap_err();
    assert!(matches!(e, BundleError::Unfit { .. }), "{e}");
}

#[test]
fn files_appear_whole_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.jitune");
    let (small, large) = (Bundle::seal([mixed().remove(0)]).unwrap(), Bundle::seal(mixed()).unwrap());
    for bundle in [&large, &small, &large] {
        bundle.write(&path).unwrap();
        assert!(Bundle::open(&path).unwrap().as_bytes() == bundle.as_bytes());
    }
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["model.jitune"]);
    for bad in ["no/such/folder/x", "."] {
        let e = small.write(folder.path().join(bad)).unwrap_err();
        assert!(matches!(e, BundleError::Io { .. }), "{e}");
    }
    let e = Bundle::open(folder.path().join("absent")).unwrap_err();
    assert!(matches!(e, BundleError::Io { doing: "read", .. }), "{e}");
    // Not a byte is taken of a device, which may have no end.
    let e = Bundle::open("/dev/zero").unwrap_err();
    assert!(matches!(e, BundleError::Io { doing: "read", .. }) && format!("{e:?}").contains("regular"), "{e:?}");
}
