//! For the tests of engines: speaks to an engine's program ([`Talk`]), and knows what small random models answer by transformers
//! ([`Golden`]).

use std::{
    collections::BTreeMap,
    fs, io,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use jitune::{model::Model, weights};
use jitune_peer::engine::{Ask, ENGINE_PROTOCOL, End, Finish, Load, Sampling, Stats, Submit, Tell};
use jitune_peer::{Device, Numbered, Refusal, RefusalKind};
use serde_json::Value;

/// How far a logit in f32 may be from that of transformers, by the root mean square of all.
pub const LIMIT: f64 = 1e-4;
/// The most tokens of a prompt and its answer in these tests.
const CONTEXT: usize = 400;
/// The most prompts of a batch in these tests.
const SEQUENCES: usize = 4;

/// An engine's program, running.
pub struct Talk {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    id: u64,
    /// What was told of requests, by their numbers.
    answers: BTreeMap<u64, (Vec<u32>, Option<End>)>,
}

impl Talk {
    /// Starts it, and says hello for a device.
    pub fn start(path: &str, device: Device) -> Result<Talk, String> {
        Talk::start_with(path, device, &[])
    }

    /// With settings of its own.
    pub fn start_with(path: &str, device: Device, options: &[(&str, &str)]) -> Result<Talk, String> {
        let child = Command::new(path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|e| format!("{path}: {e}"))?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else { return Err("no pipes".into()) };
        let mut talk = Talk { child, to, from: BufReader::new(from), id: 0, answers: BTreeMap::new() };
        let options = options.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let hello = Ask::Hello { protocol: ENGINE_PROTOCOL, device, options };
        match talk.ask(&hello)? {
            Tell::Hello(about) if !about.dtypes.is_empty() => Ok(talk),
            other => Err(format!("{other:?}")),
        }
    }

    fn send(&mut self, ask: &Ask) -> Result<u64, String> {
        self.id += 1;
        let line = serde_json::to_string(&Numbered { id: self.id, message: ask }).map_err(|e| e.to_string())?;
        writeln!(self.to, "{line}").map_err(|e| e.to_string())?;
        Ok(self.id)
    }

    fn hear(&mut self) -> Result<Numbered<Tell>, String> {
        let mut line = String::new();
        match self.from.read_line(&mut line) {
            Ok(0) => Err("the program has ended".into()),
            Ok(_) => serde_json::from_str(&line).map_err(|e| format!("{line}: {e}")),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Keeps what is told of a request; gives back anything else.
    fn keep(&mut self, told: Numbered<Tell>) -> Result<Option<Numbered<Tell>>, String> {
        let Some((ids, end)) = self.answers.get_mut(&told.id) else { return Ok(Some(told)) };
        match told.message {
            message if end.is_some() => return Err(format!("{message:?} after the end of {}", told.id)),
            Tell::Tokens { ids: more, .. } => ids.extend(more),
            Tell::End(why) => *end = Some(why),
            other => return Err(format!("{other:?} of a request")),
        }
        Ok(None)
    }

    /// Asks anything but for an answer.
    pub fn ask(&mut self, ask: &Ask) -> Result<Tell, String> {
        let id = self.send(ask)?;
        loop {
            let told = self.hear()?;
            match self.keep(told)? {
                Some(told) if told.id == id => return Ok(told.message),
                Some(told) => return Err(format!("{told:?} is of nothing that was asked")),
                None => (),
            }
        }
    }

    /// Loads a folder.
    pub fn load(&mut self, folder: &Path, dtype: &str) -> Result<Tell, String> {
        let (folder, dtype) = (folder.into(), dtype.into());
        let load = Load { folder, dtype, context: CONTEXT, sequences: SEQUENCES, prefix: false, ..Load::default() };
        self.ask(&Ask::Load(load))
    }

    /// Loads a golden model, which may not be refused.
    pub fn loaded(&mut self, golden: &Golden, dtype: &str) -> Result<(), String> {
        match self.load(&golden.folder, dtype)? {
            Tell::Loaded(loaded) if loaded.vocab == 97 && loaded.sequences == SEQUENCES => Ok(()),
            other => Err(format!("{}: {other:?}", golden.name)),
        }
    }

    /// Asks for an answer; its number.
    pub fn submit(&mut self, prompt: &[u32], most: usize, sampling: Sampling, ignore_eos: bool) -> Result<u64, String> {
        let id = self.send(&Ask::Submit(Submit { prompt: prompt.to_vec(), most, sampling, ignore_eos }))?;
        self.answers.insert(id, (Vec::new(), None));
        Ok(id)
    }

    /// Waits until an answer has so many tokens, or has ended.
    fn until(&mut self, id: u64, tokens: usize) -> Result<(), String> {
        while self.answers.get(&id).is_some_and(|(ids, end)| ids.len() < tokens && end.is_none()) {
            let told = self.hear()?;
            if let Some(told) = self.keep(told)? {
                return Err(format!("{told:?} is of nothing that was asked"));
            }
        }
        Ok(())
    }

    /// Waits for the end of an answer; its tokens.
    pub fn wait(&mut self, id: u64, why: Finish) -> Result<Vec<u32>, String> {
        self.until(id, usize::MAX)?;
        match self.answers.remove(&id) {
            Some((ids, Some(end))) if end.why == why => Ok(ids),
            other => Err(format!("{other:?}, not {why:?}")),
        }
    }

    /// The most likely answer of exactly so many tokens.
    pub fn greedy(&mut self, prompt: &[u32], most: usize) -> Result<Vec<u32>, String> {
        let id = self.submit(prompt, most, Sampling::default(), true)?;
        self.wait(id, Finish::Length).and_then(|ids| exactly(most, ids))
    }

    /// Logits of each position of a prompt.
    pub fn logits(&mut self, prompt: &[u32]) -> Result<Vec<f64>, String> {
        let file = unique_folder().map_err(|e| e.to_string())?.join("logits");
        let told = self.ask(&Ask::Logits { prompt: prompt.to_vec(), file: file.clone() })?;
        let bytes = fs::read(&file).map_err(|e| format!("{told:?}: {e}"))?;
        let _ = file.parent().map(fs::remove_dir_all);
        match told {
            Tell::Logits(l) if l.rows == prompt.len() as u64 && bytes.len() as u64 == l.rows * l.vocab * 4 => (),
            other => return Err(format!("{} bytes of {other:?}", bytes.len())),
        }
        Ok(bytes.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect())
    }

    /// The largest distance of a logit of a golden model from that of transformers, by the root mean square of all.
    pub fn distance(&mut self, golden: &Golden) -> Result<f64, String> {
        let mut worst = 0f64;
        for prompt in &golden.prompts {
            let logits = self.logits(&prompt.ids)?;
            let vocab = logits.len() / prompt.ids.len();
            for (row, wanted) in prompt.rows.iter().zip(&prompt.logits) {
                let found = &logits[row * vocab..][..vocab];
                if wanted.len() != vocab {
                    return Err(format!("{vocab} logits, not {}", wanted.len()));
                }
                for (found, wanted) in found.iter().zip(wanted) {
                    // Of a NaN, a maximum would be silent.
                    let distance = (found - wanted).abs() / prompt.rms;
                    worst = if distance >= worst || distance.is_nan() { distance } else { worst };
                }
            }
        }
        Ok(worst)
    }

    /// Holds logits and greedy answers of a golden model against those of transformers.
    pub fn check(&mut self, golden: &Golden) -> Result<(), String> {
        let failed = |why: String| format!("{}: {why}", golden.name);
        self.loaded(golden, "f32")?;
        let worst = self.distance(golden).map_err(failed)?;
        println!("{}: {worst:.1e} of the rms", golden.name);
        if !(0.0..=LIMIT).contains(&worst) {
            return Err(failed(format!("{worst:.1e} of the rms")));
        }
        for prompt in &golden.prompts {
            let found = self.greedy(&prompt.ids, prompt.tokens.len()).map_err(failed)?;
            // Equal wherever the next best token is farther than the error; after one that is not, they may go apart.
            let sure = prompt.margins.iter().take_while(|margin| **margin > LIMIT * prompt.rms).count();
            if found[..sure] != prompt.tokens[..sure] {
                return Err(failed(format!("after {} tokens: {found:?}, not {:?}", prompt.ids.len(), prompt.tokens)));
            }
        }
        Ok(())
    }

    /// Prompts of one length that wait together are answered as each alone is, and others beside them.
    pub fn check_batches(&mut self, golden: &Golden) -> Result<(), String> {
        self.loaded(golden, "f32")?;
        let most = 9;
        let long = &golden.prompts[2].ids;
        let prompts = [&long[..7], &long[7..14], &long[14..21], &long[..12], &long[30..33]];
        let alone = prompts.iter().map(|p| self.greedy(p, most)).collect::<Result<Vec<_>, _>>()?;
        // The first runs already when the others come; those are three of one length and two of others.
        let first = self.submit(long, most, Sampling::default(), true)?;
        let ids =
            prompts.iter().map(|p| self.submit(p, most, Sampling::default(), true)).collect::<Result<Vec<_>, _>>()?;
        for (id, alone) in ids.iter().zip(&alone) {
            same(&self.wait(*id, Finish::Length)?, alone)?;
        }
        self.wait(first, Finish::Length).and_then(|ids| exactly(most, ids))?;
        // Answers of other lengths in one batch, and one that is drawn beside one that is not.
        let drawn = Sampling { temperature: 20.0, seed: 7, ..Sampling::default() };
        let (short, other) =
            (self.submit(prompts[0], 2, Sampling::default(), true)?, self.submit(prompts[1], most, drawn, true)?);
        same(&self.wait(short, Finish::Length)?, &alone[0][..2])?;
        let other = self.wait(other, Finish::Length)?;
        let again = self.submit(prompts[1], most, drawn, true)?;
        same(&self.wait(again, Finish::Length)?, &other)?;
        let seed = self.submit(prompts[1], most, Sampling { seed: 8, ..drawn }, true)?;
        if self.wait(seed, Finish::Length)? == other || other == alone[1] {
            return Err(format!("{other:?} is drawn by no seed"));
        }
        // A token that ends answers, wherever it comes first, and does not when that is not asked for.
        let comes = |token: u32| alone[0].iter().position(|t| *t == token).unwrap_or(0);
        let at = alone[0].iter().map(|token| comes(*token)).max().unwrap_or(0);
        let end = golden.folder.join("generation_config.json");
        fs::write(&end, format!("{{\"eos_token_id\": [96, {}]}}", alone[0][at])).map_err(|e| e.to_string())?;
        self.loaded(golden, "f32")?;
        fs::remove_file(&end).map_err(|e| e.to_string())?;
        let id = self.submit(prompts[0], most, Sampling::default(), false)?;
        same(&self.wait(id, Finish::Stop)?, &alone[0][..=at])?;
        same(&self.greedy(prompts[0], most)?, &alone[0])
    }

    /// A request that is cancelled ends at once, and those beside it go on; one that cannot be taken fails alone.
    pub fn check_cancel(&mut self, golden: &Golden) -> Result<(), String> {
        self.loaded(golden, "f32")?;
        let (one, other) = (&golden.prompts[1].ids, &golden.prompts[2].ids[..7]);
        let (most, fewer) = (300, 40);
        let alone = self.greedy(other, fewer)?;
        let waits = self.submit(&other[..3], most, Sampling::default(), true)?;
        let done = self.ask(&Ask::Cancel { request: waits })?;
        let cut = self.wait(waits, Finish::Cancelled)?;
        let (runs, beside) =
            (self.submit(one, most, Sampling::default(), true)?, self.submit(other, fewer, Sampling::default(), true)?);
        self.until(runs, 2)?;
        let second = self.ask(&Ask::Cancel { request: runs })?;
        let ids = self.wait(runs, Finish::Cancelled)?;
        if cut.len() >= most || ids.len() < 2 || ids.len() >= most || done != Tell::Done || second != Tell::Done {
            return Err(format!("{} and {} tokens, {done:?}, {second:?}", cut.len(), ids.len()));
        }
        same(&self.wait(beside, Finish::Length)?, &alone)?;
        for prompt in [&[][..], &[97], &[1, 5, u32::MAX]] {
            let id = self.submit(prompt, 3, Sampling::default(), true)?;
            exactly(0, self.wait(id, Finish::Failed)?)?;
        }
        same(&self.greedy(other, fewer)?, &alone)?;
        match self.ask(&Ask::Stats)? {
            Tell::Stats(Stats { steps: Some(steps), memory_bytes: Some(bytes), .. })
                if steps > 50 && bytes > 1 << 16 =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    }

    /// What it does not have is refused, by name, and what it had loaded before does not answer in its place.
    pub fn check_refusals(&mut self, golden: &Golden) -> Result<(), String> {
        let refused = |told: Tell, kind: RefusalKind, word: &str| match told {
            Tell::Refused(Refusal { kind: k, why, .. }) if k == kind && why.contains(word) => Ok(()),
            other => Err(format!("{other:?}, not {kind:?} for {word}")),
        };
        refused(self.load(&golden.folder, "int4")?, RefusalKind::Unsupported, "int4")?;
        refused(
            self.load(Path::new("/nonexistent/model"), "f32")?,
            RefusalKind::Failed,
            "/nonexistent/model/config.json",
        )?;
        let path = golden.folder.join("config.json");
        let config = fs::read_to_string(&path).map_err(|e| e.to_string())?;
        for (from, to, word) in [
            ("LlamaForCausalLM", "FalconForCausalLM", "FalconForCausalLM"),
            ("\"rope_scaling\": null", "\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0}", "yarn"),
            ("\"max_position_embeddings\": 512", "\"max_position_embeddings\": 128", "128"),
        ] {
            if !config.contains(from) {
                return Err(format!("no {from} in {config}"));
            }
            fs::write(&path, config.replace(from, to)).map_err(|e| e.to_string())?;
            refused(self.load(&golden.folder, "f32")?, RefusalKind::Unsupported, word)?;
        }
        // Weights of another shape than the configuration says.
        fs::write(&path, config.replace("\"vocab_size\": 97", "\"vocab_size\": 96")).map_err(|e| e.to_string())?;
        refused(self.load(&golden.folder, "f32")?, RefusalKind::Failed, "")?;
        fs::write(&path, config).map_err(|e| e.to_string())?;
        let id = self.submit(&[1], 1, Sampling::default(), true)?;
        exactly(0, self.wait(id, Finish::Failed)?)?;
        self.loaded(golden, "f32")?;
        self.greedy(&[1], 3).map(drop)
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn exactly(count: usize, ids: Vec<u32>) -> Result<Vec<u32>, String> {
    if ids.len() == count { Ok(ids) } else { Err(format!("{} tokens, not {count}: {ids:?}", ids.len())) }
}

fn same(found: &[u32], wanted: &[u32]) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{found:?}, not {wanted:?}")) }
}

/// A small random model in a folder of its own, and what transformers computes of it in f32 (`scripts/golden.py`).
pub struct Golden {
    name: String,
    /// The folder, as Hugging Face has it.
    pub folder: PathBuf,
    prompts: Vec<Prompt>,
}

struct Prompt {
    ids: Vec<u32>,
    rms: f64,
    rows: Vec<usize>,
    logits: Vec<Vec<f64>>,
    tokens: Vec<u32>,
    margins: Vec<f64>,
}

impl Drop for Golden {
    fn drop(&mut self) {
        let _ = self.folder.parent().map(fs::remove_dir_all);
    }
}

impl Golden {
    /// By its name in `program/tests/golden/models.json`.
    pub fn new(name: &str) -> io::Result<Golden> {
        let wrong = |why: &str| io::Error::other(format!("{name}: {why}"));
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../program/tests/golden/models.json");
        let all: Value = serde_json::from_str(&fs::read_to_string(file)?)?;
        let held = all["models"].get(name).ok_or_else(|| wrong("no such model"))?;
        let place = unique_folder()?;
        let config = place.join("config.json");
        fs::write(&config, held["config"].to_string())?;
        let (model, _) = Model::load(&config.to_string_lossy()).map_err(io::Error::other)?;
        let (Some(seed), Some(dtype)) = (held["seed"].as_u64(), model.dtype) else {
            return Err(wrong("no seed or dtype"));
        };
        let folder = place.join("model");
        weights::write(&model, seed, dtype, &folder, |_, _| {}).map_err(io::Error::other)?;
        let prompts = held["prompts"].as_array().ok_or_else(|| wrong("no prompts"))?;
        let prompts = prompts.iter().map(prompt).collect::<Result<Vec<_>, _>>()?;
        Ok(Golden { name: name.into(), folder, prompts })
    }

    /// Without its long prompts, which take most of the time.
    pub fn short(mut self) -> Golden {
        self.prompts.retain(|prompt| prompt.ids.len() < 100);
        self
    }
}

fn prompt(held: &Value) -> serde_json::Result<Prompt> {
    let of = |key: &str| held[key].clone();
    Ok(Prompt {
        ids: serde_json::from_value(of("ids"))?,
        rms: serde_json::from_value(of("rms"))?,
        rows: serde_json::from_value(of("rows"))?,
        logits: serde_json::from_value(of("logits"))?,
        tokens: serde_json::from_value(of("tokens"))?,
        margins: serde_json::from_value(of("margins"))?,
    })
}

fn unique_folder() -> io::Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let unique = format!("jitune-engine-check-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let folder = std::env::temp_dir().join(unique);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
