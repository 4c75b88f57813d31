//! Answers in the forms of both APIs, whole or in chunks.

use super::api::Form;
use super::refusal::Refusal;
use super::running::{Piece, Running, Usage};
use crate::engine::Logprobs;
use crate::tokenizer::Tokenizer;
use serde_json::{Value, json};
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
    /// Characters of each answer so far, and whether it has begun.
    pub at: Vec<(usize, bool)>,
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

    /// Whole answers, in their order.
    pub async fn whole(mut self, mut running: Running) -> Result<Value, Refusal> {
        let mut all: Vec<Whole> = self.at.iter().map(|_| Whole::default()).collect();
        while let Some(piece) = running.next().await {
            let piece = piece?;
            let logprobs = self.logprobs(&piece);
            let Some(whole) = all.get_mut(piece.answer) else { continue };
            whole.text += &piece.text;
            whole.ids.push(piece.token);
            whole.logprobs.extend(logprobs);
            whole.finish = piece.finish.map(|r| r.name());
        }
        let choices = all.into_iter().enumerate().map(|(index, whole)| {
            let told = !whole.logprobs.is_empty();
            let logprobs = if told { self.joined(whole.logprobs) } else { Value::Null };
            let mut choice = match self.form {
                Form::Completion => json!({ "index": index, "text": whole.text, "logprobs": logprobs }),
                Form::Chat => {
                    let message = json!({ "role": "assistant", "content": whole.text, "refusal": null });
                    json!({ "index": index, "message": message, "logprobs": logprobs })
                }
            };
            choice["finish_reason"] = json!(whole.finish);
            if self.ids {
                choice["token_ids"] = json!(whole.ids);
            }
            choice
        });
        let mut answer = self.envelope(false, choices.collect());
        answer["usage"] = used(running.usage);
        Ok(answer)
    }

    /// The chunk of a token, behind the one that begins a chat's answer where this does.
    pub fn chunks(&mut self, piece: Piece) -> Vec<Value> {
        let logprobs = self.logprobs(&piece);
        let logprobs = logprobs.map_or(Value::Null, |one| self.joined(vec![one]));
        let begins = self.at.get_mut(piece.answer).is_some_and(|(_, begun)| !std::mem::replace(begun, true));
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

    /// What is told of a token's probability, and counts its characters.
    fn logprobs(&mut self, piece: &Piece) -> Option<Told> {
        let (at, _) = self.at.get_mut(piece.answer)?;
        let offset = *at;
        *at += piece.text.chars().count();
        let Logprobs { chosen, top } = piece.logprobs.as_ref().filter(|_| self.logprobs)?;
        let name = |id: i32| match self.tokenizer.as_deref().filter(|_| !self.named).map(|t| t.token(id)) {
            Some(Ok(text)) => text,
            // As vLLM names tokens without a text, and where it is asked to.
            _ => format!("token_id:{id}"),
        };
        let top = top.iter().map(|(id, value)| (name(*id), *value)).collect();
        Some(Told { token: name(piece.token), logprob: *chosen, top, offset })
    }

    fn joined(&self, list: Vec<Told>) -> Value {
        match self.form {
            Form::Completion => json!({
                "text_offset": list.iter().map(|t| t.offset).collect::<Vec<_>>(),
                "token_logprobs": list.iter().map(|t| t.logprob).collect::<Vec<_>>(),
                "tokens": list.iter().map(|t| &t.token).collect::<Vec<_>>(),
                "top_logprobs": list.iter().map(Told::map).collect::<Vec<_>>(),
            }),
            Form::Chat => {
                let one = |token: &str, logprob: f32| json!({ "token": token, "logprob": logprob, "bytes": token.as_bytes() });
                let each = list.iter().map(|told| {
                    let mut value = one(&told.token, told.logprob);
                    value["top_logprobs"] = told.top.iter().map(|(token, logprob)| one(token, *logprob)).collect();
                    value
                });
                json!({ "content": each.collect::<Vec<_>>(), "refusal": null })
            }
        }
    }
}

#[derive(Default)]
struct Whole {
    text: String,
    ids: Vec<i32>,
    logprobs: Vec<Told>,
    finish: Option<&'static str>,
}

/// What is told of a token's probability.
struct Told {
    token: String,
    logprob: f32,
    top: Vec<(String, f32)>,
    /// Characters of the answer before it.
    offset: usize,
}

impl Told {
    /// The most likely tokens and the chosen one, as a completion has them.
    fn map(&self) -> Value {
        let chosen = (self.token.clone(), self.logprob);
        let all = self.top.iter().chain([&chosen]).map(|(token, logprob)| (token.clone(), json!(logprob)));
        Value::Object(all.collect())
    }
}

fn used(usage: Usage) -> Value {
    let Usage { prompt, cached, answer } = usage;
    json!({
        "prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer,
        "prompt_tokens_details": { "cached_tokens": cached },
    })
}
