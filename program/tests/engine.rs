//! What many requests at a time must not change: each answer is the one that its request gets alone, whole, from a cold cache
//! and with all pages of the world. On portable kernels, where one winner serves every size, down to the bits.
#![cfg(target_os = "linux")]

mod common;

use common::{Place, text};
use jitune::backend::cpu;
use jitune::bundle::Bundle;
use jitune::device::Target;
use jitune::engine::{
    Case, Chosen, Compared, Engine, EngineError, Event, Finish, Go, Options, Refused, Request, Sampling, StepChoice,
    Timer, Token, Watch,
};
use jitune::model::{Buckets, Model, Plan};
use jitune::problem::{Dtype, Problem};
use jitune::recipe::Config;
use jitune::runtime::Runtime;
use jitune::template::Library;
use jitune::weights::Weights;
use jitune::winner::{Evidence, Winner};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// A small random model with a bundle of portable kernels for it.
struct Given {
    place: Place,
    model: Model,
}

impl Given {
    fn new(name: &str) -> Given {
        let place = Place::new();
        place.model(name);
        let done = |args: &[&str]| {
            let out = place.jitune(args).output().unwrap();
            assert!(out.status.success(), "{}", text(&out));
        };
        done(&["run", "--target", "cpu", "--db", "db", "--model", "./m", "--ids", "1,2", "--max-tokens", "1"]);
        done(&["export", "--target", "cpu", "--db", "db", "-o", "m.jitune"]);
        let (model, _) = Model::load(place.path().join("m").to_str().unwrap()).unwrap();
        Given { place, model }
    }

    fn open(&self, change: impl Fn(&mut Options)) -> Result<Engine, EngineError> {
        self.open_with(&self.bundle(), change)
    }

    fn open_with(&self, bundle: &Bundle<'_>, change: impl Fn(&mut Options)) -> Result<Engine, EngineError> {
        let (weights, options) = self.parts(change);
        Engine::open(Runtime::cpu(bundle, Some(1)).unwrap(), &self.model, &weights, options, |_, _| ())
    }

    fn bundle(&self) -> Bundle<'static> {
        Bundle::open(self.place.path().join("m.jitune")).unwrap()
    }

    fn parts(&self, change: impl Fn(&mut Options)) -> (Weights, Options) {
        let (weights, _) = Weights::open(&self.place.path().join("m"), &self.model).unwrap();
        let mut options = Options::new(Dtype::F32, 256);
        options.page = 16;
        change(&mut options);
        (weights, options)
    }

    /// The bundle with norms in products too, by a template of a user's, as if each had taken so many microseconds.
    fn with_norms(&self, us: f64) -> Bundle<'static> {
        let buckets = Buckets { batch: vec![8], prefill: vec![64], chunk: vec![], context: 256, page: 16 };
        let fusions = Plan::new(&self.model, &buckets, Dtype::F32).unwrap().fusions();
        // The template takes as many rows as its description says.
        let rows = |p: Problem| if p.dim("m") == 1 { p } else { p.with(&[("m", 8)]).unwrap() };
        self.with("norm_product", &fusions.into_iter().map(rows).collect::<Vec<_>>(), 0, us)
    }

    /// The bundle with kernels of a template of a user's for these problems, which turn so often before they do anything, as if each had
    /// taken so many microseconds.
    fn with(&self, template: &str, problems: &[Problem], spin: i64, us: f64) -> Bundle<'static> {
        let mut library = Library::built_in().unwrap();
        library.add_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/norm_product")).unwrap();
        let template = library.get(Target::Cpu, template).unwrap();
        let bundle = self.bundle();
        let device = bundle.winners().next().unwrap().device();
        let mut parts: Vec<(Winner, Vec<u8>)> =
            bundle.winners().map(|held| (held.winner(), held.artifact().bytes.to_vec())).collect();
        for problem in problems {
            let config: Config = format!("spin={spin}").parse().unwrap();
            let source = library.render(template, problem, device, &config).unwrap();
            let (code, _) = cpu::cc::compile(&source, self.place.path()).unwrap();
            let evidence = Evidence { samples_us: vec![us; 3], median_us: us, ..Evidence::default() };
            let (artifact, mut description) =
                (blake3::hash(&code).to_hex().to_string(), template.recipe.description.clone());
            description.tunables.insert("spin".into(), vec![spin]);
            let (problem, device) = (*problem, device.clone());
            parts.push((Winner { problem, config, artifact, description, device, evidence }, code));
        }
        Bundle::seal(parts).unwrap()
    }
}

