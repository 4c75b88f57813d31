//! Who asks what and when.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Requests over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// Its name, such as `chat`; the same name is the same workload in one run.
    pub name: String,
    /// When requests are made.
    pub arrivals: Arrivals,
    /// Tokens of a prompt; of a chat, of what each turn adds to it.
    pub prompt: Length,
    /// Tokens of an answer.
    pub answer: Length,
    /// Turns of a chat: each turn's prompt is all that was said before, and something new. 1 where nobody goes on.
    pub turns: u32,
    /// Seconds between an answer's end and the chat's next turn.
    #[serde(default)]
    pub think_s: f64,
    /// 0 takes the most likely token each time.
    pub temperature: f32,
    /// Requests to measure; fewer where the time is over before.
    pub requests: usize,
    /// Seconds after which no request is made any more.
    pub seconds: f64,
    /// Requests before that are not counted.
    #[serde(default)]
    pub warm: usize,
    /// What a good answer keeps to.
    #[serde(default)]
    pub limits: Limits,
    /// Whether what is kept of one prompt may serve another.
    #[serde(default)]
    pub prefix: bool,
    /// Of all random choices.
    #[serde(default)]
    pub seed: u64,
}

/// When requests are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// So many clients, each of which asks again when it has its answer.
    Closed {
        /// How many.
        clients: usize,
    },
    /// At random, whoever has been answered: gaps of a gamma distribution.
    Open {
        /// Requests a second.
        rate: f64,
        /// The shape of the distribution: 1 is Poisson; less comes in bursts, more is steadier.
        burstiness: f64,
        /// Most requests on their way at a time; none for no bound.
        most: Option<usize>,
    },
    /// As a file says: a JSON object a line with `timestamp` in seconds, `input_length` and `output_length`.
    Trace {
        /// The file.
        file: PathBuf,
    },
}

/// How many tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Always so many.
    Fixed(usize),
    /// Any from the first to the second, alike.
    Uniform(usize, usize),
    /// Geometric with this mean, cut to a least and a most.
    Geometric {
        /// The mean before the cut.
        mean: f64,
        /// The least.
        least: usize,
        /// The most.
        most: usize,
    },
}

/// What a good answer keeps to, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Time to the first token.
    pub ttft_ms: Option<f64>,
    /// Time a token after it.
    pub tpot_ms: Option<f64>,
    /// Time to the end.
    pub e2el_ms: Option<f64>,
}

impl Default for Arrivals {
    /// One client.
    fn default() -> Arrivals {
        Arrivals::Closed { clients: 1 }
    }
}

impl Default for Length {
    /// One token.
    fn default() -> Length {
        Length::Fixed(1)
    }
}
