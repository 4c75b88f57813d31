//! What clients ask for: the bodies of both APIs, read to one [`Job`].

use super::fields::{Fields, each, ids, no_text, text};
use super::refusal::Refusal;
use crate::engine::{Request, Sampling};
use crate::tokenizer::{Message, Tokenizer, TokenizerError};
use axum::http::StatusCode;
use serde_json::Value;
use std::sync::LazyLock;

/// Log-probabilities that are told of all answers to a request: each is kept until it is written.
const MOST_TOLD: u64 = 4 << 20;
/// Most answers to one request: prompts times `n`.
const MOST_ANSWERS: usize = 128;
/// Most answers to one prompt.
const MOST_EACH: i64 = 16;
/// Most texts that end an answer, as in OpenAI's API, and their most bytes: as much is held back of a stream.
const MOST_STOPS: usize = 4;
const MOST_STOP_BYTES: usize = 1024;
/// Most tokens that end an answer: each token of it is looked for among them.
const MOST_STOP_TOKENS: usize = 128;
/// Most of the likely tokens whose log-probabilities are told, as in OpenAI's API.
const MOST_LOGPROBS: i64 = 20;

/// Which of OpenAI's APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Completion,
    Chat,
}

/// What is served, as far as requests are read against it.
pub(super) struct Served<'s> {
    pub name: &'s str,
    pub tokenizer: Option<&'s Tokenizer>,
    /// Most bytes of text that a token stands for.
    pub longest: usize,
    /// Tokens that end an answer.
    pub ends: &'s [i32],
    pub vocab: i64,
    pub context: i64,
    /// Most requests that wait.
    pub queue: usize,
}

/// What one HTTP request asks of the engine, and how it wants the answers.
pub(super) struct Job {
    /// A request for each answer: all of the first prompt first.
    pub requests: Vec<Request>,
    /// Answers to each prompt.
    pub each: usize,
    pub stops: Vec<String>,
    pub stream: bool,
    /// Whether a stream ends with what was used.
    pub usage: bool,
    /// Whether tokens are told by their ids too.
    pub ids: bool,
    /// Whether log-probabilities name tokens by their ids, and not by their texts.
    pub named: bool,
}

/// Every parameter that is heard.
const KNOWN: &[&str] = &[
    "add_special_tokens",
    "ignore_eos",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "min_p",
    "model",
    "n",
    "prompt",
    "repetition_penalty",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "seed",
    "stop",
    "stop_token_ids",
    "stream",
    "stream_options",
    "temperature",
    "tokens",
    "top_k",
    "top_logprobs",
    "top_p",
];

/// What is refused unless it asks for nothing, since an answer that passes over it would be another than was asked for: of OpenAI's
/// API, and of what other servers add to it.
const NEUTRAL: &[(&str, IsNeutral)] = &[
    ("allowed_token_ids", empty),
    ("audio", empty),
    ("bad_words", empty),
    ("best_of", one),
    ("chat_template", never),
    ("chat_template_kwargs", empty),
    ("continue_final_message", off),
    ("documents", empty),
    ("dry_multiplier", zero),
    ("dynatemp_range", zero),
    ("early_stopping", off),
    ("ebnf", empty),
    ("echo", off),
    ("epsilon_cutoff", zero),
    ("eta_cutoff", zero),
    ("frequency_penalty", zero),
    ("function_call", |v| v == "none" || v == "auto"),
    ("functions", empty),
    ("grammar", empty),
    ("guided_choice", empty),
    ("guided_grammar", empty),
    ("guided_json", never),
    ("guided_regex", empty),
    ("include_stop_str_in_output", off),
    ("json_schema", never),
    ("length_penalty", one),
    ("logit_bias", empty),
    ("logits_processors", empty),
    ("min_tokens", zero),
    ("mirostat", zero),
    ("modalities", |v| v == &serde_json::json!(["text"])),
    ("no_repeat_ngram_size", zero),
    ("presence_penalty", zero),
    ("prompt_logprobs", never),
    ("reasoning_effort", |v| v == "none"),
    ("regex", empty),
    ("response_format", |v| v["type"] == "text"),
    ("skip_special_tokens", on),
    ("structural_tag", never),
    ("structured_outputs", empty),
    ("suffix", empty),
    ("tfs_z", one),
    ("tool_choice", |v| v == "none" || v == "auto"),
    ("tools", empty),
    ("top_a", zero),
    ("truncate_prompt_tokens", never),
    ("typical_p", one),
    ("use_beam_search", off),
    ("verbosity", |v| v == "medium"),
    ("web_search_options", never),
    ("xtc_probability", zero),
];