/// What came of a request.
#[derive(Debug, PartialEq)]
struct Said {
    tokens: Vec<Token>,
    cached: usize,
    why: Finish,
}

fn hear(events: impl Iterator<Item = Event>) -> Said {
    let mut said = Said { tokens: Vec::new(), cached: 0, why: Finish::Cancelled };
    for event in events {
        match event {
            Event::Logits(_) => (),
            Event::Token(token) => said.tokens.push(token),
            Event::End(end) => {
                assert_eq!(end.answer, said.tokens.len());
                (said.cached, said.why) = (end.cached, end.why);
            }
        }
    }
    said
}

/// A prompt of so many tokens; those of one seed begin alike.
fn prompt(seed: i32, count: usize) -> Vec<i32> {
    (0..count as i32).map(|i| (i * (31 + seed) + seed * 17 + i * i % 7) % 97).collect()
}

fn request(seed: i32, count: usize, most: usize) -> Request {
    Request { prompt: prompt(seed, count), most, ..Request::default() }
}

/// A request whose tokens are chosen in one of several ways.
fn sampled(seed: i32, count: usize, most: usize) -> Request {
    let sampling = match seed % 4 {
        0 => Sampling::default(),
        1 => Sampling { temperature: 1.3, seed: seed as u64, ..Sampling::default() },
        2 => Sampling { logprobs: Some(3), repetition_penalty: 1.3, ..Sampling::default() },
        _ => Sampling {
            repetition_penalty: 1.1,
            temperature: 0.9,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.01,
            seed: seed as u64,
            logprobs: Some(0),
        },
    };
    Request { sampling, ..request(seed, count, most) }
}

/// All at once; each answer in the order of the requests.
fn together(engine: &Engine, requests: &[Request]) -> Vec<Said> {
    let answers: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    answers.into_iter().map(hear).collect()
}

/// What each request is answered alone, by an engine of its own that reads prompts whole.
fn alone(given: &Given, requests: &[Request]) -> Vec<Vec<Token>> {
    let engine = given.open(|o| o.prefix = false).unwrap();
    requests.iter().map(|r| hear(engine.submit(r.clone()).unwrap()).tokens).collect()
}

fn tokens(said: &[Said]) -> Vec<Vec<Token>> {
    said.iter().map(|s| s.tokens.clone()).collect()
}

fn every_model(check: impl Fn(&Given)) {
    ["llama-tied-llama3", "qwen3"].iter().for_each(|name| check(&Given::new(name)));
}

#[test]
fn neighbours_chunks_padding_and_prefixes_change_nothing() {
    every_model(|given| {
        let requests: Vec<Request> =
            (0..17).map(|i| sampled(i % 9, 1 + 11 * i as usize % 150, 3 + i as usize)).collect();
        let wanted = alone(given, &requests);
        assert!(wanted.iter().zip(&requests).all(|(tokens, r)| tokens.len() == r.most));
        // Log-probabilities as asked for, those of the most likely tokens in their order.
        for (token, r) in wanted.iter().zip(&requests).flat_map(|(tokens, r)| tokens.iter().map(move |t| (t, r))) {
            let (most, found) = (r.sampling.logprobs, &token.logprobs);
            assert_eq!(found.as_ref().map(|l| l.top.len()), most, "{token:?}");
            let Some(found) = found else { continue };
            assert!(found.top.iter().all(|(_, p)| *p <= 0.0) && found.top.is_sorted_by(|a, b| a.1 >= b.1), "{found:?}");
            assert!(found.top.iter().all(|(id, p)| *id != token.id || *p == found.chosen), "{token:?}");
        }
        // All in one step, 17 decodes computed as 18, prompts whole or in chunks beside decodes.
        for budget in [512, 33, 19] {
            let engine = given.open(|o| (o.sequences, o.tokens, o.prefix) = (17, budget, false)).unwrap();
            let said = together(&engine, &requests);
            assert_eq!(tokens(&said), wanted, "{budget} tokens a step");
            assert!(said.iter().all(|s| s.why == Finish::Length && s.cached == 0));
        }
        // Prompts in pieces of any size beside decodes; with a chunk of 1 each of their steps is a decode's.
        for chunk in [1, 7, 40] {
            let engine = given.open(|o| (o.sequences, o.tokens, o.chunk, o.prefix) = (17, 512, Some(chunk), false));
            let engine = engine.unwrap();
            let begun = engine.stats();
            assert_eq!(tokens(&together(&engine, &requests)), wanted, "{chunk} tokens of prompts beside decodes");
            let prompts: usize = requests.iter().map(|r| r.prompt.len()).sum();
            assert_eq!(engine.stats().prompt_tokens - begun.prompt_tokens, prompts as u64);
        }
        // What was computed for others is not computed again.
        let engine = given.open(|o| (o.sequences, o.tokens) = (4, 64)).unwrap();
        for round in 0..2 {
            let said = together(&engine, &requests);
            assert_eq!(tokens(&said), wanted);
            // All whole pages but the last token's.
            let found = |r: &Request| (r.prompt.len() - 1) / 16 * 16;
            if round > 0 {
                said.iter().zip(&requests).for_each(|(s, r)| assert_eq!(s.cached, found(r)));
            }
        }
        let stats = engine.stats();
        assert_eq!((stats.running, stats.waiting, stats.used, stats.ended), (0, 0, 0, 34));
        assert!(stats.cached_tokens > 0 && stats.preempted == 0);
    });
}

