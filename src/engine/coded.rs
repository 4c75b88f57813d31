//! A model whose cache is codes, or its tokens, on the CPU: its answers beside those of the passes' own references, which round as kernels
//! must, and beside those of the model in plain types.

use super::{Engine, Event, Options, Request};
use crate::backend::cpu;
use crate::bundle::Bundle;
use crate::device::Target;
use crate::model::{Buckets, Cache, Model, Pass, Plan, Precision, Shape, WeightFormat};
use crate::problem::{Dtype, Inputs, Problem, Role, ScaledFormat, Storage, XFormat, expected};
use crate::program::Life;
use crate::recipe::Config;
use crate::runtime::Runtime;
use crate::template::Library;
use crate::weights::{self, Weights};
use crate::winner::{Evidence, Winner};

const CACHE: Cache = Cache { page: 8, pages: 8, max_pages: 8, max_pos: 64 };

/// A model with every step that such a cache changes, with weights, and scales of the cache in its checkpoint.
struct Given {
    folder: tempfile::TempDir,
    model: Model,
    weights: Weights,
}

impl Given {
    fn new(qk_norm: bool) -> Given {
        let sizes =
            Model { hidden: 32, intermediate: 48, layers: 2, heads: 4, kv_heads: 2, head_dim: 16, vocab: 60, ..base() };
        let model = Model { max_position_embeddings: 64, qk_norm, qkv_bias: !qk_norm, ..sizes };
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("m");
        weights::write(&model, 7, Dtype::F32, &place, |_, _| ()).unwrap();
        let scales = [("layers.0.self_attn.k_scale", &[0.02][..]), ("layers.1.self_attn.v_scale", &[0.01, 0.03])];
        weights::add_scales(&place, &scales);
        let (weights, notes) = Weights::open(&place, &model).unwrap();
        assert!(notes.len() == 1 && notes[0].contains("--kv-dtype e4m3"), "{notes:?}");
        Given { folder, model, weights }
    }

    /// Portable kernels for the model in these precisions.
    fn bundle(&self, precisions: &[&Precision]) -> Bundle<'static> {
        let (library, device) = (Library::built_in().unwrap(), cpu::describe(Some(1)));
        let buckets = Buckets { batch: vec![1], prefill: vec![64], chunk: vec![], context: 64, page: CACHE.page };
        let of = |precision: &&Precision| Plan::new(&self.model, &buckets, *precision).unwrap().portable();
        let mut problems: Vec<Problem> = precisions.iter().flat_map(of).collect();
        problems.sort();
        problems.dedup();
        let one = |problem: Problem| {
            let taking = library.taking(&problem, &device).unwrap();
            let template = taking.iter().find(|t| t.recipe.description.portable).unwrap();
            let config = Config::default();
            let source = library.render(template, &problem, &device, &config).unwrap();
            let (code, _) = cpu::cc::compile(&source, self.folder.path()).unwrap();
            let evidence = Evidence { samples_us: vec![1.0; 3], median_us: 1.0, ..Evidence::default() };
            let artifact = blake3::hash(&code).to_hex().to_string();
            let description = template.recipe.description.clone();
            (Winner { problem, config, artifact, description, device: device.clone(), evidence }, code)
        };
        Bundle::seal(problems.into_iter().map(one)).unwrap()
    }

    fn engine(&self, bundle: &Bundle<'_>, precision: &Precision, change: impl Fn(&mut Options)) -> Engine {
        let mut options = Options { page: CACHE.page, sequences: 3, ..Options::new(precision, 64) };
        change(&mut options);
        let runtime = Runtime::cpu(bundle, Some(1)).unwrap();
        Engine::open(runtime, &self.model, &self.weights, options, |_, _| ()).unwrap()
    }

    /// The logits of the last of these tokens: the references of a prompt's steps one after the other, what each writes rounded to its type.
    fn reference(&self, precision: &Precision, tokens: &[i32]) -> Vec<f64> {
        let count = tokens.len() as i64;
        let Pass { program, .. } = Pass::of(&self.model, Shape::prompt(count), CACHE, precision).unwrap();
        let mut filler = self.weights.filler(precision);
        let mut held: Vec<Vec<f64>> = Vec::new();
        for t in &program.tensors {
            let len = t.shape.iter().product::<u64>();
            held.push(match (t.life, &t.name[..]) {
                (Life::Weight, _) => {
                    let mut bytes = vec![0; t.bytes() as usize];
                    filler.fill(t, &mut bytes).unwrap();
                    (0..len).map(|i| t.storage.value(&bytes, i)).collect()
                }
                (Life::Metadata, "ids") => tokens.iter().map(|id| f64::from(*id)).collect(),
                (Life::Metadata, "q_starts") => vec![0.0, count as f64],
                (Life::Metadata, "kv_lens") => vec![count as f64],
                (Life::Metadata, "last_rows") => vec![count as f64 - 1.0],
                // Positions, slots, and the block table.
                (Life::Metadata, _) => (0..len).map(|i| i as f64).collect(),
                (Life::State | Life::Activation, _) => vec![0.0; len as usize],
            });
        }
        for step in &program.steps {
            let (problem, tensors) = (&step.problem, step.problem.tensors());
            let mut inputs = Inputs::new(problem, 1);
            let places = || tensors.iter().zip(&step.tensors);
            for (t, at) in places().filter(|(t, _)| t.role == Role::In) {
                inputs.set(t.name, held[*at].clone());
            }
            for e in expected(problem, &inputs, 1, u64::MAX / 2) {
                let (t, at) = places().find(|(t, _)| t.name == e.tensor).unwrap();
                held[*at][e.index as usize] = f64::from(t.storage.round(e.value as f32));
            }
        }
        held.swap_remove(program.tensor("logits").unwrap())
    }
}

