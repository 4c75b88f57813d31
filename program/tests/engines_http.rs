//! `jitune serve` behind the engines' HTTP adapter: what it answers there is what the engine answers directly.
#![cfg(target_os = "linux")]

#[path = "serve/client.rs"]
#[allow(dead_code)]
mod client;
mod common;

use jitune::bundle::Bundle;
use jitune::engine::{Engine, Event, Options, Request};
use jitune::engines::http::{self, Dialect, Server};
use jitune::engines::service::{Service, What};
use jitune::model::Model;
use jitune::problem::Dtype;
use jitune::runtime::Runtime;
use jitune::weights::Weights;
use jitune_peer::engine::{Finish, Submit};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(120);

/// The folder of the random model `m` and of its bundle.
fn made() -> PathBuf {
    Path::new(&client::database()).parent().unwrap().into()
}

fn prompt(seed: u32) -> Vec<u32> {
    (0..5 + 23 * seed).map(|i| (i * (31 + seed) + seed * 17) % 97).collect()
}

/// What the engine answers when it is asked one by one, in this process.
fn direct(prompts: &[Vec<u32>], most: usize) -> Vec<Vec<u32>> {
    let folder = made();
    let (model, _) = Model::load(folder.join("m").to_str().unwrap()).unwrap();
    let (weights, _) = Weights::open(&folder.join("m"), &model).unwrap();
    let bundle = Bundle::open(folder.join("m.jitune")).unwrap();
    let mut options = Options::new(Dtype::F32, 256);
    options.page = 16;
    let engine = Engine::open(Runtime::cpu(&bundle, Some(1)).unwrap(), &model, &weights, options, |_, _| ()).unwrap();
    let one = |prompt: &Vec<u32>| {
        let prompt = prompt.iter().map(|id| *id as i32).collect();
        let answer = engine.submit(Request { prompt, most, ..Request::default() }).unwrap();
        let ids = answer.filter_map(|event| match event {
            Event::Token(token) => Some(token.id as u32),
            _ => None,
        });
        ids.collect()
    };
    prompts.iter().map(one).collect()
}

#[test]
fn a_server_answers_over_http_what_the_engine_answers() {
    let (folder, place) = (made(), common::Place::new());
    let (model, bundle) = (folder.join("m"), folder.join("m.jitune"));
    let command = format!(
        "{} serve --target cpu --memory 1G --port {{port}} --model {} --bundle {}",
        env!("CARGO_BIN_EXE_jitune"),
        model.display(),
        bundle.display()
    );
    let options = http::Options {
        url: "http://127.0.0.1:{port}".into(),
        command: Some(command),
        log: place.path().join("log"),
        start: LONG,
        ..http::Options::default()
    };
    let mut server = Server::start(options, &Arc::new(AtomicBool::new(false))).unwrap();
    assert_eq!((&server.model[..], server.context, server.dialect), ("m", Some(512), Dialect::Jitune));
    assert_eq!(server.about.engine, "jitune");

    let most = 24;
    let prompts: Vec<Vec<u32>> = (0..8).map(prompt).collect();
    for (id, prompt) in (0..).zip(&prompts) {
        server.submit(id, Submit { prompt: prompt.clone(), most, ignore_eos: true, ..Submit::default() }).unwrap();
    }
    let mut answers: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    let (mut ended, mut last) = (0, Duration::ZERO);
    let until = server.now() + LONG;
    while ended < prompts.len() {
        let heard = server.next(until).unwrap().expect("something is heard");
        assert!(heard.at >= last || last - heard.at < Duration::from_secs(1));
        last = heard.at;
        match heard.what {
            What::Tokens { ids, known } => {
                assert!(known && ids.len() == 1, "one token a piece: {ids:?}");
                answers.entry(heard.id).or_default().extend(ids);
            }
            What::End(end) => {
                assert_eq!((end.why, end.error, end.cached), (Finish::Length, None, Some(0)), "{}", heard.id);
                ended += 1;
            }
        }
    }
    let answers: Vec<Vec<u32>> = answers.into_values().collect();
    assert_eq!(answers, direct(&prompts, most));

    let stats = server.stats().unwrap();
    let prompted: usize = prompts.iter().map(Vec::len).sum();
    assert_eq!((stats.prompt_tokens, stats.cached_tokens), (Some(prompted as u64), Some(0)));
    assert_eq!((stats.answer_tokens, stats.preempted), (Some((8 * most) as u64), Some(0)));
    assert!(stats.pages > Some(0) && stats.steps >= Some(most as u64), "{stats:?}");

    // Of the last position it says the most likely tokens; the first of them is the one that it takes.
    let told = server.logprobs(&prompts[3], 5).unwrap();
    let [position] = &told[..] else { panic!("{told:?}") };
    assert_eq!((position.at, position.top[0].id), (prompts[3].len() - 1, Some(answers[3][0])));
    assert!(position.top.len() == 5 && position.top.is_sorted_by(|a, b| a.logprob >= b.logprob), "{told:?}");
    let shares: f64 = position.top.iter().map(|t| f64::from(t.logprob).exp()).sum();
    assert!(shares > 0.0 && shares <= 1.0 + 1e-6, "{told:?}");

    // What it refuses, it refuses alone; what is cancelled ends there too.
    server.submit(50, Submit { prompt: vec![1; 600], most, ..Submit::default() }).unwrap();
    let Some(What::End(end)) = server.next(until).unwrap().map(|heard| heard.what) else { panic!("it is not refused") };
    assert!(end.why == Finish::Failed && end.error.as_ref().unwrap().starts_with("400 Bad Request: "), "{end:?}");
    server.submit(51, Submit { prompt: vec![1, 5, 7], most: 500, ignore_eos: true, ..Submit::default() }).unwrap();
    assert!(matches!(server.next(until).unwrap().unwrap().what, What::Tokens { .. }));
    server.cancel(51).unwrap();
    while let Some(heard) = server.next(until).unwrap() {
        if let What::End(end) = heard.what {
            assert_eq!(end.why, Finish::Cancelled);
            break;
        }
    }
    let begun = server.now();
    while server.stats().unwrap().running != Some(0) {
        assert!(server.now() < begun + LONG, "it goes on with what was cancelled");
        std::thread::sleep(Duration::from_millis(20));
    }

    let pid = server.process_id().unwrap();
    drop(server);
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "the server still runs");
    let log = std::fs::read_to_string(place.path().join("log")).unwrap();
    assert!(log.contains("listening on http://") && !log.contains("panicked"), "{log}");
}