#[test]
fn who_loses_its_pages_goes_on_as_if_it_had_not() {
    every_model(|given| {
        let requests: Vec<Request> = (0..6).map(|i| sampled(i, 40 + i as usize, 60)).collect();
        let wanted = alone(given, &requests);
        // Pages of one sequence of the whole context, or hardly more: fewer than six of a hundred tokens need.
        let plan = *given.open(|o| o.sequences = 6).unwrap().plan();
        let page = plan.cache / plan.pages as u64;
        for pages in [16, 19] {
            let memory = Some(plan.bytes() - plan.cache + pages * page);
            let engine = given.open(|o| (o.sequences, o.memory, o.prefix) = (6, memory, pages == 19)).unwrap();
            assert_eq!(engine.plan().pages, pages as i64);
            assert_eq!(tokens(&together(&engine, &requests)), wanted, "{pages} pages");
            let stats = engine.stats();
            assert!(stats.preempted > 0, "{stats:?}");
            assert_eq!((stats.running, stats.used), (0, 0));
        }
        let memory = Some(plan.bytes() - plan.cache + 15 * page);
        let Err(e) = given.open(|o| (o.sequences, o.memory) = (6, memory)) else { panic!("it opens") };
        let needed = plan.bytes() - plan.cache + 16 * page;
        assert!(e.to_string().starts_with(&format!("{needed} bytes are needed")), "{e}");
    });
}

/// On a GPU a step begins before the tokens of the one before are known; here only where one asks for it.
#[test]
fn steps_that_begin_before_tokens_are_known_change_nothing() {
    every_model(|given| {
        // Some end by a token of their own, some by their length, and some may not be run ahead of.
        let plain =
            |i: i32| Request { sampling: sampled(i % 2, 1, 1).sampling, ..request(i, 1 + 13 * i as usize % 60, 60) };
        let mut requests: Vec<Request> = (0..12).map(plain).collect();
        let whole = alone(given, &requests);
        for (request, tokens) in requests.iter_mut().zip(&whole).skip(3).step_by(3) {
            request.ends = vec![tokens[request.prompt.len() % 17].id];
        }
        let wanted = alone(given, &requests);
        assert!(wanted.iter().zip(&whole).filter(|(a, b)| a.len() < b.len()).count() > 1);
        // All pages that there can be, and so few that some give theirs up while their tokens are chosen.
        for (pages, budget, chunk) in
            [(None, 512, None), (None, 19, None), (Some(16), 64, Some(5)), (Some(19), 512, None), (None, 512, Some(3))]
        {
            let plan = *given.open(|o| (o.sequences, o.tokens) = (6, budget)).unwrap().plan();
            let memory = pages.map(|pages| plan.bytes() - plan.cache + pages * (plan.cache / plan.pages as u64));
            let open = |o: &mut Options| {
                (o.sequences, o.tokens, o.chunk) = (6, budget, chunk);
                (o.memory, o.ahead) = (memory, Some(true));
            };
            let engine = given.open(open).unwrap();
            for _ in 0..2 {
                let said = together(&engine, &requests);
                assert_eq!(tokens(&said), wanted, "{pages:?} pages, {budget} tokens a step, {chunk:?} of prompts");
                assert!(said.iter().any(|s| s.why == Finish::Stop) && said.iter().any(|s| s.why == Finish::Length));
            }
            let stats = engine.stats();
            assert!(pages.is_none() || stats.preempted > 0, "{stats:?}");
            // The last step may still be on its way when the last answer has ended.
            while engine.stats().used > 0 {
                std::thread::yield_now();
            }
            // One that has to be waited for among the others.
            let mixed: Vec<Request> = (0..6).map(|i| sampled(i, 9 + i as usize, 20)).chain([plain(3)]).collect();
            assert_eq!(tokens(&together(&engine, &mixed)), alone(given, &mixed));
        }
        let engine = given.open(|o| (o.logits, o.ahead) = (true, Some(true))).unwrap();
        let told = Request { logits: true, ..plain(5) };
        let events: Vec<Event> = engine.submit(told.clone()).unwrap().collect();
        let rows = events.iter().map(|e| if let Event::Logits(l) = e { l.len() / 97 } else { 0 }).sum::<usize>();
        assert_eq!((rows, hear(events.into_iter()).tokens), (told.prompt.len(), whole[5].clone()));
    });
}

