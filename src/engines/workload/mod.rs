//! Who asks what and when.

mod parse;
mod presets;
mod trace;

pub use trace::{Arrival, read as read_trace};

use super::random::Random;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Most tokens of a prompt and its answer, all turns counted: what a line of the protocol takes.
pub const MAX_TOKENS: usize = 512 << 10;
/// Most clients, turns, or requests on their way.
const MAX_CLIENTS: usize = 1 << 16;
/// Most seconds, of whatever.
const MAX_SECONDS: f64 = 1e6;
/// Requests that an engine is told to expect at a time where the workload has no bound; more of them wait.
const UNBOUNDED: usize = 256;

/// Requests over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Of all random choices, with the name.
    #[serde(default)]
    pub seed: u64,
    /// Which of several series of prompts: two cells that differ in it alone have the same lengths and moments, and no prompt in common, as long
    /// as it is less than the model has tokens.
    #[serde(default, skip_serializing_if = "is_first")]
    pub variant: u64,
    /// Seconds without a word of any request after which an engine has stalled; [`Workload::patience`] adds what long prompts take.
    #[serde(default = "stall")]
    pub stall_s: f64,
}

fn is_first(variant: &u64) -> bool {
    *variant == 0
}

fn stall() -> f64 {
    60.0
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
        /// Requests a second in the long run, all turns of chats counted.
        rate: f64,
        /// The shape of the distribution: 1 is Poisson; less comes in bursts, more is steadier.
        burstiness: f64,
        /// Most requests on their way at a time; none for no bound.
        most: Option<usize>,
    },
    /// As a file says: a JSON object a line with `timestamp` in seconds (or `timestamp_ms` in milliseconds), `input_length` and
    /// `output_length`.
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
    /// Geometric with this mean; what is below the least or above the most becomes these.
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

impl Default for Workload {
    /// One client that asks once, for a token.
    fn default() -> Workload {
        Workload {
            name: String::new(),
            arrivals: Arrivals::default(),
            prompt: Length::default(),
            answer: Length::default(),
            turns: 1,
            think_s: 0.0,
            temperature: 0.0,
            requests: 1,
            seconds: 120.0,
            warm: 0,
            limits: Limits::default(),
            prefix: false,
            seed: 0,
            variant: 0,
            stall_s: stall(),
        }
    }
}

impl Length {
    /// The least.
    pub fn least(&self) -> usize {
        match *self {
            Length::Fixed(n) | Length::Uniform(n, _) | Length::Geometric { least: n, .. } => n,
        }
    }

    /// The most.
    pub fn most(&self) -> usize {
        match *self {
            Length::Fixed(n) | Length::Uniform(_, n) | Length::Geometric { most: n, .. } => n,
        }
    }

    /// One of them.
    pub fn draw(&self, random: &mut Random) -> usize {
        match *self {
            Length::Fixed(n) => n,
            Length::Uniform(least, most) => least + random.below((most - least) as u64 + 1) as usize,
            Length::Geometric { mean, least, most } => (random.geometric(mean) as usize).clamp(least, most),
        }
    }

    /// All of them times a share of at most 1, and 1 at least.
    fn shrunk(&self, share: f64) -> Length {
        let cut = |n: usize| ((n as f64 * share) as usize).max(1);
        match *self {
            Length::Fixed(n) => Length::Fixed(cut(n)),
            Length::Uniform(least, most) => Length::Uniform(cut(least), cut(most)),
            Length::Geometric { mean, least, most } => {
                Length::Geometric { mean: (mean * share).max(1.0), least: cut(least), most: cut(most) }
            }
        }
    }

    fn check(&self, what: &str) -> Result<(), WorkloadError> {
        let nonsense = |why: String| Err(WorkloadError::Nonsense(why));
        match *self {
            _ if self.least() < 1 || self.most() > MAX_TOKENS => {
                nonsense(format!("{what} is {} to {} tokens; give 1 to {MAX_TOKENS}", self.least(), self.most()))
            }
            _ if self.least() > self.most() => {
                nonsense(format!("{what} is {} to {} tokens; give the less first", self.least(), self.most()))
            }
            Length::Geometric { mean, .. } if !(mean >= 1.0 && mean <= MAX_TOKENS as f64) => {
                nonsense(format!("{what} is {mean} tokens in the mean; give 1 to {MAX_TOKENS}"))
            }
            _ => Ok(()),
        }
    }
}

impl Limits {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Limits::default()
    }
}

impl Workload {
    /// The most tokens of a prompt and its answer together, which all turns of a chat add up to.
    pub fn most_context(&self) -> usize {
        self.prompt.most().saturating_add(self.answer.most()).saturating_mul(self.turns as usize)
    }

    /// The most requests on their way at a time; without a bound of the workload's own, what an engine should be ready for.
    pub fn most_requests_at_a_time(&self) -> usize {
        self.bound().unwrap_or(self.requests.max(self.warm).min(UNBOUNDED))
    }

    /// The most requests that are sent before one of them has ended; none for no bound.
    pub fn bound(&self) -> Option<usize> {
        match self.arrivals {
            Arrivals::Closed { clients } => Some(clients),
            Arrivals::Open { most, .. } => most,
            Arrivals::Trace { .. } => None,
        }
    }

