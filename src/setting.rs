//! How an engine batches: the limits of its steps, what was seen of them under load, and what was found to serve a model best.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The limits of an engine's steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Setting {
    /// Most tokens of a step.
    pub tokens: i64,
    /// Most requests that steps work on at a time.
    pub sequences: i64,
    /// Most tokens of prompts in a step beside sequences that decode.
    pub chunk: i64,
}

impl Setting {
    /// What engines take where nothing is said: for a GPU (`cuda`), or for a processor.
    pub fn usual(cuda: bool) -> Setting {
        let (tokens, sequences) = if cuda { (2048, 256) } else { (512, 8) };
        Setting { tokens, sequences, chunk: tokens }
    }

    /// Whether each number is a size, and no chunk is larger than the step.
    pub fn is_sound(&self) -> bool {
        let size = 1..=crate::problem::MAX_DIM;
        size.contains(&self.tokens) && size.contains(&self.sequences) && (1..=self.tokens).contains(&self.chunk)
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tokens={} sequences={} chunk={}", self.tokens, self.sequences, self.chunk)
    }
}

/// What was seen of a setting under a load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Requests that count: those due in the window.
    pub requests: u64,
    /// The share of them that were answered whole and within all limits, 0 to 1.
    pub share: f64,
    /// Requests a second within the limits: of arrivals at random the load times the share, of clients those counted over the time.
    pub goodput: f64,
    /// Milliseconds from being due to the first token, 99th percentile of the answers.
    pub ttft_p99_ms: f64,
    /// Milliseconds a token after the first, 99th percentile of the answers.
    pub tpot_p99_ms: f64,
}

/// A setting that was evaluated under a load, for so many seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Which.
    pub setting: Setting,
    /// Requests a second, or clients.
    pub load: f64,
    /// Seconds in which requests that count were due.
    pub seconds: f64,
    /// Which of several of the same: 0 in the search, from 1 on in the final rounds.
    pub round: u32,
    /// What was seen; none where the engine cannot run so.
    pub figures: Option<Figures>,
    /// Why there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What a row is of, as the database names it among the trials of a search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Asked {
    /// The setting.
    pub setting: Setting,
    /// Requests a second, or clients.
    pub load: f64,
    /// Seconds of the window.
    pub seconds: f64,
    /// The round.
    pub round: u32,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "serving {} load={} seconds={} round={}", self.setting, self.load, self.seconds, self.round)
    }
}

impl FromStr for Asked {
    type Err = ();

    fn from_str(text: &str) -> Result<Asked, ()> {
        let mut words = text.split(' ');
        if words.next() != Some("serving") {
            return Err(());
        }
        let mut next = |name: &str| {
            let value = words.next().and_then(|w| w.strip_prefix(name)?.strip_prefix('=')?.parse::<f64>().ok());
            value.filter(|v| v.is_finite() && *v >= 0.0).ok_or(())
        };
        let (tokens, sequences, chunk) = (next("tokens")? as i64, next("sequences")? as i64, next("chunk")? as i64);
        let (load, seconds, round) = (next("load")?, next("seconds")?, next("round")? as u32);
        Ok(Asked { setting: Setting { tokens, sequences, chunk }, load, seconds, round })
    }
}

impl Row {
    /// What it is of.
    pub fn asked(&self) -> Asked {
        Asked { setting: self.setting, load: self.load, seconds: self.seconds, round: self.round }
    }

    /// Whether its numbers are such.
    pub fn is_sound(&self) -> bool {
        let figures = self.figures.is_none_or(|f| {
            let all = [f.share, f.goodput, f.ttft_p99_ms, f.tpot_p99_ms];
            all.iter().all(|v| v.is_finite() && *v >= 0.0) && f.share <= 1.0
        });
        self.setting.is_sound() && self.load > 0.0 && self.load.is_finite() && self.seconds > 0.0 && figures
    }
}

/// What became of a setting in a search.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The setting.
    pub setting: Setting,
    /// The highest load that was measured at which the share of requests within the limits is large enough; 0 where there is none.
    pub load: f64,
    /// What was seen at that load, all rounds together.
    pub figures: Figures,
}

/// What was found to serve a model best, as the database has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Serving {
    /// The model as it was named.
    pub model: String,
    /// The device's product name.
    pub device: String,
    /// The workload as it was named.
    pub workload: String,
    /// Most milliseconds to the first token.
    pub ttft_ms: f64,
    /// Most milliseconds a token after it.
    pub tpot_ms: f64,
    /// Tokens of the context that the engine was opened for.
    pub context: i64,
    /// The setting to serve with: the default's own where nothing was better.
    pub setting: Setting,
    /// What the default does.
    pub default: Best,
    /// The best that was found beside the default.
    pub found: Best,
    /// Why the setting is this one.
    pub why: String,
    /// Rows that were measured for it.
    pub rows: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// Whether time was over or somebody interrupted before the search was done.
    pub cut_off: bool,
}

impl Serving {
    /// Whether its numbers are such.
    pub fn is_sound(&self) -> bool {
        let best = |b: &Best| b.setting.is_sound() && b.load.is_finite() && b.figures.goodput.is_finite();
        self.setting.is_sound() && best(&self.default) && best(&self.found)
    }

    /// Goodput of the setting, requests a second.
    pub fn goodput(&self) -> f64 {
        if self.setting == self.default.setting { self.default.figures.goodput } else { self.found.figures.goodput }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rows_are_of_reads_back() {
        let setting = Setting { tokens: 2048, sequences: 256, chunk: 64 };
        let asked = Asked { setting, load: 12.345_678_901, seconds: 2.5, round: 3 };
        assert_eq!(asked.to_string().parse(), Ok(asked));
        for text in ["", "tile=64", "serving", "serving tokens=1 sequences=1 chunk=1 load=nan seconds=1 round=0"] {
            assert_eq!(text.parse::<Asked>(), Err(()), "{text}");
        }
    }

    #[test]
    fn nonsense_is_no_row() {
        let setting = Setting::usual(false);
        let row = Row { setting, load: 1.0, seconds: 1.0, round: 0, figures: Some(Figures::default()), why: None };
        assert!(row.is_sound());
        assert!(!Row { load: 0.0, ..row.clone() }.is_sound());
        assert!(!Row { setting: Setting { chunk: 513, ..setting }, ..row.clone() }.is_sound());
        let more = Figures { share: 1.5, ..Figures::default() };
        assert!(!Row { figures: Some(more), ..row }.is_sound());
    }
}
