//! How long a running engine takes under load: requests of random tokens that ignore ends, timed where each token is heard.
//!
//! ```text
//! load MODEL BUNDLE [--device cuda:0|cpu:0] [--dtype bf16|f16|f32] [--tokens N] [--chunk N] [--memory BYTES] [--rounds N] [--seed N] and one of
//!      --requests 256 --prompt 1024 --answer 1024 --sequences 256     all asked at once
//!      --ttft 2048                                                    prompts one at a time, each of one token's answer
//!      --long 32768 --beside 16 --prompt 128 --answer 600             a long prompt alone, and among requests that decode
//! ```
//! MODEL and BUNDLE are those of the example `engine`. `--tokens` is the most tokens of a step, `--chunk` of prompts beside decodes. Each round prints a line of JSON, times in milliseconds;
//! the first round also binds and captures the steps that the later ones find. No prompt is used twice, and none is found in the cache.

use jitune::bundle::Bundle;
use jitune::device::{DeviceId, Target};
use jitune::engine::{Engine, Event, Finish, Options, Request, Stats};
use jitune::model::{Buckets, Model};
use jitune::problem::Dtype;
use jitune::runtime::Runtime;
use jitune::weights::Weights;
use serde_json::{Value, json};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Tokens that each request beside a long prompt has before the prompt is asked.
const SETTLED: usize = 32;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

struct Args {
    model: String,
    bundle: String,
    device: DeviceId,
    dtype: Option<Dtype>,
    memory: Option<u64>,
    tokens: usize,
    chunk: Option<i64>,
    rounds: usize,
    seed: u64,
    requests: usize,
    prompt: usize,
    answer: usize,
    sequences: Option<usize>,
    ttft: Option<usize>,
    long: Option<usize>,
    beside: usize,
}

fn args() -> Result<Args> {
    let mut args = Args {
        model: String::new(),
        bundle: String::new(),
        device: DeviceId::Cuda(0),
        dtype: None,
        memory: None,
        tokens: 2048,
        chunk: None,
        rounds: 1,
        seed: 1,
        requests: 256,
        prompt: 1024,
        answer: 1024,
        sequences: None,
        ttft: None,
        long: None,
        beside: 16,
    };
    let mut list = std::env::args().skip(1);
    while let Some(word) = list.next() {
        if !word.starts_with("--") {
            let place = if args.model.is_empty() { &mut args.model } else { &mut args.bundle };
            *place = word;
            continue;
        }
        let text = list.next().ok_or(format!("{word} needs a value"))?;
        let number =
            || text.parse::<usize>().ok().filter(|n| *n > 0).ok_or(format!("{word} takes a number, not '{text}'"));
        match word.as_str() {
            "--device" => args.device = text.parse()?,
            "--dtype" => {
                args.dtype = Some(Dtype::parse(&text).ok_or(format!("--dtype takes {}, not '{text}'", Dtype::names()))?)
            }
            "--memory" => args.memory = Some(number()? as u64),
            "--tokens" => args.tokens = number()?,
            "--chunk" => args.chunk = Some(number()? as i64),
            "--rounds" => args.rounds = number()?,
            "--seed" => args.seed = text.parse()?,
            "--requests" => args.requests = number()?,
            "--prompt" => args.prompt = number()?,
            "--answer" => args.answer = number()?,
            "--sequences" => args.sequences = Some(number()?),
            "--ttft" => args.ttft = Some(number()?),
            "--long" => args.long = Some(number()?),
            "--beside" => args.beside = number()?,
            other => return Err(format!("there is no option {other}").into()),
        }
    }
    if args.bundle.is_empty() {
        return Err(
            "usage: load MODEL BUNDLE [--device cuda:0|cpu:0] [OPTIONS]; see the top of examples/load.rs".into()
        );
    }
    Ok(args)
}