#[test]
fn who_leaves_frees_its_pages_and_who_cannot_be_served_hears_why() {
    let given = Given::new("qwen3");
    let engine = given.open(|o| (o.sequences, o.waiting) = (2, 3)).unwrap();
    let mut kept = engine.submit(request(1, 20, 200)).unwrap();
    assert!(matches!(kept.next(), Some(Event::Token(_))));
    let mut left = engine.submit(request(2, 20, 200)).unwrap();
    assert!(matches!(left.next(), Some(Event::Token(_))));
    let waiting: Vec<_> = (0..3).map(|i| engine.submit(request(i, 5, 9)).unwrap()).collect();
    let full = engine.submit(request(3, 5, 9)).map(|_| ());
    assert!(matches!(full, Err(EngineError::Refused(Refused::Full { waiting: 3 }))), "{full:?}");
    drop(left);
    let served: Vec<Said> = waiting.into_iter().map(hear).collect();
    assert!(served.iter().all(|s| s.why == Finish::Length && s.tokens.len() == 9));
    // A listener that says it has enough is not called again.
    let (said, heard) = std::sync::mpsc::channel();
    engine
        .submit_to(request(4, 5, 100), move |event| {
            said.send(event).unwrap();
            false
        })
        .unwrap();
    let events: Vec<Event> = heard.iter().collect();
    assert!(matches!(&events[..], [Event::Token(_), Event::End(end)] if end.why == Finish::Cancelled), "{events:?}");
    let refused = |request: Request, part: &str| {
        let e = engine.submit(request).map(|_| ()).unwrap_err().to_string();
        assert!(e.contains(part), "{e}");
    };
    refused(request(1, 0, 1), "the prompt has no token");
    refused(request(1, 200, 57), "200 tokens and 57 for the answer are over the context of 256");
    refused(request(1, 5, 0), "no token is asked for");
    refused(
        Request { prompt: vec![1, 97], most: 1, ..Request::default() },
        "the token 97, and the model's go from 0 to 96",
    );
    let with = |sampling| Request { sampling, ..request(1, 5, 1) };
    refused(
        with(Sampling { temperature: -1.0, ..Sampling::default() }),
        "temperature is -1, and 0 or more is its range",
    );
    refused(with(Sampling { temperature: f32::NAN, ..Sampling::default() }), "temperature is NaN");
    refused(with(Sampling { top_p: 1.5, ..Sampling::default() }), "top_p is 1.5, and from 0 to 1");
    refused(with(Sampling { repetition_penalty: 0.0, ..Sampling::default() }), "repetition_penalty is 0");
    refused(with(Sampling { logprobs: Some(21), ..Sampling::default() }), "logprobs is 21, and 20 is the most");
    refused(Request { logits: true, ..request(1, 5, 1) }, "no room for the logits");
    drop(kept);
    let end = loop {
        let stats = engine.stats();
        if stats.running + stats.waiting == 0 {
            break stats;
        }
        std::thread::yield_now();
    };
    assert_eq!((end.used, end.ended), (0, 6));
    // The last token may be one that ends answers.
    let said = hear(engine.submit(request(1, 20, 9)).unwrap());
    let ends = vec![said.tokens[2].id];
    let until = said.tokens.iter().position(|t| t.id == ends[0]).unwrap() + 1;
    let ended = hear(engine.submit(Request { ends, ..request(1, 20, 9) }).unwrap());
    assert_eq!((ended.tokens.as_slice(), ended.why), (&said.tokens[..until], Finish::Stop));
}

