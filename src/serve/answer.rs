//! Answers in the forms of both APIs, whole or in chunks.

use super::api::Form;
use super::refusal::Refusal;
use super::running::{Piece, Running, Usage};
use crate::engine::Logprobs;
use crate::tokenizer::Tokenizer;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the answers to one job have in common.
pub(super) struct Writer {
    pub form: Form,
    /// The answer's name.
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Whether tokens are told by their ids too.
    pub ids: bool,
    /// Whether log-probabilities name tokens by their ids.
    pub named: bool,
    /// Whether log-probabilities are told.
    pub logprobs: bool,
    /// Whether a stream ends with what was used.
    pub usage: bool,
    /// Whether each answer has begun.
    pub begun: Vec<bool>,
}

impl Writer {
    fn kind(&self, chunk: bool) -> &'static str {
        match (self.form, chunk) {
            (Form::Completion, _) => "text_completion",
            (Form::Chat, false) => "chat.completion",
            (Form::Chat, true) => "chat.completion.chunk",
        }
    }

    fn envelope(&self, chunk: bool, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": self.kind(chunk), "created": self.created, "model": self.model, "choices": choices,
        })
    }

    /// Whole answers, in their order, as text.
    pub async fn whole(self, mut running: Running) -> Result<Vec<u8>, Refusal> {
        let mut all: Vec<Whole> = self.begun.iter().map(|_| Whole::default()).collect();
        while let Some(piece) = running.next().await {
            let piece = piece?;
            let Some(whole) = all.get_mut(piece.answer) else { continue };
            if self.logprobs {
                whole.told.push(&piece);
            }
            whole.text += &piece.text;
            whole.ids.push(piece.token);
            whole.finish = piece.finish.map(|r| r.name());
        }
        let usage = running.usage;
        // Naming many tokens takes long.
        let written = tokio::task::spawn_blocking(move || self.written(&all, usage));
        written.await.map_err(|e| Refusal::failed(format!("the answer cannot be written: {e}")))?
    }

    fn written(&self, all: &[Whole], usage: Usage) -> Result<Vec<u8>, Refusal> {
        let choices = all.iter().enumerate().map(|(index, whole)| {
            let message = || json!({ "role": "assistant", "content": whole.text, "refusal": null });
            Choice {
                index,
                text: (self.form == Form::Completion).then_some(&whole.text),
                message: (self.form == Form::Chat).then(message),
                logprobs: (!whole.told.tokens.is_empty()).then_some(Joined { writer: self, told: &whole.told }),
                finish_reason: whole.finish,
                token_ids: self.ids.then_some(&whole.ids),
            }
        });
        let answer = Answer {
            id: &self.id,
            object: self.kind(false),
            created: self.created,
            model: &self.model,
            choices: choices.collect(),
            usage: used(usage),
        };
        serde_json::to_vec(&answer).map_err(|e| Refusal::failed(e.to_string()))
    }

    /// The chunk of a token, behind the one that begins a chat's answer where this does.
    pub fn chunks(&mut self, piece: Piece) -> Vec<Value> {
        let mut told = Told::default();
        if self.logprobs {
            told.push(&piece);
        }
        let begins = self.begun.get_mut(piece.answer).is_some_and(|begun| !std::mem::replace(begun, true));
        let logprobs = (!told.tokens.is_empty()).then_some(Joined { writer: self, told: &told });
        let (index, finish) = (piece.answer, piece.finish.map(|r| r.name()));
        let mut list = Vec::with_capacity(2);
        let mut choice = match self.form {
            Form::Completion => json!({ "index": index, "text": piece.text, "logprobs": logprobs }),
            Form::Chat => {
                if begins {
                    let delta = json!({ "role": "assistant", "content": "" });
                    list.push(json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null }));
                }
                json!({ "index": index, "delta": { "content": piece.text }, "logprobs": logprobs })
            }
        };
        choice["finish_reason"] = json!(finish);
        if self.ids {
            choice["token_ids"] = json!([piece.token]);
        }
        list.push(choice);
        let chunk = |choice| {
            let mut chunk = self.envelope(true, vec![choice]);
            if self.usage {
                chunk["usage"] = Value::Null;
            }
            chunk
        };
        list.into_iter().map(chunk).collect()
    }

    /// The last chunk of a stream, where it was asked for.
    pub fn last(&self, usage: Usage) -> Option<Value> {
        let mut chunk = self.envelope(true, Vec::new());
        chunk["usage"] = used(usage);
        self.usage.then_some(chunk)
    }

    fn name(&self, id: i32) -> String {
        match self.tokenizer.as_deref().filter(|_| !self.named).map(|t| t.token(id)) {
            Some(Ok(text)) => text,
            // As vLLM names tokens without a text, and where it is asked to.
            _ => format!("token_id:{id}"),
        }
    }

    /// A token as a chat's answer tells of it.
    fn entry(&self, id: i32, logprob: f32) -> Entry {
        let token = self.name(id);
        let bytes = self.tokenizer.as_deref().and_then(|t| t.bytes(id).ok());
        let bytes = bytes.unwrap_or_else(|| token.as_bytes().to_vec());
        Entry { token, logprob, bytes, top_logprobs: None }
    }
}

