//! What is asked of a model, and what it answers.

use super::EngineError;
use std::time::Duration;

/// Something that the model is to go on from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// The tokens of the prompt.
    pub prompt: Vec<i32>,
    /// The most tokens of the answer.
    pub most: usize,
    /// Tokens that end the answer; the one that does is its last.
    pub ends: Vec<i32>,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Whether the logits of the prompt's tokens are wanted ([`Event::Logits`]); the engine is opened for it
    /// ([`super::Options::logits`]).
    pub logits: bool,
}

impl Request {
    /// Whether a model of so many tokens can take it, as far as can be said before one is open: a token is asked for, the prompt is of
    /// its tokens, and the sampling is in its ranges.
    pub fn check(&self, vocab: i64) -> Result<(), EngineError> {
        if self.most == 0 {
            return Err(EngineError::Request("no token is asked for".into()));
        }
        if let Some(id) = self.prompt.iter().find(|id| !(0..vocab).contains(&i64::from(**id))) {
            let last = vocab - 1;
            return Err(EngineError::Request(format!(
                "the prompt has the token {id}, and the model's go from 0 to {last}"
            )));
        }
        self.sampling.in_range().map_err(EngineError::Request)
    }
}

/// How the next token is chosen among all, in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits of tokens that the prompt or the answer has are divided by it where they are positive, and multiplied by it
    /// otherwise; 1 leaves them.
    pub repetition_penalty: f32,
    /// Logits are divided by it; 0 takes the most likely token, the lowest id among equals.
    pub temperature: f32,
    /// So many of the most likely tokens are left; 0 leaves all.
    pub top_k: i32,
    /// The fewest of the most likely tokens whose probabilities add up to it are left; 1 leaves all.
    pub top_p: f32,
    /// Tokens of less than this share of the most likely one's probability are left out.
    pub min_p: f32,
    /// The same seed, request and kernels give the same tokens.
    pub seed: u64,
    /// Log-probabilities of the chosen token and so many of the most likely ones.
    pub logprobs: Option<usize>,
}

impl Default for Sampling {
    /// [`Sampling::GREEDY`].
    fn default() -> Sampling {
        Sampling::GREEDY
    }
}

impl Sampling {
    /// The most likely token each time.
    pub const GREEDY: Sampling = Sampling {
        repetition_penalty: 1.0,
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
        logprobs: None,
    };

    /// Whether it is the most likely token each time, and nothing more.
    pub(super) fn is_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0 && self.logprobs.is_none()
    }

    /// Says what is out of range.
    fn in_range(&self) -> Result<(), String> {
        let Sampling { repetition_penalty, temperature, top_p, min_p, .. } = *self;
        let ranges = [
            ("temperature", temperature, temperature >= 0.0, "0 or more"),
            ("repetition_penalty", repetition_penalty, repetition_penalty > 0.0, "more than 0"),
            ("top_p", top_p, (0.0..=1.0).contains(&top_p), "from 0 to 1"),
            ("min_p", min_p, (0.0..=1.0).contains(&min_p), "from 0 to 1"),
        ];
        if let Some((name, value, _, range)) = ranges.iter().find(|(_, value, good, _)| !good || !value.is_finite()) {
            return Err(format!("{name} is {value}, and {range} is its range"));
        }
        Ok(())
    }

    /// Says what the kernels cannot do; `top` is the most tokens whose log-probabilities there may be, none where nothing samples.
    pub(super) fn check(&self, top: Option<i64>) -> Result<(), String> {
        match top {
            _ if self.is_greedy() => Ok(()),
            None => {
                Err("no kernel here samples: a bundle has none of a program that knew none; export it again".into())
            }
            Some(top) => match self.logprobs.filter(|n| *n as i64 > top) {
                Some(asked) => Err(format!("logprobs is {asked}, and {top} is the most")),
                None => Ok(()),
            },
        }
    }
}

/// What is heard of a request, in this order: logits where they were asked for, tokens one by one, the end.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Logits of some tokens of the prompt, row by row in f32; those of the first ones first.
    Logits(Vec<f32>),
    /// The next token.
    Token(Token),
    /// Nothing comes after it.
    End(End),
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: i32,
    /// Its log-probability and those of the most likely tokens, where they were asked for.
    pub logprobs: Option<Logprobs>,
}

/// Natural logarithms of probabilities by the model's own logits, whatever the sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// Of the most likely ones, most likely first, with their ids.
    pub top: Vec<(i32, f32)>,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// Why.
    pub why: Finish,
    /// Tokens of the prompt that the cache held already.
    pub cached: usize,
    /// Tokens of the answer.
    pub answer: usize,
    /// From being heard to the first step that it took part in.
    pub waited: Duration,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A token that ends answers.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// Nobody wants it any more.
    Cancelled,
    /// The engine cannot go on; what the device said.
    Failed(String),
}

/// What the engine has to do and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that have no pages yet, or lost them to older ones.
    pub waiting: usize,
    /// Requests that steps work on.
    pub running: usize,
    /// Pages of the cache, and how many of them hold tokens of running requests.
    pub pages: usize,
    /// Pages in use.
    pub used: usize,
    /// Tokens that the pages of running requests hold, those that several share counted for each.
    pub live: usize,
    /// Steps so far.
    pub steps: u64,
    /// Launches by the host for them: a graph is one.
    pub launches: u64,
    /// What the host did for them: choosing, telling, launching, answering; not what it waited for.
    pub host: Duration,
    /// Bytes that the host told the device for them.
    pub told: u64,
    /// Bytes that the device told the host, logits of prompts left out.
    pub heard: u64,
    /// Tokens of prompts that were computed, those that were computed again included.
    pub prompt_tokens: u64,
    /// Tokens of prompts that the cache held already.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub answer_tokens: u64,
    /// Times that a request gave its pages to an older one.
    pub preempted: u64,
    /// Requests that ended, however they did.
    pub ended: u64,
    /// Kernels of the steps that are bound, and how many of them are portable ones, since nothing tuned answers.
    pub kernels: usize,
    /// Portable kernels among them.
    pub portable: usize,
    /// Fewest sequences of a greedy decode that has portable kernels, of those that were bound.
    pub portable_from: Option<i64>,
    /// Steps that were bound to memory so far, on a GPU with their graphs where they decode.
    pub bound: u64,
    /// What that took.
    pub binding: Duration,
    /// Those of them that a request waited for.
    pub bound_late: u64,
    /// What these took.
    pub binding_late: Duration,
}
