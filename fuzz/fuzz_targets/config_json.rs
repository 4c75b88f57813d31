//! A model's `config.json`, and the plan of what is read.
#![no_main]

use jitune::model::{Buckets, Model, Plan};
use jitune::problem::Dtype;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok((model, _)) = Model::fuzz_config(text) else { return };
    model.parameters();
    let buckets = Buckets { batch: vec![1], prefill: vec![128], ..Buckets::default() };
    for dtype in [Dtype::Bf16, Dtype::F32] {
        if let Ok(plan) = Plan::new(&model, &buckets, dtype) {
            for p in plan.problems() {
                drop((p.tensors().iter().map(|t| t.bytes()).max(), p.flops(), p.bytes(), p.to_string()));
            }
        }
    }
});
