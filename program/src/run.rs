//! `jitune run`: a model's answer to a prompt.

use super::opened::{ModelArgs, failed};
use super::{CliError, files, out, table};
use jitune::engine::{Engine, Event, Finish, Request, Sampling};
use jitune::file::Staged;
use jitune::model::Model;
use jitune::tokenizer::{Message, Stream, Tokenizer, TokenizerError};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Arguments.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("asked").required(true)))]
#[command(after_help = "Examples:\n  jitune run --model ./my-model --prompt 'Why is the sky blue?'\n  \
    jitune run --model ./my-model.gguf --raw --prompt 'Once upon a time' --max-tokens 200\n  \
    jitune run --model ./my-model --ids 1,5,7 --ignore-eos --json --logits logits.f32\n\n\
    Runs on the winners of the database, or of a bundle. What is not tuned runs on portable kernels, which are compiled \
    first where they are not there yet; `jitune tune --model` finds better ones.")]
pub struct Args {
    #[command(flatten)]
    open: ModelArgs,
    /// The prompt: what a user says to the model, put into its chat template.
    #[arg(long, value_name = "TEXT", group = "asked")]
    prompt: Option<String>,
    /// Take the prompt as it is, without the chat template; special tokens in it are read as such.
    #[arg(long, requires = "prompt")]
    raw: bool,
    /// The prompt, as the ids of its tokens; no tokenizer is needed.
    #[arg(long, value_name = "ID,…", value_delimiter = ',', group = "asked", allow_hyphen_values = true)]
    ids: Vec<i32>,
    /// Most tokens of the answer, which ends where prompt and answer are as long as the model was made for.
    #[arg(long, default_value_t = 64, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Go on after the model's end tokens.
    #[arg(long)]
    ignore_eos: bool,
    /// Write the logits of every token of the prompt to this file, row by row, as little-endian f32.
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// How tokens are chosen.
#[derive(clap::Args)]
struct SamplingArgs {
    /// Logits are divided by it before a token is drawn; 0 takes the most likely token each time.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Draw among so many of the most likely tokens alone; 0 for all.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    top_k: i32,
    /// Draw among the fewest of the most likely tokens whose probabilities add up to this.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// Leave out tokens of less than this share of the most likely one's probability.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,
    /// Divide the logits of tokens that were said already by it, those below zero multiply.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// What is drawn follows from it: the same seed gives the same answer.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
}

impl SamplingArgs {
    fn sampling(&self) -> Sampling {
        let SamplingArgs { temperature, top_k, top_p, min_p, repetition_penalty, seed } = *self;
        Sampling { repetition_penalty, temperature, top_k, top_p, min_p, seed, logprobs: None }
    }
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let staged = |file: &PathBuf| -> Result<_, CliError> {
        args.open.store.keeps_out(file)?;
        Ok((file.clone(), Staged::create(file).map_err(files::io(file))?))
    };
    // What is there is kept until there is something to put in its place.
    let staged = args.logits.as_ref().map(staged).transpose()?;
    let (opened, path) = (args.open.open()?, args.open.path());
    let ends = if args.ignore_eos { Vec::new() } else { Model::ends(&path)? };
    let (tokenizer, ids) = match &args.prompt {
        Some(text) => {
            let tokenizer = Arc::new(Tokenizer::open(&path).map_err(unreadable)?);
            let ids = encoded(&tokenizer, text, args.raw).map_err(unreadable)?;
            (Some(tokenizer), ids)
        }
        None => (None, args.ids.clone()),
    };
    let window = usize::try_from(opened.model.max_position_embeddings).unwrap_or(usize::MAX);
    let left = window.saturating_sub(ids.len());
    if left == 0 {
        let (name, count) = (&opened.model.name, ids.len());
        return Err(CliError::Usage(format!(
            "the prompt has {count} tokens, and {name} was made for {window} of prompt and answer together: shorten the prompt"
        )));
    }
    let (most, logits) = (left.min(args.max_tokens as usize), args.logits.is_some());
    let mut options = opened.options((ids.len() + most) as i64);
    options.logits = logits;
    let sampling = args.sampling.sampling();
    let request = Request { prompt: ids, most, ends: ends.clone(), sampling, logits };
    // Before all that takes long.
    request.check(opened.model.vocab).map_err(failed)?;
    let engine = opened.engine(options)?;
    let mut stream = tokenizer.as_ref().map(Stream::new);
    let begun = Instant::now();
    let (mut said, mut rows, mut why) = (Said::default(), Vec::new(), Finish::Cancelled);
    // Times are the engine's: tokens may come faster than they are printed.
    let (say, heard) = std::sync::mpsc::channel();
    engine.submit_to(request, move |event| say.send((begun.elapsed(), event)).is_ok()).map_err(failed)?;
    for (now, event) in heard {
        match event {
            Event::Logits(some) => rows.extend(some.iter().flat_map(|v| v.to_le_bytes())),
            Event::Token(token) => {
                said.ids.push(token.id);
                (said.first, said.last) = (said.first.or(Some(now)), now);
                // What ends an answer is no part of it.
                let Some(stream) = stream.as_mut().filter(|_| !ends.contains(&token.id)) else { continue };
                let piece = stream.push(token.id).map_err(unreadable)?;
                if !args.json {
                    out::piece(&piece);
                }
                said.text += &piece;
            }
            Event::End(end) => match end.why {
                Finish::Failed(why) => return Err(CliError::Partly(why)),
                end => why = end,
            },
        }
    }
    if let Some(why) = engine.failure() {
        return Err(CliError::Partly(why));
    }
    if let Some((file, mut staged)) = staged {
        staged.write_all(&rows).and_then(|()| staged.commit()).map_err(files::io(&file))?;
    }
    show(args, &engine, &said, &why, tokenizer.is_some());
    if why == Finish::Length && most < args.max_tokens as usize {
        err!(
            "jitune: note: the answer ends here: prompt and answer are {window} tokens, as many as the model was made for"
        );
    }
    Ok(())
}

/// An answer.
#[derive(Default)]
struct Said {
    ids: Vec<i32>,
    text: String,
    /// From the request to the first token, and to the last.
    first: Option<Duration>,
    last: Duration,
}

fn encoded(tokenizer: &Tokenizer, text: &str, raw: bool) -> Result<Vec<i32>, TokenizerError> {
    if raw {
        return tokenizer.encode(text, true);
    }
    let chat = tokenizer.chat(&[Message { role: "user".into(), content: text.into() }])?;
    // The template has what begins a text.
    tokenizer.encode(&chat, false)
}

fn unreadable(e: TokenizerError) -> CliError {
    match e {
        TokenizerError::Io { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
            CliError::Usage(format!(
                "{}: there is none, so texts become no tokens; --ids takes a prompt that is tokens",
                path.display()
            ))
        }
        other => CliError::Usage(other.to_string()),
    }
}

fn show(args: &Args, engine: &Engine, said: &Said, why: &Finish, text: bool) {
    let milliseconds = |d: Duration| d.as_secs_f64() * 1e3;
    let (count, first) = (said.ids.len(), said.first.unwrap_or(said.last));
    let each = (count > 1).then(|| milliseconds(said.last - first) / (count - 1) as f64);
    let rate = count as f64 / said.last.as_secs_f64();
    let bytes = engine.plan().bytes();
    if args.json {
        let line = serde_json::json!({
            "ids": said.ids, "text": text.then_some(&said.text),
            "finish": if *why == Finish::Stop { "stop" } else { "length" }, "ttft_ms": milliseconds(first), "tpot_ms": each,
            "tokens_per_s": rate, "memory_bytes": bytes,
        });
        out!("{line}");
    } else if text {
        out!("");
    } else {
        out!("{}", said.ids.iter().map(i32::to_string).collect::<Vec<_>>().join(","));
    }
    let each = each.map_or_else(String::new, |ms| format!(", {ms:.2} ms a token after it"));
    err!(
        "{count} tokens: the first after {:.1} ms{each}, {rate:.1} tokens/s; {} bytes on the device",
        milliseconds(first),
        table::grouped(bytes),
    );
    args.open.say_portable(engine);
}