/// Those of a chat alone.
const NEUTRAL_OF_CHATS: &[(&str, IsNeutral)] = &[("add_generation_prompt", on), ("add_special_tokens", off)];

/// The names of all of them.
static NAMES: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let neutral = NEUTRAL.iter().chain(NEUTRAL_OF_CHATS).map(|(name, _)| *name);
    let mut names: Vec<&str> = KNOWN.iter().copied().chain(neutral).collect();
    names.sort_unstable();
    names.dedup();
    names
});

type IsNeutral = fn(&Value) -> bool;

fn never(_: &Value) -> bool {
    false
}

fn off(value: &Value) -> bool {
    value == &Value::Bool(false)
}

fn on(value: &Value) -> bool {
    value == &Value::Bool(true)
}

fn zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

impl Served<'_> {
    /// Reads a body. Takes as long as its text takes to become tokens, and `seed` where none is asked for.
    pub fn job(&self, form: Form, body: &[u8], seed: u64) -> Result<Job, Refusal> {
        let fields = Fields::read(body, &NAMES)?;
        self.check(&fields, form)?;
        let mut request = Request { sampling: sampling(form, &fields, seed)?, ..Request::default() };
        request.ends = fields.ids("stop_token_ids", self.vocab, MOST_STOP_TOKENS)?;
        if !fields.flag("ignore_eos", false)? {
            request.ends.extend(self.ends);
        }
        let most = self.most(form, &fields)?;
        let stops = self.stops(&fields)?;
        let (stream, usage) = (fields.flag("stream", false)?, usage(&fields)?);
        let ids = fields.flag("return_token_ids", false)?;
        let named = fields.flag("return_tokens_as_token_ids", false)?;
        let each = fields.integer("n", 1..=MOST_EACH)?.unwrap_or(1) as usize;
        let (name, prompts) = match form {
            Form::Completion => ("prompt", self.prompts(&fields)?),
            Form::Chat => ("messages", vec![self.chat(&fields)?]),
        };
        let limit = MOST_ANSWERS.min(self.queue);
        if prompts.len().saturating_mul(each) > limit {
            let all = prompts.len() * each;
            return Err(Refusal::param(name, format!("it asks for {all} answers, and {limit} are the most at a time")));
        }
        let mut requests = Vec::with_capacity(prompts.len() * each);
        for prompt in prompts {
            let left = self.left(name, prompt.len())?;
            let most = most.unwrap_or(left);
            if most > left {
                let (count, context) = (prompt.len(), self.context);
                let text = format!("{count} tokens and {most} more are over the context of {context}");
                return Err(Refusal::context(name, text));
            }
            for number in 0..each {
                let sampling = Sampling { seed: request.sampling.seed.wrapping_add(number as u64), ..request.sampling };
                requests.push(Request { prompt: prompt.clone(), most, sampling, ..request.clone() });
            }
        }
        let top = request.sampling.logprobs.map_or(0, |top| top as u64 + 1);
        let tokens: u64 = requests.iter().map(|r| r.most as u64).sum();
        if tokens.saturating_mul(top) > MOST_TOLD {
            let text = format!(
                "{tokens} tokens with {top} log-probabilities each are more than the {MOST_TOLD} that are told at a time; ask for fewer \
                 (max_tokens, n)"
            );
            return Err(Refusal::param("logprobs", text));
        }
        Ok(Job { requests, each, stops, stream, usage: stream && usage, ids: ids || self.tokenizer.is_none(), named })
    }

    /// The tokens of a text or of a chat, for `/tokenize`.
    pub fn tokenize(&self, body: &[u8]) -> Result<Vec<i32>, Refusal> {
        let fields = Fields::read(body, &NAMES)?;
        let form = if fields.raw("messages").is_some() { Form::Chat } else { Form::Completion };
        self.check(&fields, form)?;
        match form {
            Form::Chat => self.chat(&fields),
            Form::Completion => {
                let text = fields.text("prompt")?.ok_or_else(|| Refusal::param("prompt", "it is missing"))?;
                self.encode("prompt", &text, fields.flag("add_special_tokens", true)?)
            }
        }
    }

    /// The text of tokens, for `/detokenize`.
    pub fn detokenize(&self, body: &[u8]) -> Result<String, Refusal> {
        let fields = Fields::read(body, &NAMES)?;
        self.check(&fields, Form::Completion)?;
        if fields.raw("tokens").is_none() {
            return Err(Refusal::param("tokens", "it is missing"));
        }
        let ids = fields.ids("tokens", self.vocab, self.context as usize)?;
        self.tokenizer("tokens")?.decode(&ids).map_err(|e| Refusal::param("tokens", e))
    }

    /// Whether parameters are for this model, and ask for nothing that is not there.
    fn check(&self, fields: &Fields<'_>, form: Form) -> Result<(), Refusal> {
        if let Some(name) = fields.text("model")?.filter(|name| name != self.name) {
            return Err(self.unknown(&name));
        }
        let of_chats = if form == Form::Chat { NEUTRAL_OF_CHATS } else { &[] };
        NEUTRAL.iter().chain(of_chats).try_for_each(|(name, is_neutral)| fields.neutral(name, *is_neutral))
    }

    /// No such model.
    pub fn unknown(&self, name: &str) -> Refusal {
        let short: String = name.chars().take(100).collect();
        let text = format!("there is no model {short:?}; this server has {:?}", self.name);
        let refusal = Refusal::new(StatusCode::NOT_FOUND, Some("model_not_found"), text);
        Refusal { param: Some("model".into()), ..refusal }
    }

    fn tokenizer(&self, name: &str) -> Result<&Tokenizer, Refusal> {
        let none = || Refusal::param(name, "the model has no tokenizer; it takes a prompt as a list of tokens");
        self.tokenizer.ok_or_else(none)
    }

    /// Tokens that the context leaves for an answer.
    fn left(&self, name: &str, count: usize) -> Result<usize, Refusal> {
        let context = self.context as usize;
        match context.checked_sub(count) {
            _ if count == 0 => Err(Refusal::param(name, "it has no token")),
            None | Some(0) => {
                Err(Refusal::context(name, format!("{count} tokens leave nothing of the context of {context}")))
            }
            Some(left) => Ok(left),
        }
    }

    fn encode(&self, name: &str, text: &str, begin: bool) -> Result<Vec<i32>, Refusal> {
        let (tokenizer, context) = (self.tokenizer(name)?, self.context);
        // Long before it is known how many tokens they are.
        if text.len() / self.longest.max(1) > context as usize {
            let bytes = text.len();
            return Err(Refusal::context(name, format!("{bytes} bytes are more than {context} tokens, the context")));
        }
        tokenizer.encode(text, begin).map_err(|e| Refusal::param(name, e))
    }

    fn prompts(&self, fields: &Fields<'_>) -> Result<Vec<Vec<i32>>, Refusal> {
        let begin = fields.flag("add_special_tokens", true)?;
        let raw = fields.raw("prompt").ok_or_else(|| Refusal::param("prompt", "it is missing"))?;
        // A list of prompts, or of tokens: its first element says which.
        let many = raw.strip_prefix('[').is_some_and(|rest| rest.trim_start().starts_with(['"', '[']));
        if !many {
            return Ok(vec![self.prompt(raw, begin)?]);
        }
        let mut prompts = Vec::new();
        each(raw, |raw| {
            if prompts.len() == MOST_ANSWERS {
                return Err(Refusal::param("prompt", format!("{MOST_ANSWERS} prompts are the most at a time")));
            }
            prompts.push(self.prompt(raw, begin)?);
            Ok(())
        })?;
        Ok(prompts)
    }

    /// A text or a list of tokens.
    fn prompt(&self, raw: &str, begin: bool) -> Result<Vec<i32>, Refusal> {
        if let Some(text) = text(raw) {
            return self.encode("prompt", &text, begin);
        }
        let form = "it must be a text, a list of texts, a list of tokens, or a list of such lists";
        let (ids, count) = ids("prompt", raw, self.vocab, self.context as usize)?
            .ok_or_else(|| Refusal::param("prompt", no_text(raw, form)))?;
        self.left("prompt", count)?;
        Ok(ids)
    }

    fn chat(&self, fields: &Fields<'_>) -> Result<Vec<i32>, Refusal> {
        let mut messages = Vec::new();
        let listed = match fields.raw("messages") {
            None => false,
            Some(raw) => each(raw, |raw| {
                // A message is some tokens in any template.
                if messages.len() as i64 == self.context {
                    let text = format!("so many messages are over the context of {}", self.context);
                    return Err(Refusal::context("messages", text));
                }
                messages.push(message(raw)?);
                Ok(())
            })?,
        };
        if !listed || messages.is_empty() {
            return Err(Refusal::param("messages", "it must be a list of at least one message"));
        }
        let text = self.tokenizer("messages")?.chat(&messages).map_err(|e| match e {
            TokenizerError::NoTemplate => {
                Refusal::param("messages", "the model has no chat template; /v1/completions takes a prompt as it is")
            }
            other => Refusal::param("messages", other),
        })?;
        // The template has what begins a text.
        self.encode("messages", &text, false)
    }

    /// Most tokens of an answer, where the request says so.
    fn most(&self, form: Form, fields: &Fields<'_>) -> Result<Option<usize>, Refusal> {
        let range = 1..=self.context;
        let most = fields.integer("max_tokens", range.clone())?;
        let newer = match form {
            Form::Chat => fields.integer("max_completion_tokens", range)?,
            Form::Completion => None,
        };
        Ok(newer.or(most).map(|n| n as usize))
    }

    fn stops(&self, fields: &Fields<'_>) -> Result<Vec<String>, Refusal> {
        let Some(raw) = fields.raw("stop") else { return Ok(Vec::new()) };
        let form = format!("it must be a text, or a list of at most {MOST_STOPS}, of 1 to {MOST_STOP_BYTES} bytes");
        let bad = || Refusal::param("stop", &form);
        let mut stops = Vec::new();
        let mut one = |raw| {
            let stop = text(raw).ok_or_else(|| Refusal::param("stop", no_text(raw, &form)))?;
            if stop.is_empty() || stop.len() > MOST_STOP_BYTES {
                return Err(bad());
            }
            stops.push(stop.into_owned());
            if stops.len() > MOST_STOPS { Err(bad()) } else { Ok(()) }
        };
        if !each(raw, &mut one)? {
            one(raw)?;
        }
        if !stops.is_empty() {
            self.tokenizer("stop")?;
        }
        Ok(stops)
    }
}

