//! A template's description: evaluated for problems and devices of both kinds.
#![no_main]

use jitune::backend::cpu;
use jitune::device::Device;
use jitune::problem::Problem;
use jitune::recipe::{Config, Description, Recipe};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static DEVICES: LazyLock<Vec<Device>> = LazyLock::new(|| {
    vec![Device::ahead_of_time("sm_90a").unwrap(), Device::ahead_of_time("sm_80").unwrap(), cpu::describe(Some(2))]
});
static PROBLEMS: LazyLock<Vec<Problem>> = LazyLock::new(|| {
    ["rmsnorm rows=4 cols=96 dtype=f32", "matmul m=7 n=48 k=64 dtype=bf16", "gelu rows=3 cols=8 dtype=f32"]
        .map(|text| text.parse().unwrap())
        .to_vec()
});

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(description) = toml::from_str::<Description>(text) else { return };
    let Ok(recipe) = Recipe::new(description) else { return };
    let first = |(name, values): (&String, &Vec<i64>)| (name.clone(), values[0]);
    let config = Config(recipe.description.tunables.iter().map(first).collect());
    for (problem, device) in PROBLEMS.iter().flat_map(|p| DEVICES.iter().map(move |d| (p, d))) {
        let _ = recipe.takes(problem, device);
        let Ok(instance) = recipe.instance(problem, device, &config) else { continue };
        let _ = (instance.legal(), instance.cost_us(), instance.launch());
        let Ok(constants) = instance.constants() else { continue };
        let _ = recipe.answer(problem, &constants, problem, device, &config);
        let _ = jitune::space::enumerate(&recipe, problem, device);
    }
});