    /// Seconds without a word of any request after which an engine has stalled: [`Workload::stall_s`], and a millisecond for each token of
    /// the prompts that may be read before the first of them is answered, at most four times as long.
    pub fn patience(&self) -> f64 {
        let tokens =
            self.most_requests_at_a_time() as f64 * self.most_context().saturating_sub(self.answer.least()) as f64;
        self.stall_s + (tokens * 1e-3).min(4.0 * self.stall_s)
    }

    /// What is asked and which limits count, as one text, whatever the load, the time and the settings in its name.
    pub fn asked(&self) -> String {
        let arrivals = match &self.arrivals {
            Arrivals::Closed { .. } => Arrivals::Closed { clients: 1 },
            Arrivals::Open { burstiness, .. } => Arrivals::Open { rate: 1.0, burstiness: *burstiness, most: None },
            trace => trace.clone(),
        };
        let name = self.name.split(':').next().unwrap_or_default().to_string();
        let usual = Workload::default();
        let (requests, seconds, stall_s) = (usual.requests, usual.seconds, usual.stall_s);
        let same =
            Workload { name, arrivals, requests, seconds, stall_s, warm: 0, seed: 0, variant: 0, ..self.clone() };
        serde_json::to_string(&same).unwrap_or_default()
    }

    /// Refuses what cannot be run.
    pub fn check(&self) -> Result<(), WorkloadError> {
        let nonsense = |why: String| Err(WorkloadError::Nonsense(why));
        let seconds = |what: &str, s: f64, least: f64| match s >= least && s <= MAX_SECONDS {
            true => Ok(()),
            false => nonsense(format!("{what} is {s} s; give {least} to {MAX_SECONDS}")),
        };
        self.prompt.check("a prompt")?;
        self.answer.check("an answer")?;
        seconds("the time", self.seconds, 1e-3)?;
        seconds("think", self.think_s, 0.0)?;
        seconds("stall", self.stall_s, 1e-3)?;
        let warm = Some(self.warm).filter(|warm| *warm > 0);
        let counts = [("clients", self.bound()), ("turns", Some(self.turns as usize)), ("requests to warm up", warm)];
        for (what, count) in counts.into_iter().filter_map(|(what, count)| Some((what, count?))) {
            if !(1..=MAX_CLIENTS).contains(&count) {
                return nonsense(format!("{count} {what}; give 1 to {MAX_CLIENTS}"));
            }
        }
        let limits = [self.limits.ttft_ms, self.limits.tpot_ms, self.limits.e2el_ms];
        match self.arrivals {
            _ if self.most_context() > MAX_TOKENS => {
                nonsense(format!("{} tokens of context; {MAX_TOKENS} is the most", self.most_context()))
            }
            _ if self.requests == 0 => nonsense("no requests; give 1 or more".into()),
            _ if !(self.temperature >= 0.0 && self.temperature <= 100.0) => {
                nonsense(format!("the temperature is {}; give 0 to 100", self.temperature))
            }
            _ if limits.into_iter().flatten().any(|ms| !(ms > 0.0 && ms.is_finite())) => {
                nonsense("a limit is not above 0 ms".into())
            }
            Arrivals::Open { rate, .. } if !(1e-4..=1e6).contains(&rate) => {
                nonsense(format!("the rate is {rate} requests/s; give 0.0001 to 1000000"))
            }
            Arrivals::Open { burstiness, .. } if !(1e-2..=1e4).contains(&burstiness) => {
                nonsense(format!("the burstiness is {burstiness}; give 0.01 to 10000, where 1 is Poisson"))
            }
            Arrivals::Trace { .. } if self.turns > 1 => nonsense("a trace has no turns; leave them out".into()),
            _ => Ok(()),
        }
    }
}

/// Why there is no such workload.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// Nothing has the name.
    #[error("there is no workload '{name}'; there are {}, and trace:file=PATH", Workload::NAMES.join(", "))]
    Unknown {
        /// The name.
        name: String,
    },
    /// There is no such setting.
    #[error("workloads have no setting '{key}'; there are {}", parse::KEYS.join(", "))]
    Setting {
        /// Its name.
        key: String,
    },
    /// A setting cannot have the value.
    #[error("{key} takes {takes}, not '{value}'")]
    Value {
        /// The setting.
        key: String,
        /// The value.
        value: String,
        /// What it takes.
        takes: &'static str,
    },
    /// It cannot be run.
    #[error("{0}")]
    Nonsense(String),
    /// It is too long for the model.
    #[error(
        "'{name}' needs a context of {needs} tokens, and the model has {has}; give a shorter prompt, answer or fewer turns"
    )]
    Context {
        /// The workload.
        name: String,
        /// Tokens that it needs.
        needs: usize,
        /// Tokens that there are.
        has: usize,
    },
    /// A trace cannot be read.
    #[error("{}: {why}", file.display())]
    Trace {
        /// The file.
        file: PathBuf,
        /// Why.
        why: String,
    },
    /// A line of a trace is not a request.
    #[error("{}, line {line}: {why}", file.display())]
    TraceLine {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why.
        why: String,
    },
}