fn main() -> ExitCode {
    match args().and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("load: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let (model, notes) = Model::load(&args.model)?;
    notes.iter().for_each(|note| eprintln!("{note}"));
    let (weights, _) = Weights::open(Path::new(&args.model), &model)?;
    let bundle = Bundle::open(&args.bundle)?;
    let runtime = match args.device {
        DeviceId::Cuda(ordinal) => Runtime::cuda(&bundle, ordinal)?,
        DeviceId::Cpu(threads) => Runtime::cpu(&bundle, (threads > 0).then_some(threads))?,
    };
    let target = args.device.target();
    let dtype = args.dtype.unwrap_or(if target == Target::Cuda { Dtype::Bf16 } else { Dtype::F32 });
    let (context, sequences) = match (args.ttft, args.long) {
        (Some(prompt), _) => (prompt + 1, 1),
        (None, Some(prompt)) => ((prompt + 1).max(args.prompt + args.answer), args.beside + 1),
        (None, None) => (args.prompt + args.answer, args.requests),
    };
    let mut options = Options::new(dtype, context as i64);
    options.page = Buckets::of(target).page;
    options.sequences = args.sequences.unwrap_or(sequences) as i64;
    (options.tokens, options.chunk) = (args.tokens as i64, args.chunk);
    options.waiting = args.requests.max(args.beside + 1);
    options.memory = args.memory;
    options.prefix = false;
    let engine = Engine::open(runtime, &model, &weights, options, |_, _| ())?;
    eprintln!("memory: {}", engine.plan());
    let mut random = Random(args.seed);
    for round in 1..=args.rounds {
        let before = engine.stats();
        let measured = match (args.ttft, args.long) {
            (Some(prompt), _) => ttft(&engine, prompt, &mut random)?,
            (None, Some(prompt)) => beside(&engine, prompt, args, &mut random)?,
            (None, None) => together(&engine, args, &mut random)?,
        };
        println!("{}", line(args, round, measured, &engine, &before));
    }
    Ok(())
}

/// What was measured in a round, and what the engine did meanwhile.
fn line(args: &Args, round: usize, measured: Value, engine: &Engine, before: &Stats) -> Value {
    let Stats { steps, preempted, cached_tokens, kernels, portable, .. } = engine.stats();
    let mut line = json!({"kind": "load", "model": args.model, "round": round, "tokens": engine.options().tokens});
    let did = json!({
        "steps": steps - before.steps, "preempted": preempted - before.preempted,
        "cached_tokens": cached_tokens - before.cached_tokens, "kernels": kernels, "portable": portable,
        "memory_bytes": engine.plan().bytes(),
    });
    for part in [measured, did] {
        if let (Some(line), Value::Object(part)) = (line.as_object_mut(), part) {
            line.extend(part);
        }
    }
    line
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn request(&mut self, engine: &Engine, prompt: usize, most: usize) -> Request {
        let vocab = engine.vocab().unsigned_abs();
        let prompt = (0..prompt).map(|_| (self.next() % vocab) as i32).collect();
        Request { prompt, most, ..Request::default() }
    }
}

/// What the engine's thread says of the tokens of a request.
enum Said {
    /// So many tokens are there.
    Settled,
    /// It ended; when each token was heard.
    Ended(Vec<Instant>, Finish),
}

/// A request on its way.
struct Asked {
    at: Instant,
    heard: Receiver<Said>,
}

/// A request whose tokens are all there.
struct Answered {
    at: Instant,
    tokens: Vec<Instant>,
}

/// Asks. Tokens are timed on the engine's thread, as they come out of a step; nothing is sent for each.
fn ask(engine: &Engine, request: Request) -> Result<Asked> {
    let (say, heard): (Sender<Said>, _) = channel();
    let mut tokens = Vec::with_capacity(request.most);
    let at = Instant::now();
    engine.submit_to(request, move |event| match event {
        Event::Token(_) => {
            tokens.push(Instant::now());
            tokens.len() != SETTLED || say.send(Said::Settled).is_ok()
        }
        Event::End(end) => say.send(Said::Ended(std::mem::take(&mut tokens), end.why)).is_ok(),
        Event::Logits(_) => true,
    })?;
    Ok(Asked { at, heard })
}

impl Asked {
    fn settled(&self) -> Result<()> {
        match self.heard.recv()? {
            Said::Settled => Ok(()),
            Said::Ended(tokens, why) => Err(format!("a request ended after {} tokens: {why:?}", tokens.len()).into()),
        }
    }

    fn answered(self) -> Result<Answered> {
        loop {
            match self.heard.recv()? {
                Said::Settled => (),
                Said::Ended(tokens, Finish::Length) => return Ok(Answered { at: self.at, tokens }),
                Said::Ended(_, why) => return Err(format!("a request ended: {why:?}").into()),
            }
        }
    }
}

impl Answered {
    fn first(&self) -> Result<Instant> {
        Ok(*self.tokens.first().ok_or("a request has no token")?)
    }

    fn ttft(&self) -> Result<f64> {
        Ok(ms(self.first()? - self.at))
    }

    /// When each token but the first was heard, and the time since the one before it.
    fn gaps(&self) -> impl Iterator<Item = (Instant, f64)> {
        self.tokens.iter().zip(self.tokens.iter().skip(1)).map(|(before, then)| (*then, ms(*then - *before)))
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Mean, median, 99th percentile (nearest rank) and the most.
fn spread(mut values: Vec<f64>) -> Value {
    values.sort_by(f64::total_cmp);
    let rank = |share: f64| {
        let rank = (share * values.len() as f64).ceil() as usize;
        values.get(rank.saturating_sub(1)).copied()
    };
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    json!({"count": values.len(), "mean": mean, "median": rank(0.5), "p99": rank(0.99), "max": rank(1.0)})
}

/// Many requests, all asked at once.
fn together(engine: &Engine, args: &Args, random: &mut Random) -> Result<Value> {
    let requests: Vec<Request> = (0..args.requests).map(|_| random.request(engine, args.prompt, args.answer)).collect();
    let begun = Instant::now();
    let asked = requests.into_iter().map(|r| ask(engine, r)).collect::<Result<Vec<_>>>()?;
    let answers = asked.into_iter().map(Asked::answered).collect::<Result<Vec<_>>>()?;
    let last = answers.iter().filter_map(|a| a.tokens.last()).max().ok_or("no token came")?;
    let wall = (*last - begun).as_secs_f64();
    let output: usize = answers.iter().map(|a| a.tokens.len()).sum();
    let ttft = answers.iter().map(Answered::ttft).collect::<Result<_>>()?;
    // All decode from the last first token to the first end.
    let all = answers.iter().map(Answered::first).collect::<Result<Vec<_>>>()?.into_iter().max();
    let end = answers.iter().filter_map(|a| a.tokens.last()).min();
    let steady = |t: &Instant| all.is_some_and(|all| *t > all) && end.is_some_and(|end| t <= end);
    let gaps = || answers.iter().flat_map(Answered::gaps);
    Ok(json!({
        "mode": "together", "requests": args.requests, "prompt": args.prompt, "answer": args.answer, "wall_s": wall,
        "output_tokens": output, "output_tokens_per_s": output as f64 / wall, "ttft_ms": spread(ttft),
        "itl_ms": spread(gaps().map(|(_, ms)| ms).collect()),
        "steady_itl_ms": spread(gaps().filter(|(t, _)| steady(t)).map(|(_, ms)| ms).collect()),
    }))
}

/// A prompt in an engine that has nothing else to do.
fn ttft(engine: &Engine, prompt: usize, random: &mut Random) -> Result<Value> {
    let answer = ask(engine, random.request(engine, prompt, 1))?.answered()?;
    Ok(json!({"mode": "ttft", "prompt": prompt, "ttft_ms": answer.ttft()?}))
}

/// A long prompt alone, and then among requests that decode.
fn beside(engine: &Engine, prompt: usize, args: &Args, random: &mut Random) -> Result<Value> {
    let alone = ask(engine, random.request(engine, prompt, 1))?.answered()?.ttft()?;
    let requests: Vec<Request> = (0..args.beside).map(|_| random.request(engine, args.prompt, args.answer)).collect();
    let long = random.request(engine, prompt, 1);
    let asked = requests.into_iter().map(|r| ask(engine, r)).collect::<Result<Vec<_>>>()?;
    asked.iter().try_for_each(Asked::settled)?;
    let long = ask(engine, long)?.answered()?;
    let others = asked.into_iter().map(Asked::answered).collect::<Result<Vec<_>>>()?;
    let (from, to) = (long.at, long.first()?);
    if let Some(early) = others.iter().filter_map(|o| o.tokens.last()).find(|last| **last < to) {
        let left = ms(to - *early);
        return Err(format!("a request ended {left:.1} ms before the long prompt was read; give --answer more").into());
    }
    let gaps = |these: &dyn Fn(&Instant) -> bool| -> Vec<f64> {
        others.iter().flat_map(Answered::gaps).filter(|(t, _)| these(t)).map(|(_, ms)| ms).collect()
    };
    // The first token may still be on its way when those of its step are heard.
    let step = others.iter().flat_map(|o| o.tokens.iter()).filter(|t| **t >= to).min().copied().unwrap_or(to);
    let ttft = long.ttft()?;
    Ok(json!({
        "mode": "beside", "prompt": prompt, "beside": args.beside, "alone_ttft_ms": alone, "ttft_ms": ttft, "ratio": ttft / alone,
        "itl_ms": spread(gaps(&|t| *t > from && *t <= step)), "itl_without_ms": spread(gaps(&|t| *t <= from || *t > step)),
    }))
}