fn base() -> Model {
    Model::preset("qwen3-0.6b").unwrap()
}

fn coded() -> Precision {
    Precision::from(Dtype::F32).with_cache(Some(Storage::E4m3))
}

/// A cache of half of f32's bits.
fn halved() -> Precision {
    Precision::from(Dtype::F32).with_cache(Some(Storage::F16))
}

/// Linear layers and their tokens in codes.
fn both(weights: &str, tokens: &str) -> Precision {
    let format = WeightFormat { format: ScaledFormat::parse(weights).unwrap(), scale: Storage::F32 };
    Precision::linear(Dtype::F32, format, Target::Cpu).with_tokens(XFormat::parse(tokens))
}

/// Each way in which a step rounds what it makes.
fn all_kinds() -> Vec<Precision> {
    let of = [("int8-row", "int8-row"), ("e4m3-row", "e4m3-row"), ("e4m3-b128", "e4m3-g128")].map(|(w, x)| both(w, x));
    [vec![coded(), halved(), both("int8-row", "int8-row").with_cache(Some(Storage::E4m3))], of.to_vec()].concat()
}

fn prompt(seed: i32) -> Vec<i32> {
    (0..20 + seed).map(|i| (i * (11 + seed) + seed) % 60).collect()
}

/// The tokens of an answer, and the logits of its prompt where they are asked for.
fn answer(engine: &Engine, prompt: Vec<i32>, most: usize, logits: bool) -> (Vec<i32>, Vec<f32>) {
    let (mut tokens, mut all) = (Vec::new(), Vec::new());
    for event in engine.submit(Request { prompt, most, logits, ..Request::default() }).unwrap() {
        match event {
            Event::Token(token) => tokens.push(token.id),
            Event::Logits(rows) => all.extend(rows),
            Event::End(_) => {}
        }
    }
    (tokens, all)
}