#[derive(serde::Serialize)]
struct Answer<'w> {
    id: &'w str,
    object: &'static str,
    created: u64,
    model: &'w str,
    choices: Vec<Choice<'w>>,
    usage: Value,
}

#[derive(serde::Serialize)]
struct Choice<'w> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'w String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<Value>,
    logprobs: Option<Joined<'w>>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'w Vec<i32>>,
}

#[derive(serde::Serialize)]
struct Entry {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<Entry>>,
}

#[derive(Default)]
struct Whole {
    text: String,
    ids: Vec<i32>,
    told: Told,
    finish: Option<&'static str>,
}

/// What is told of the probabilities of an answer's tokens: ids until it is written, since names take a hundred times the memory.
#[derive(Default)]
struct Told {
    /// Each token, its log-probability, and the characters of the answer before it.
    tokens: Vec<(i32, f32, usize)>,
    /// The most likely tokens of all places, one place after the other, and where those of each end.
    top: Vec<(i32, f32)>,
    ends: Vec<usize>,
}

impl Told {
    fn push(&mut self, piece: &Piece) {
        let Some(Logprobs { chosen, top }) = &piece.logprobs else { return };
        self.tokens.push((piece.token, *chosen, piece.offset));
        self.top.extend(top);
        self.ends.push(self.top.len());
    }

    /// The most likely tokens of a place.
    fn top(&self, at: usize) -> &[(i32, f32)] {
        let begin = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.top[begin..self.ends[at]]
    }
}

/// What is told, as the form has it; names are made as they are written.
struct Joined<'w> {
    writer: &'w Writer,
    told: &'w Told,
}

impl Serialize for Joined<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Joined { writer, told } = self;
        let count = told.tokens.len();
        match writer.form {
            Form::Completion => {
                let mut map = serializer.serialize_map(Some(4))?;
                map.serialize_entry("text_offset", &Each(count, |i: usize| told.tokens[i].2))?;
                map.serialize_entry("token_logprobs", &Each(count, |i: usize| told.tokens[i].1))?;
                map.serialize_entry("tokens", &Each(count, |i: usize| writer.name(told.tokens[i].0)))?;
                // The most likely tokens and the chosen one; those of one name are one.
                let top = |i: usize| {
                    let (id, chosen, _) = told.tokens[i];
                    let all = told.top(i).iter().copied().chain([(id, chosen)]);
                    all.map(|(id, value)| (writer.name(id), value)).collect::<BTreeMap<_, _>>()
                };
                map.serialize_entry("top_logprobs", &Each(count, top))?;
                map.end()
            }
            Form::Chat => {
                let one = |i: usize| {
                    let (id, chosen, _) = told.tokens[i];
                    let top = told.top(i).iter().map(|(id, value)| writer.entry(*id, *value)).collect();
                    Entry { top_logprobs: Some(top), ..writer.entry(id, chosen) }
                };
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("content", &Each(count, one))?;
                map.serialize_entry("refusal", &Value::Null)?;
                map.end()
            }
        }
    }
}

/// So many things, each made as it is written.
struct Each<F>(usize, F);

impl<T: Serialize, F: Fn(usize) -> T> Serialize for Each<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((0..self.0).map(&self.1))
    }
}

fn used(usage: Usage) -> Value {
    let Usage { prompt, cached, answer } = usage;
    json!({
        "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer,
        "prompt_tokens_details": { "cached_tokens": cached },
    })
}
