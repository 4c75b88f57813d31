//! The setting that `jitune tune --serving` found for a model, where one is stored.

use super::CliError;
use super::opened::Opened;
use jitune::db::Record;
use jitune::problem::MAX_DIM;
use jitune::report::text::date;
use jitune::setting::{Serving, Setting};
use jitune::{journal, key};

/// The limits of an engine's steps as they are given.
#[derive(clap::Args)]
pub(super) struct Given {
    /// Most requests that steps work on at a time; by default what `jitune tune --serving` found, or else 256 on a GPU and 8 on a
    /// CPU.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=MAX_DIM))]
    sequences: Option<i64>,
    /// Most tokens of a step; by default what `jitune tune --serving` found, or else 2048 on a GPU and 512 on a CPU.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=MAX_DIM))]
    tokens: Option<i64>,
    /// Most tokens of prompts in a step beside sequences that decode; by default what `jitune tune --serving` found, or else as
    /// many as the step has.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=MAX_DIM))]
    chunk: Option<i64>,
    /// Take nothing that `jitune tune --serving` found.
    #[arg(long)]
    no_tuned_serving: bool,
}

impl Given {
    /// Whether what was found is to be looked for.
    pub fn takes_tuned(&self) -> bool {
        let all = self.sequences.is_some() && self.tokens.is_some() && self.chunk.is_some();
        !self.no_tuned_serving && !all
    }

    /// What is given, and for the rest what was found, or what is usual.
    pub fn setting(&self, tuned: Option<&Tuned>, cuda: bool) -> Setting {
        let rest = tuned.map_or(Setting::usual(cuda), |tuned| tuned.serving.setting);
        let tokens = self.tokens.unwrap_or(rest.tokens);
        // A step that is given has no other bound than its own, unless one was found or is given too.
        let usual = if tuned.is_some() { rest.chunk } else { tokens };
        let chunk = self.chunk.unwrap_or(usual).min(tokens);
        Setting { tokens, sequences: self.sequences.unwrap_or(rest.sequences), chunk }
    }
}

/// What was found for a model.
pub(super) struct Tuned {
    pub serving: Serving,
    /// When, in seconds since 1970.
    at: u64,
}

impl Tuned {
    /// What is stored for a model on its device: for what is asked of it, where that is said; in the same context where there is that, and
    /// otherwise the newest. None with a bundle, which needs no database, or where there is no database.
    pub fn find(opened: &Opened<'_>, context: i64, asked: Option<&str>) -> Result<Option<Tuned>, CliError> {
        if opened.args.bundle.is_some() {
            return Ok(None);
        }
        let Ok(db) = opened.args.store.read() else { return Ok(None) };
        let device = opened.args.device.describe()?;
        let mut found: Option<(bool, u64, Serving)> = None;
        for record in db.winners()? {
            let record = record?;
            let Record { key: of, at, .. } = &record;
            // What a merge brought was not measured here.
            if record.merged
                || !key::is_serving(of, &device, &opened.model, &opened.precision)
                || asked.is_some_and(|a| of.get("asked") != Some(a))
            {
                continue;
            }
            let Some(serving) = journal::serving(&record) else { continue };
            let same = serving.context == context;
            if found.as_ref().is_none_or(|(as_long, when, _)| (*as_long, *when) <= (same, *at)) {
                found = Some((same, *at, serving));
            }
        }
        Ok(found.map(|(_, at, serving)| Tuned { serving, at }))
    }

    /// What is taken, what was found, and how to have another.
    pub fn says(&self, taken: Setting) -> String {
        let Serving { workload, ttft_ms, tpot_ms, context, setting, default, .. } = &self.serving;
        let of = format!(
            "`jitune tune --serving` for {workload} within TTFT {ttft_ms} ms and TPOT {tpot_ms} ms at a context of {context} ({})",
            date(self.at)
        );
        let found = match *setting == default.setting {
            true => format!("nothing keeps more, says {of}"),
            false => format!(
                "{setting} found by {of}: {:.3} requests/s, {:.3} by default",
                self.serving.goodput(),
                default.figures.goodput
            ),
        };
        format!("serving: {taken}; {found}; --tokens, --sequences, --chunk, --no-tuned-serving say otherwise")
    }
}