#[test]
fn steps_that_gave_way_are_bound_again() {
    let given = Given::new("qwen3");
    // Prompts whose last steps are more than are kept, by their tokens, by what is before them, and by how the token is chosen; each twice.
    let counts: Vec<usize> = (1..=16).chain((18..=32).step_by(2)).chain((36..=64).step_by(4)).collect();
    let one = |count: usize| {
        [0, 256, 512].into_iter().flat_map(move |before| {
            [request(1, before + count, 1), sampled(1, before + count, 1), sampled(2, before + count, 1)]
        })
    };
    let requests: Vec<Request> = (0..2).flat_map(|_| counts.iter().flat_map(|count| one(*count))).collect();
    let open = || given.open(|o| (o.prefix, o.context, o.tokens, o.ahead) = (false, 1024, 64, Some(false))).unwrap();
    let engine = open();
    let said: Vec<Vec<Token>> = requests.iter().map(|r| hear(engine.submit(r.clone()).unwrap()).tokens).collect();
    assert_eq!(said[..288], said[288..]);
    // No more than 256 of them are bound at a time, of the 290 or so that there were, and each that gave way was bound again.
    let one = open();
    hear(one.submit(request(1, 9, 1)).unwrap());
    let (each, stats) = (one.stats().kernels, engine.stats());
    let all = stats.kernels;
    assert!(all > 255 * (each - 1) && all <= 256 * each, "{all} kernels, {each} a step");
    assert!(stats.bound > 500, "{} bound", stats.bound);
}

