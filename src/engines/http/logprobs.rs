//! Log-probabilities of the most likely tokens, which is what can be had of logits over HTTP.

use super::request::Dialect;
use super::wire::{Reply, said};
use super::{Logprob, Position, Server};
use crate::engines::process::Unanswered;
use jitune_peer::Refusal;
use serde_json::{Value, json};
use std::time::Duration;

/// How long the log-probabilities of one prompt may take.
const DEADLINE: Duration = Duration::from_secs(300);

impl Server {
    /// As the public method says.
    pub(super) fn ask_logprobs(&mut self, prompt: &[u32], n: usize) -> Result<Vec<Position>, Unanswered> {
        if prompt.is_empty() || n == 0 {
            return Err(Unanswered::Refused(Refusal::failed(
                "a prompt and a number of tokens of at least one are needed",
            )));
        }
        if self.takes_text() {
            let why = "it takes prompts as text alone, so that nothing says which tokens it computed on";
            return Err(Unanswered::Refused(Refusal::unsupported(why)));
        }
        let mut body = json!({
            "model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, "logprobs": n, "stream": false,
        });
        let mut all = body.clone();
        match self.dialect {
            Dialect::Vllm => {
                all["prompt_logprobs"] = json!(n);
                all["return_tokens_as_token_ids"] = json!(true);
                body["return_tokens_as_token_ids"] = json!(true);
            }
            Dialect::Sglang | Dialect::Other => all["echo"] = json!(true),
            Dialect::Jitune => {
                all["return_tokens_as_token_ids"] = json!(true);
                body["return_tokens_as_token_ids"] = json!(true);
            }
            Dialect::Trtllm | Dialect::Llama | Dialect::Transformers => (),
        }
        if all != body {
            let reply = self.logprobs_reply(&all)?;
            if reply.status.is_success() {
                let told = read(&reply.body, prompt.len());
                if !told.is_empty() {
                    return Ok(told);
                }
            }
        }
        let reply = self.logprobs_reply(&body)?;
        let told = if reply.status.is_success() { read(&reply.body, prompt.len()) } else { Vec::new() };
        match reply.status.as_u16() {
            200..300 if told.is_empty() => {
                Err(Unanswered::Refused(Refusal::unsupported("its answers have no log-probabilities")))
            }
            200..300 => Ok(told),
            400..500 => Err(Unanswered::Refused(Refusal::unsupported(said(reply.status, &reply.body)))),
            _ => Err(Unanswered::Refused(Refusal::failed(said(reply.status, &reply.body)))),
        }
    }

    fn logprobs_reply(&mut self, body: &Value) -> Result<Reply, Unanswered> {
        let reply = self.get("/v1/completions", Some(body), DEADLINE).ok_or(Unanswered::Interrupted)?;
        if let (Err(_), Some(child)) = (&reply, &mut self.child) {
            child.there()?;
        }
        reply.map_err(|why| Unanswered::Refused(Refusal::failed(why)))
    }
}

/// The positions that an answer of one token to a prompt of so many tells of, in their order.
fn read(body: &str, prompt: usize) -> Vec<Position> {
    let answer: Value = serde_json::from_str(body).unwrap_or_default();
    let choice = &answer["choices"][0];
    let mut positions = Vec::new();
    let mut add = |at: usize, top: Vec<Logprob>| {
        if !top.is_empty() {
            positions.push(Position { at, top: sorted(top) });
        }
    };
    // vLLM: one for each token of the prompt, none for the first, which nothing predicts.
    for (at, told) in list(&choice["prompt_logprobs"]).iter().enumerate().skip(1).take(prompt.saturating_sub(1)) {
        add(at - 1, told.as_object().into_iter().flatten().filter_map(|(id, v)| prompt_token(id, v)).collect());
    }
    // OpenAI: a map for each token, with those of the prompt before where it is echoed.
    let maps = list(&choice["logprobs"]["top_logprobs"]);
    let echoed = maps.len() > prompt;
    for (at, told) in maps.iter().enumerate().take(prompt + 1) {
        let at = if echoed { at.checked_sub(1) } else { Some(prompt - 1 + at) };
        let top = told.as_object().into_iter().flatten().filter_map(|(token, v)| named(token, v)).collect();
        if let Some(at) = at.filter(|at| *at < prompt) {
            add(at, top);
        }
    }
    // llama-server: as chats have it, with ids.
    if let Some(first) = list(&choice["logprobs"]["content"]).first() {
        let one = |v: &Value| {
            let id = v["id"].as_u64().and_then(|id| u32::try_from(id).ok());
            Some(Logprob { token: v["token"].as_str()?.into(), id, logprob: v["logprob"].as_f64()? as f32 })
        };
        add(prompt - 1, list(&first["top_logprobs"]).iter().filter_map(one).collect());
    }
    positions
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn prompt_token(id: &str, value: &Value) -> Option<Logprob> {
    let token = value["decoded_token"].as_str().unwrap_or_default().to_owned();
    Some(Logprob { token, id: Some(id.parse().ok()?), logprob: value["logprob"].as_f64()? as f32 })
}

/// vLLM and jitune name tokens `token_id:N` where they have no text of their own.
fn named(token: &str, value: &Value) -> Option<Logprob> {
    let id = token.strip_prefix("token_id:").and_then(|id| id.parse().ok());
    Some(Logprob { token: token.into(), id, logprob: value.as_f64()? as f32 })
}

fn sorted(mut top: Vec<Logprob>) -> Vec<Logprob> {
    top.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A position, with the id and the log-probability of each of its tokens.
    type Told = (usize, Vec<(Option<u32>, f32)>);

    fn told(body: Value, prompt: usize) -> Vec<Told> {
        let positions = read(&body.to_string(), prompt);
        positions.into_iter().map(|p| (p.at, p.top.into_iter().map(|t| (t.id, t.logprob)).collect())).collect()
    }

    #[test]
    fn each_form_says_which_position_it_is_of() {
        let last = json!({ "token_id:4": -2.0, "token_id:9": -0.5 });
        let vllm = json!({ "choices": [{
            "prompt_logprobs": [null, { "5": { "logprob": -1.0, "rank": 1, "decoded_token": "a" }, "6": { "logprob": -0.25 } },
                { "7": { "logprob": -3.0 } }],
            "logprobs": { "top_logprobs": [last] },
        }] });
        let end = (2, vec![(Some(9), -0.5), (Some(4), -2.0)]);
        let first = (0, vec![(Some(6), -0.25), (Some(5), -1.0)]);
        assert_eq!(told(vllm, 3), [first, (1, vec![(Some(7), -3.0)]), end.clone()]);
        let echoed =
            json!({ "choices": [{ "logprobs": { "top_logprobs": [null, { " a": -1.5 }, { " b": -2.5 }, last] } }] });
        assert_eq!(told(echoed, 3), [(0, vec![(None, -1.5)]), (1, vec![(None, -2.5)]), end.clone()]);
        let alone = json!({ "choices": [{ "logprobs": { "top_logprobs": [last] } }] });
        assert_eq!(told(alone, 3), [end]);
        let llama = json!({ "choices": [{ "logprobs": { "content": [{ "id": 1, "token": "x", "logprob": -1.0, "top_logprobs": [
            { "id": 1, "token": "x", "logprob": -1.0 }, { "id": 2, "token": "x", "logprob": -0.75 },
        ] }] } }] });
        assert_eq!(told(llama, 3), [(2, vec![(Some(2), -0.75), (Some(1), -1.0)])]);
        assert!(told(json!({ "choices": [{ "logprobs": null }] }), 3).is_empty() && told(json!([]), 3).is_empty());
    }
}
