//! A program that tunes with the library alone, as `examples/tune_as_library.rs` does. This one is its own worker, so it
//! has no harness of Rust's tests, whose `main` is not ours.

#[path = "../examples/tune_as_library.rs"]
#[allow(dead_code)]
mod example;

fn main() {
    jitune::worker_main();
    let folder = tempfile::tempdir().unwrap();
    let (report, found) = example::tune(folder.path()).unwrap();
    assert!(report.failed.is_empty() && report.stored == 0, "{report:?}");
    assert!(report.winners.iter().flatten().all(|w| w.evidence.trials > 0 && w.evidence.compared > 0));
    assert!(found.iter().any(|line| line.starts_with("matmul m=1 n=256 k=256")), "{found:?}");
    // Again, they are stored.
    let (again, found_again) = example::tune(folder.path()).unwrap();
    assert_eq!((again.stored, found_again), (2, found));
    println!("test a_program_tunes_with_the_library_alone ... ok");
}
