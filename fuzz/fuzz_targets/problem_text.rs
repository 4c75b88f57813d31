//! The text of a problem: what is read is written so that it reads the same.
#![no_main]

use jitune::problem::Problem;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(problem) = text.parse::<Problem>() else { return };
    for written in [problem.to_string(), problem.full_text()] {
        assert_eq!(written.parse::<Problem>().as_ref(), Ok(&problem), "{written}");
    }
    let tensors = problem.tensors();
    drop((tensors.iter().map(|t| t.bytes()).max(), problem.flops(), problem.bytes(), problem.bucket_text()));
    drop((problem.is_probe(), problem.variables(), problem.at_default_capacity()));
});