/// Those that are known to come are bound as the engine starts, and while nobody waits where steps are chosen ahead of the device.
#[test]
fn what_is_expected_is_bound_before_it_is_needed() {
    let given = Given::new("qwen3");
    let requests = [request(1, 20, 9), sampled(1, 33, 9), request(2, 200, 3)];
    let hear_all = |engine: &Engine| -> Vec<Vec<Token>> {
        requests.iter().map(|r| hear(engine.submit(r.clone()).unwrap()).tokens).collect()
    };
    let late = given.open(|o| (o.prefix, o.ahead) = (false, Some(false))).unwrap();
    let said = hear_all(&late);
    let stats = late.stats();
    // Three prompts and what decodes, greedy and drawn.
    assert_eq!((stats.bound, stats.bound_late), (5, 5));
    assert!(stats.binding_late == stats.binding && stats.binding > Duration::ZERO);
    let started = given.open(|o| o.prefix = false).unwrap();
    let bound = started.stats().bound;
    assert!(bound > 0, "{bound}");
    assert_eq!(hear_all(&started), said);
    let early = given.open(|o| (o.prefix, o.ahead) = (false, Some(true))).unwrap();
    let (mut bound, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_millis(500) {
        std::thread::sleep(Duration::from_millis(10));
        if early.stats().bound != bound {
            (bound, since) = (early.stats().bound, Instant::now());
        }
    }
    assert!(bound > 50, "{bound}");
    assert_eq!(hear_all(&early), said);
    let stats = early.stats();
    assert_eq!((stats.bound, stats.bound_late, stats.binding_late), (bound, 0, Duration::ZERO));
}

#[test]
fn kernels_of_an_older_program_are_refused_with_what_to_do() {
    let given = Given::new("qwen3");
    let embedding = "embedding tokens=3 vocab=5 hidden=7 dtype=f32";
    let args = ["export", "--target", "cpu", "--db", "db", "--problem", embedding, "-o", "m.jitune"];
    let out = given.place.jitune(&args).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let Err(e) = given.open(|_| ()) else { panic!("it opens") };
    assert!(e.to_string().contains("export the bundle again"), "{e}");
}

#[test]
fn an_engine_whose_thread_is_gone_says_so() {
    let given = Given::new("qwen3");
    let engine = given.open(|o| o.sequences = 2).unwrap();
    let other = engine.submit(request(2, 5, 200)).unwrap();
    engine.submit_to(request(1, 5, 9), |_| panic!("a listener's own fault")).unwrap();
    // Who waits is not left waiting.
    assert!(other.count() < 201);
    let begun = std::time::Instant::now();
    while engine.failure().is_none() && begun.elapsed().as_secs() < 60 {
        std::thread::yield_now();
    }
    assert_eq!(engine.failure().as_deref(), Some("its thread panicked"));
    let refused = engine.submit(request(1, 5, 9)).map(|_| ());
    assert!(matches!(refused, Err(EngineError::Ended { .. })), "{refused:?}");
}

/// Turns of nothing that take some milliseconds, far more than a step.
const SPIN: i64 = 3_000_000;

/// Counts what is compared, and always says the same of going on.
struct Heard(usize, Go);

impl Watch for Heard {
    fn compared(&mut self, _: &Compared) {
        self.0 += 1;
    }

    fn go(&mut self) -> Go {
        self.1
    }
}

/// What is chosen once each of so many kernels was at some time: where others want the processor too, a faster step may seem slower.
fn chosen_at_last(timer: &mut Timer, cases: &[Case], others: &[Runtime], wanted: usize) -> StepChoice {
    let mut chosen = BTreeSet::new();
    for _ in 0..12 {
        let choice = timer.choose(cases, others, &mut Heard(0, Go::On)).unwrap().unwrap();
        chosen.extend(choice.chosen.iter().map(|c| c.kernel.problem().to_string()));
        if chosen.len() == wanted && !choice.chosen.is_empty() {
            return choice;
        }
    }
    panic!("chosen are {chosen:?}, and {wanted} are faster");
}

/// Of kernels that are said to take the same time steps choose those with which they are faster, whoever's they are, and none where none
/// is; and norms leave products where that is faster, whatever was predicted.
#[test]
fn steps_choose_what_makes_them_faster() {
    let given = Given::new("qwen3");
    let buckets = Buckets { batch: vec![2], prefill: vec![], chunk: vec![], context: 256, page: 16 };
    let plan = Plan::new(&given.model, &buckets, Dtype::F32).unwrap();
    let products: Vec<Problem> = plan.problems().into_iter().filter(|p| p.op().name == "matmul").collect();
    assert!(products.len() > 2, "{products:?}");
    let [slow, fast] = [SPIN, 0].map(|spin| given.with("spin_product", &products, spin, 5.0));
    let cases = [Case::Decode { batch: 2, context: 40 }, Case::Decode { batch: 2, context: 100 }];
    let timer = |bundle: &Bundle<'_>| {
        let (weights, options) = given.parts(|o| o.sequences = 2);
        let runtime = Runtime::cpu(bundle, Some(1)).unwrap();
        Timer::open(runtime, &given.model, &weights, options, |_, _| ()).unwrap()
    };
    let mut of_slow = timer(&slow);
    assert_eq!(of_slow.tuned(cases[0]).unwrap().len(), products.len());
    let others = [of_slow.beside(&fast).unwrap()];
    let config = |c: &Chosen| c.kernel.config().to_string();
    let choice = chosen_at_last(&mut of_slow, &cases, &others, products.len());
    assert!(choice.chosen.iter().all(|c| config(c) == "spin=0"));
    assert!(choice.chosen.iter().all(|c| c.other == Some(0) && c.case == 0));
    assert_eq!(choice.steps.iter().map(|(case, _)| *case).collect::<Vec<_>>(), cases);
    assert!(choice.steps.iter().all(|(_, [before, us])| us < before), "{:?}", choice.steps);

    let mut of_fast = timer(&fast);
    let others = [of_fast.beside(&slow).unwrap()];
    let mut heard = Heard(0, Go::On);
    let choice = of_fast.choose(&cases, &others, &mut heard).unwrap().unwrap();
    assert!(choice.chosen.is_empty() && choice.steps.iter().all(|(_, [before, us])| us == before));
    assert_eq!(heard.0, products.len());
    // Who does not go on has chosen nothing, and who compares nothing more times what there is.
    let mut again = timer(&slow);
    let others = [again.beside(&fast).unwrap()];
    assert!(again.choose(&cases, &others, &mut Heard(0, Go::No)).unwrap().is_none());
    let mut to_the_end = Heard(0, Go::ToTheEnd);
    let choice = again.choose(&cases, &others, &mut to_the_end).unwrap().unwrap();
    assert_eq!((choice.chosen.len(), choice.steps.len(), to_the_end.0), (0, cases.len(), 0));

    // Slow, and said to take no time.
    let fusions = plan.fusions();
    let normed = given.with("norm_product", &fusions, SPIN, 1e-6);
    let mut timer = timer(&normed);
    let kinds = |timer: &mut Timer| -> Vec<String> {
        timer.time(cases[0], 1).unwrap().kernels.into_iter().map(|k| k.template).collect()
    };
    assert!(kinds(&mut timer).contains(&"norm_product".to_string()));
    let choice = chosen_at_last(&mut timer, &cases, &[], fusions.len());
    let names: Vec<&str> = choice.chosen.iter().map(|c| c.kernel.problem().op().name).collect();
    assert!(names.iter().all(|name| ["matmul", "qkv"].contains(name)), "{names:?}");
    assert!(choice.chosen.iter().all(|c| c.other.is_none()));
}