/// Whoever forgets a scale, takes another head's, or rounds otherwise has other tokens before long, and other logits at once.
#[test]
fn answers_are_those_of_a_reference_that_rounds() {
    for (qk_norm, precision) in all_kinds().into_iter().flat_map(|p| [(true, p.clone()), (false, p)]) {
        let given = Given::new(qk_norm);
        let bundle = given.bundle(&[&precision]);
        let engine = given.engine(&bundle, &precision, |_| ());
        let (tokens, _) = answer(&engine, prompt(0), 12, false);
        let mut all = prompt(0);
        for token in tokens {
            let wanted = given.reference(&precision, &all);
            let best = (0..wanted.len()).max_by(|a, b| wanted[*a].total_cmp(&wanted[*b])).unwrap();
            assert_eq!(token, best as i32, "{precision}: after {} tokens", all.len());
            all.push(token);
        }
        let engine = given.engine(&bundle, &precision, |o| (o.logits, o.sequences) = (true, 1));
        let (_, logits) = answer(&engine, prompt(1), 1, true);
        let (last, wanted) = (&logits[logits.len() - 60..], given.reference(&precision, &prompt(1)));
        let error = last.iter().zip(&wanted).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        // A code that is rounded to its other neighbour moves a logit by more than f32 does: by a sixteenth of a value of E4M3.
        assert!(error < 0.25, "{precision}: {error}");
        let unrounded = precision.clone().with_tokens(None).with_cache(None);
        let plain = given.reference(&unrounded, &prompt(1));
        let apart = last.iter().zip(&plain).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
        assert!(apart > 1.5 * error, "{precision}: {apart} {error}");
    }
}

#[test]
fn a_cache_of_codes_is_a_quarter_of_f32_one_of_halves_half_and_answers_are_near() {
    let given = Given::new(true);
    let kinds = [Dtype::F32.into(), coded(), halved()];
    let bundle = given.bundle(&kinds.each_ref());
    let engines = kinds.each_ref().map(|p| given.engine(&bundle, p, |o| (o.logits, o.sequences) = (true, 1)));
    let bytes = engines.each_ref().map(|e| e.plan().cache);
    assert_eq!([bytes[0], bytes[0]], [4 * bytes[1], 2 * bytes[2]]);
    let [one, two, three] = engines.each_ref().map(|e| answer(e, prompt(3), 1, true).1);
    let log_p = |row: &[f32]| {
        let sum = row.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
        row.iter().map(|v| f64::from(*v) - sum).collect::<Vec<f64>>()
    };
    let kl = |other: &[f32]| {
        let rows = one.chunks(60).zip(other.chunks(60)).map(|(a, b)| {
            let (a, b) = (log_p(a), log_p(b));
            a.iter().zip(&b).map(|(a, b)| a.exp() * (a - b)).sum::<f64>()
        });
        rows.sum::<f64>() / (one.len() / 60) as f64
    };
    let (codes, halves) = (kl(&two), kl(&three));
    assert!((1e-7..0.05).contains(&codes), "{codes}");
    // Ten bits of mantissa where codes have three: the square of that less.
    assert!((1e-12..codes / 1000.0).contains(&halves), "{halves} {codes}");
}

/// Alone or beside others, whole or in parts, found in the cache or computed.
#[test]
fn no_answer_from_codes_depends_on_its_company() {
    let given = Given::new(false);
    let kinds = [coded(), halved(), both("int8-row", "int8-row")];
    let bundle = given.bundle(&kinds.each_ref());
    for (kind, tokens) in kinds.iter().flat_map(|kind| [(kind, 512), (kind, 7)]) {
        let alone: Vec<Vec<i32>> = (0..4)
            .map(|seed| answer(&given.engine(&bundle, kind, |o| o.sequences = 1), prompt(seed), 10, false).0)
            .collect();
        let engine = given.engine(&bundle, kind, |o| o.tokens = tokens);
        for _ in 0..2 {
            let asked: Vec<_> = (0..4)
                .map(|seed| engine.submit(Request { prompt: prompt(seed), most: 10, ..Request::default() }).unwrap())
                .collect();
            for (events, alone) in asked.into_iter().zip(&alone) {
                let said = events.filter_map(|e| if let Event::Token(t) = e { Some(t.id) } else { None });
                assert_eq!(&said.collect::<Vec<i32>>(), alone, "{tokens} tokens a step");
            }
        }
    }
}
