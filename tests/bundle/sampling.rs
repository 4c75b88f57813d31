//! Tokens that the processor draws are the reference's, also of logits and settings that random inputs hardly have.

use crate::make::{self, LIBRARY, problem};
use jitune::backend::cpu::cc;
use jitune::bundle::Bundle;
use jitune::device::Target;
use jitune::problem::{Inputs, Problem, Role, expected, hash_uniform};
use jitune::recipe::Config;
use jitune::runtime::{Queue, Runtime};

const SETTINGS: usize = 6;

/// One of a list, by chance.
fn one<T: Copy>(list: &[T], seed: u64, i: u64) -> T {
    let unit = hash_uniform(seed, i) / 2.0 + 0.5;
    list[((unit * list.len() as f32) as usize).min(list.len() - 1)]
}

/// Logits with many equals, in narrow and wide ranges, with NaN and infinities, and nothing else; and settings at their ends.
fn hostile(p: &Problem, seed: u64) -> Inputs {
    let [rows, cols] = ["rows", "cols"].map(|name| p.dim(name) as u64);
    let mut inputs = Inputs::new(p, seed);
    let logit = |row: u64, i: u64| {
        let v = f64::from(hash_uniform(seed, i) * 8.0);
        match (row % 6, hash_uniform(seed + 1, i)) {
            (0, _) => v.floor(),
            (1, _) => v / 1000.0,
            (2, _) => v * 1e6,
            (3, chance) if chance > 0.8 => f64::NAN,
            (3, chance) if chance < -0.8 => f64::NEG_INFINITY,
            (3, chance) if row % 4 == 3 && chance.abs() < 1e-3 => f64::INFINITY,
            (4, chance) if !row.is_multiple_of(4) => {
                if chance > 0.0 {
                    f64::NEG_INFINITY
                } else {
                    f64::NAN
                }
            }
            (5, _) => 0.0,
            _ => v,
        }
    };
    let x: Vec<f64> = (0..rows * cols).map(|i| logit(i / cols, i)).collect();
    let set = |row: u64| -> [f64; SETTINGS] {
        let temperature = one(&[0.0, 1.0, 0.7, 1e-6, 1e6, 1e-40, f64::NAN, f64::INFINITY, -1.0], seed, 10 * row);
        let top_p = one(&[1.0, 1.0, 0.9, 0.5, 0.0, 1e-6, 0.999_999, f64::NAN, 2.0, -1.0], seed, 10 * row + 1);
        let min_p = one(&[0.0, 0.0, 0.05, 1.0, 1e-9, 2.0, f64::NAN], seed, 10 * row + 2);
        let penalty =
            one(&[1.0, 1.3, 0.8, 2.0, -0.5, 0.0, f64::NEG_INFINITY, f64::INFINITY, f64::NAN], seed, 10 * row + 3);
        let u = one(&[0.0, 0.3, 0.7, f64::from(1f32.next_down()), f64::NAN, 1.0], seed, 10 * row + 4);
        [temperature, top_p, min_p, penalty, u, 0.0]
    };
    let settings: Vec<f64> = (0..rows).flat_map(set).collect();
    let top_k = |row| one(&[0.0, -1.0, 1.0, 2.0, 50.0, 1000.0, cols as f64 - 1.0, 1e9], seed, 10 * row + 5);
    let top_k: Vec<f64> = (0..rows).map(top_k).collect();
    assert!(inputs.replace("x", &x) && inputs.replace("settings", &settings) && inputs.replace("top_k", &top_k));
    assert!(!inputs.replace("x", &x[1..]) && !inputs.replace("y", &x));
    inputs
}

/// What a template's code for the first of some problems makes of inputs of all that is not what the reference has.
fn differences(template: &str, config: Config, problems: &[&str], seeds: std::ops::Range<u64>) -> Vec<String> {
    let (device, t) = (make::device(), LIBRARY.get(Target::Cpu, template).unwrap());
    let first = problem(problems[0]);
    let source = LIBRARY.render(t, &first, &device, &config).unwrap();
    let (code, _) = cc::compile(&source, tempfile::tempdir().unwrap().path()).unwrap();
    let winner = make::winner(template, &first, &device, config, &code);
    let runtime = Runtime::cpu(&Bundle::seal([(winner, code)]).unwrap(), Some(make::THREADS)).unwrap();
    let mut bad = Vec::new();
    for p in problems.iter().map(|text| problem(text)) {
        let (memory, kernel) = (runtime.allocate_all(&p).unwrap(), runtime.lookup(&p).unwrap());
        // No promise of ranges: any bits are good in `seen`, and any number in `top_k`.
        let bound = kernel.bind(memory.iter().map(|m| m.view()), runtime.workspace(&kernel).unwrap()).unwrap();
        for seed in seeds.clone() {
            let inputs = hostile(&p, seed);
            make::fill(&p, &inputs, &memory);
            bound.launch(Queue::Host).unwrap();
            let expected = expected(&p, &inputs, seed, u64::MAX / 2);
            for (t, m) in p.tensors().iter().zip(&memory).filter(|(t, _)| t.role == Role::Out) {
                let mut bytes = vec![0; t.bytes() as usize];
                m.download(&mut bytes).unwrap();
                for e in expected.iter().filter(|e| e.tensor == t.name) {
                    let found = t.storage.value(&bytes, e.index);
                    let near = t.name == "logprobs" && (found - e.value).abs() <= 1e-5 * (1.0 + e.value.abs());
                    if !(found == e.value || near) {
                        bad.push(format!("{p} seed {seed}: {}[{}] is {found}, not {}", t.name, e.index, e.value));
                    }
                }
            }
        }
    }
    bad
}

#[test]
fn tokens_of_hostile_rows_are_the_references() {
    let parts = |n: i64| Config([("parts".to_string(), n)].into_iter().collect());
    const ANY: [&str; 3] = ["rows=1 cols=9001 top=20", "rows=72 cols=37 top=3", "rows=72 cols=1 top=1"];
    let any = ANY.map(|shape| format!("sample {shape} dtype=f32"));
    for (template, config, problems, seeds) in [
        ("cpu_sample", parts(1), vec!["sample rows=36 cols=9001 top=5 dtype=f32"], 0..2),
        ("cpu_sample", parts(2), vec!["sample rows=36 cols=9001 dtype=f32"], 2..4),
        ("cpu_sample_portable", Config::default(), any.iter().map(String::as_str).collect(), 4..12),
    ] {
        let bad = differences(template, config, &problems, seeds);
        assert!(bad.is_empty(), "{template}: {} differ: {:#?}", bad.len(), &bad[..bad.len().min(8)]);
    }
}