/// How tokens are chosen. What a request does not say is neutral, as in OpenAI's API.
fn sampling(form: Form, fields: &Fields, seed: u64) -> Result<Sampling, Refusal> {
    let logprobs = match form {
        Form::Completion => fields.integer("logprobs", 0..=MOST_LOGPROBS)?,
        Form::Chat => {
            let (told, top) = (fields.flag("logprobs", false)?, fields.integer("top_logprobs", 0..=MOST_LOGPROBS)?);
            match top {
                Some(top) if top > 0 && !told => {
                    return Err(Refusal::param("top_logprobs", "it needs logprobs to be true"));
                }
                _ => told.then(|| top.unwrap_or(0)),
            }
        }
    };
    // vLLM's clients write -1 for all.
    let top_k = fields.integer("top_k", -1..=i64::from(i32::MAX))?.unwrap_or(0).max(0);
    Ok(Sampling {
        repetition_penalty: fields.number("repetition_penalty", 0.01..=100.0)?.unwrap_or(1.0),
        temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0),
        top_k: top_k as i32,
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
        seed: fields.seed("seed")?.unwrap_or(seed),
        logprobs: logprobs.map(|n| n as usize),
    })
}

fn usage(fields: &Fields<'_>) -> Result<bool, Refusal> {
    let Some(raw) = fields.raw("stream_options") else { return Ok(false) };
    let options = Fields::read(raw.as_bytes(), &["include_usage"]);
    let options = options.map_err(|_| Refusal::param("stream_options", "it must be an object"))?;
    options.flag("include_usage", false)
}