/// Norms are parts of the products behind them where a kernel for both is predicted to take less than the two, and only there; what the
/// engine answers is the same within rounding, and the step says what ran.
#[test]
fn norms_are_in_products_where_that_is_faster_and_answers_stay() {
    every_model(|given| {
        let kinds = |bundle: &Bundle<'_>| -> Vec<(String, String)> {
            let (weights, options) = given.parts(|o| o.sequences = 5);
            let runtime = Runtime::cpu(bundle, Some(1)).unwrap();
            let mut timer = Timer::open(runtime, &given.model, &weights, options, |_, _| ()).unwrap();
            let time = timer.time(Case::Decode { batch: 3, context: 40 }, 1).unwrap();
            time.kernels.into_iter().map(|k| (k.role, k.template)).collect()
        };
        let (fast, slow) = (given.with_norms(1e-6), given.with_norms(1e9));
        let (of_fast, of_slow) = (kinds(&fast), kinds(&slow));
        for role in ["norm+qkv", "norm+gate_up", "norm+lm_head"] {
            assert!(of_fast.contains(&(role.to_string(), "norm_product".to_string())), "{role}: {of_fast:?}");
        }
        let apart = ["norm", "qkv", "gate_up", "lm_head"];
        assert!(of_fast.iter().all(|(role, _)| !apart.contains(&role.as_str())), "{of_fast:?}");
        assert!(
            of_slow.iter().all(|(role, template)| !role.contains('+') && template != "norm_product"),
            "{of_slow:?}"
        );

        let requests: Vec<Request> = (0..5)
            .map(|i| Request {
                sampling: Sampling { logprobs: Some(3), ..Sampling::default() },
                ..request(i, 1 + 13 * i as usize, 9)
            })
            .collect();
        let answers =
            |bundle: &Bundle<'_>| tokens(&together(&given.open_with(bundle, |o| o.sequences = 5).unwrap(), &requests));
        let wanted = alone(given, &requests);
        assert_eq!(answers(&slow), wanted);
        for (mine, wanted) in answers(&fast).iter().flatten().zip(wanted.iter().flatten()) {
            let (one, other) = (mine.logprobs.as_ref().unwrap(), wanted.logprobs.as_ref().unwrap());
            assert_eq!(mine.id, wanted.id);
            let near = |a: f32, b: f32| (a - b).abs() <= 1e-4 * (1.0 + b.abs());
            assert!(near(one.chosen, other.chosen), "{one:?} {other:?}");
            assert!(one.top.iter().zip(&other.top).all(|(a, b)| near(a.1, b.1)), "{one:?} {other:?}");
        }

        // More rows than were tuned are no size that anybody asks for.
        fast.write(given.place.path().join("fast.jitune")).unwrap();
        let args =
            ["verify", "fast.jitune", "--target", "cpu", "--threads", "1", "--no-timing", "--every", "12", "--json"];
        let out = given.place.jitune(&args).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        let lines = common::events(&out.stdout);
        let of_norms =
            lines.iter().filter(|l| l["template"] == "norm_product" && l["problem"].to_string().contains("m=5 "));
        assert_eq!(of_norms.count(), 3, "{}", text(&out));
    });
}