fn message(raw: &str) -> Result<Message, Refusal> {
    let bad = |why: &str| Refusal::param("messages", why);
    let message = Fields::read(raw.as_bytes(), &["role", "content"]).map_err(|_| bad("each must be an object"))?;
    let role = message.raw("role").unwrap_or_default();
    let role = text(role).ok_or_else(|| bad(no_text(role, "each has a role, which is a text")))?;
    let mut content = String::new();
    match message.raw("content") {
        Some(raw) => {
            let listed = each(raw, |raw| {
                let part = Fields::read(raw.as_bytes(), &["type", "text"]).ok();
                let of = |name| part.as_ref().and_then(|part| part.raw(name)).and_then(text);
                match (of("type").as_deref(), of("text")) {
                    (Some("text"), Some(text)) => content += &text,
                    _ => return Err(bad("each part of a content must be {\"type\": \"text\", \"text\": …}")),
                }
                Ok(())
            })?;
            if !listed {
                let form = "each content must be a text or a list of parts that are texts";
                content = text(raw).ok_or_else(|| bad(no_text(raw, form)))?.into_owned();
            }
        }
        None if role == "assistant" => (),
        None => return Err(bad("each has a content, but for an assistant's")),
    }
    Ok(Message { role: role.into_owned(), content })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVED: Served<'_> =
        Served { name: "m", tokenizer: None, longest: 1, ends: &[2], vocab: 97, context: 64, queue: 8 };

    fn job(body: &str) -> Result<Job, Refusal> {
        SERVED.job(Form::Completion, body.as_bytes(), 40)
    }

    #[test]
    fn a_body_becomes_requests() {
        let job = job(
            r#"{"model": "m", "prompt": [[1, 5], [7]], "n": 2, "max_tokens": 9, "temperature": 0.5, "top_k": -1, "top_p": 0.9,
                "min_p": 0.1, "repetition_penalty": 1.25, "stop_token_ids": [3], "logprobs": 4, "stream": true, "seed": 6, "return_tokens_as_token_ids": true,
                "stream_options": {"include_usage": true}, "user": "x", "unknown": {"a": [1]}}"#,
        )
        .unwrap();
        assert!(job.stream && job.usage && job.ids && job.named && job.each == 2 && job.stops.is_empty());
        let prompts: Vec<&[i32]> = job.requests.iter().map(|r| &r.prompt[..]).collect();
        assert_eq!(prompts, [&[1, 5][..], &[1, 5], &[7], &[7]]);
        let sampling = Sampling {
            repetition_penalty: 1.25,
            temperature: 0.5,
            top_k: 0,
            top_p: 0.9,
            min_p: 0.1,
            seed: 7,
            logprobs: Some(4),
        };
        assert_eq!(job.requests[1].sampling, sampling);
        assert_eq!((&job.requests[3].ends[..], job.requests[3].most), (&[3, 2][..], 9));
    }

    #[test]
    fn what_is_not_said_is_neutral() {
        let job = job(r#"{"prompt": [1], "ignore_eos": true, "max_tokens": null}"#).unwrap();
        let [request] = &job.requests[..] else { panic!("{} requests", job.requests.len()) };
        assert_eq!((request.most, &request.ends[..], job.stream), (63, &[][..], false));
        assert_eq!(request.sampling, Sampling { temperature: 1.0, seed: 40, ..Sampling::default() });
    }

    /// All of it is kept until it is written.
    #[test]
    fn what_would_change_an_answer_is_refused_unless_it_asks_for_nothing() {
        let check = |form, name: &str, value: &str| {
            let body = format!("{{{name:?}: {value}}}");
            SERVED.check(&Fields::read(body.as_bytes(), &NAMES).unwrap(), form)
        };
        for (name, _) in NEUTRAL.iter().chain(NEUTRAL_OF_CHATS) {
            for value in [r#"{"type": "object"}"#, "7", "[\"a\"]"] {
                let refused = check(Form::Chat, name, value).unwrap_err();
                assert_eq!(refused.message, format!("{name}: it is not supported; leave it out"), "{value}");
            }
            assert_eq!(check(Form::Chat, name, "null"), Ok(()), "{name}");
        }
        for (name, value) in [
            ("add_generation_prompt", "true"),
            ("chat_template_kwargs", "{}"),
            ("frequency_penalty", "0"),
            ("logit_bias", "{}"),
            ("response_format", r#"{"type": "text"}"#),
            ("tool_choice", "\"auto\""),
            ("tools", "[]"),
            ("typical_p", "1.0"),
        ] {
            assert_eq!(check(Form::Chat, name, value), Ok(()), "{name}");
        }
        assert_eq!(check(Form::Completion, "add_special_tokens", "true"), Ok(()));
        assert!(check(Form::Chat, "add_special_tokens", "true").is_err());
    }

    #[test]
    fn what_is_told_of_tokens_has_a_bound() {
        let served = Served { context: 1 << 18, queue: 128, ..SERVED };
        let asked = |n: u32, told: u32| {
            let body = format!(r#"{{"prompt": [1], "n": {n}, "logprobs": {told}, "max_tokens": 200000}}"#);
            served.job(Form::Completion, body.as_bytes(), 1).map(|job| job.requests.len()).map_err(|e| e.message)
        };
        assert_eq!((asked(1, 19), asked(16, 0)), (Ok(1), Ok(16)));
        let refused = asked(16, 1).unwrap_err();
        assert!(refused.starts_with("logprobs: 3200000 tokens with 2 log-probabilities each"), "{refused}");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (body, why) in [
            (r#"{"model": "x", "prompt": [1]}"#, "there is no model \"x\"; this server has \"m\""),
            (r#"{"model": 1, "prompt": [1]}"#, "model: it must be a text"),
            (r#"{}"#, "prompt: it is missing"),
            (r#"{"prompt": "a"}"#, "prompt: the model has no tokenizer; it takes a prompt as a list of tokens"),
            (r#"{"prompt": []}"#, "prompt: it has no token"),
            (r#"{"prompt": [[1], []]}"#, "prompt: it has no token"),
            (r#"{"prompt": [97]}"#, "prompt: 97 is no token; the model's go from 0 to 96"),
            (r#"{"prompt": [1, "a"]}"#, "prompt: \"a\" is no token; the model's go from 0 to 96"),
            (r#"{"prompt": {"a": 1}}"#, "prompt: it must be a text, a list of texts, a list of tokens"),
            (r#"{"prompt": [[1], 2]}"#, "prompt: it must be a text, a list of texts, a list of tokens"),
            (r#"{"prompt": [1], "max_tokens": 64}"#, "prompt: 1 tokens and 64 more are over the context of 64"),
            (r#"{"prompt": [1], "max_tokens": 65}"#, "max_tokens: it must be a whole number from 1 to 64"),
            (r#"{"prompt": [1], "max_tokens": 0}"#, "max_tokens: it must be a whole number from 1 to 64"),
            (r#"{"prompt": [1], "temperature": 2.5}"#, "temperature: it must be a number from 0 to 2"),
            (r#"{"prompt": [1], "top_p": "1"}"#, "top_p: it must be a number from 0 to 1"),
            (r#"{"prompt": [1], "n": 17}"#, "n: it must be a whole number from 1 to 16"),
            (r#"{"prompt": [1], "n": 9}"#, "prompt: it asks for 9 answers, and 8 are the most at a time"),
            (r#"{"prompt": [1], "logprobs": true}"#, "logprobs: it must be a whole number from 0 to 20"),
            (
                r#"{"prompt": [1], "stop": ["a", "b", "c", "d", "e"]}"#,
                "stop: it must be a text, or a list of at most 4",
            ),
            (r#"{"prompt": [1], "stop": ""}"#, "stop: it must be a text"),
            (r#"{"prompt": [1], "stop": "a"}"#, "stop: the model has no tokenizer"),
            (r#"{"prompt": [1], "echo": true}"#, "echo: it is not supported; leave it out"),
            (r#"{"prompt": [1], "logit_bias": {"5": 1}}"#, "logit_bias: it is not supported; leave it out"),
            (r#"{"prompt": "\ud800"}"#, "prompt: it has half of a pair of surrogates"),
            (r#"{"prompt": ["\udfff"]}"#, "prompt: it has half of a pair of surrogates"),
            (r#"{"prompt": [1], "model": "\ud800"}"#, "model: it has half of a pair of surrogates"),
            (r#"{"prompt": [1], "stop": "\ud800"}"#, "stop: it has half of a pair of surrogates"),
            (r#"{"prompt": [1], "stream": 1}"#, "stream: it must be true or false"),
            (r#"{"prompt": [1], "stream_options": []}"#, "stream_options: it must be an object"),
        ] {
            let refused = job(body).err().unwrap_or_else(|| panic!("{body} is taken"));
            assert!(refused.message.starts_with(why), "{body}: {}", refused.message);
        }
        let long = format!(r#"{{"prompt": {:?}}}"#, vec![1; 64]);
        let refused = job(&long).err().unwrap();
        assert_eq!(refused.message, "prompt: 64 tokens leave nothing of the context of 64");
        assert_eq!((refused.code, refused.param.as_deref()), (Some("context_length_exceeded"), Some("prompt")));
    }
}
