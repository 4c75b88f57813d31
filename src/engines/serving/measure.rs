//! A setting under a load: a workload's requests at that load, and which of them keep its limits.

use super::Unmeasured;
use crate::engines::client::{Outcome, Progress, Trip, drive};
use crate::engines::measured::Spread;
use crate::engines::rows::State;
use crate::engines::service::Service;
use crate::engines::workload::{Arrivals, Workload, WorkloadError};
use crate::setting::{Asked, Figures};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Requests that an engine which was just opened answers before.
const WARM: usize = 8;
/// As many as fit the time.
const ENDLESS: usize = 1 << 20;
/// Requests on their way beyond twice those that a load within the limits has, after which no more are made.
const SLACK: f64 = 16.0;

/// What is measured: a workload whose load varies, with its limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    workload: Workload,
    /// Milliseconds to the first token, and a token after it.
    limits: [f64; 2],
}

impl Wanted {
    /// A workload with limits of the time to the first token and of a token after it.
    ///
    /// # Errors
    /// A workload without these limits, of a trace, or that makes no sense.
    pub fn new(workload: Workload) -> Result<Wanted, WorkloadError> {
        workload.check()?;
        let nonsense = |why: &str| WorkloadError::Nonsense(format!("{}: {why}", workload.name));
        if matches!(workload.arrivals, Arrivals::Trace { .. }) {
            return Err(nonsense("a trace comes as it came, under no other load; take one of another kind"));
        }
        let (Some(ttft), Some(tpot)) = (workload.limits.ttft_ms, workload.limits.tpot_ms) else {
            return Err(nonsense("it has no limits; give --ttft and --tpot in milliseconds"));
        };
        Ok(Wanted { workload, limits: [ttft, tpot] })
    }

    /// The workload.
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// Most milliseconds to the first token, and of a token after it.
    pub fn limits(&self) -> [f64; 2] {
        self.limits
    }

    /// The load of the workload itself, and whether loads are numbers of clients.
    pub fn load(&self) -> (f64, bool) {
        match self.workload.arrivals {
            Arrivals::Closed { clients } => (clients as f64, true),
            Arrivals::Open { rate, .. } => (rate, false),
            Arrivals::Trace { .. } => (1.0, false),
        }
    }

    /// The workload under a load.
    fn under(&self, load: f64) -> Workload {
        let arrivals = match self.workload.arrivals {
            Arrivals::Open { burstiness, .. } => Arrivals::Open { rate: load, burstiness, most: None },
            _ => Arrivals::Closed { clients: load as usize },
        };
        Workload { arrivals, requests: ENDLESS, ..self.workload.clone() }
    }

    /// Seconds that an answer within the limits takes at most.
    fn answer_s(&self) -> f64 {
        let [ttft, tpot] = self.limits;
        (ttft + tpot * self.workload.answer.most() as f64) / 1e3
    }
}

/// Makes loads of one workload after the other, each of prompts that the one before had not.
pub struct Client<'w> {
    wanted: &'w Wanted,
    /// Cells so far.
    cells: u64,
    /// Seconds until the first chat was over in the last cell, or before any what it is guessed to take.
    settles_s: f64,
}

impl<'w> Client<'w> {
    /// A client of a workload.
    pub fn new(wanted: &'w Wanted) -> Client<'w> {
        let turns = f64::from(wanted.workload.turns);
        Client {
            wanted,
            cells: 0,
            settles_s: (turns - 1.0) * wanted.workload.think_s + turns * wanted.answer_s() / 2.0,
        }
    }

    /// Asks a service that runs with the setting for answers under the load, and judges them. What counts are the requests due in the
    /// window, which begins when the first chat is over (of single requests, the first answer): before that there is less to do than later.
    /// `fresh` is for a service that has answered nothing yet. `heard` is told how far it is.
    pub fn figures(
        &mut self,
        service: &mut impl Service,
        vocab: u64,
        asked: &Asked,
        fresh: bool,
        stop: &AtomicBool,
        heard: &mut dyn FnMut(&Progress),
    ) -> Result<Figures, Unmeasured> {
        let mut warm = if fresh { self.wanted.workload.warm.clamp(1, WARM) } else { 0 };
        for again in [true, false] {
            let (outcome, begun) = self.cell(service, vocab, asked, warm, stop, heard)?;
            let (figures, late) = self.judge(&outcome, asked, begun);
            // It settled too late for a window of its own, and did not fall behind.
            if !(again && late && figures.share > 0.5) {
                return Ok(figures);
            }
            warm = 0;
        }
        Err(Unmeasured::Unfit("it did not settle".into()))
    }

    /// One cell, and when what counts began.
    fn cell(
        &mut self,
        service: &mut impl Service,
        vocab: u64,
        asked: &Asked,
        warm: usize,
        stop: &AtomicBool,
        heard: &mut dyn FnMut(&Progress),
    ) -> Result<(Outcome, Duration), Unmeasured> {
        self.cells += 1;
        let mut workload = self.wanted.under(asked.load);
        // The moments are those of every other cell of that load.
        (workload.warm, workload.variant) = (warm, self.cells);
        workload.seconds = self.settles_s + asked.seconds;
        let open = matches!(workload.arrivals, Arrivals::Open { .. });
        let on_their_way = SLACK + 2.0 * asked.load * self.wanted.answer_s();
        let halt = AtomicBool::new(false);
        // What was due in time and has not ended then has not kept its limits.
        let most_s = workload.seconds + self.wanted.answer_s();
        let mut counts_from = None;
        let mut tell = |progress: &Progress| {
            let counts = (!progress.warm).then(|| *counts_from.get_or_insert(progress.at));
            let over = counts.is_some_and(|from| progress.at.saturating_sub(from).as_secs_f64() > most_s);
            let behind = (progress.sent - progress.ended) as f64 > on_their_way;
            if stop.load(Ordering::Relaxed) || open && (over || counts.is_some() && behind) {
                halt.store(true, Ordering::Relaxed);
            }
            heard(progress);
        };
        let outcome =
            drive(service, &workload, vocab, &halt, &mut tell).map_err(|e| Unmeasured::Lost(e.to_string()))?;
        if stop.load(Ordering::Relaxed) {
            return Err(Unmeasured::Stopped);
        }
        let why = || outcome.why.clone().unwrap_or_default();
        match outcome.state {
            State::Failed | State::Stalled => Err(Unmeasured::Unfit(why())),
            State::Dropped if outcome.trips.iter().all(|trip| trip.pieces.is_empty()) => Err(Unmeasured::Unfit(why())),
            _ => {
                let counted = outcome.trips.iter().filter(|trip| !trip.warm);
                let begun = counted.map(|trip| trip.due).min().unwrap_or_default();
                Ok((outcome, begun))
            }
        }
    }

    /// The figures of a cell, and whether it settled so late that its window was cut.
    fn judge(&mut self, outcome: &Outcome, asked: &Asked, begun: Duration) -> (Figures, bool) {
        let trips: Vec<&Trip> = outcome.trips.iter().filter(|trip| !trip.warm).collect();
        let last = self.wanted.workload.turns - 1;
        let over = |trip: &&&Trip| trip.is_whole() && trip.turn.is_none_or(|(_, turn)| turn == last);
        let settled = match self.wanted.load() {
            // All clients ask at once at first.
            (_, true) => trips.iter().take(asked.load as usize).map(|trip| trip.end).max().flatten(),
            _ => trips.iter().filter(over).filter_map(|trip| trip.end).min(),
        };
        let settles_s = settled.map(|at| at.saturating_sub(begun).as_secs_f64());
        let end = self.settles_s + asked.seconds;
        let late = settles_s.is_none_or(|s| s > self.settles_s + asked.seconds / 2.0);
        self.settles_s = settles_s.unwrap_or(1.5 * self.settles_s.max(0.1));
        let from = settled.unwrap_or_default();
        let counted: Vec<&Trip> = trips.iter().copied().filter(|trip| trip.due >= from).collect();
        let counted = if counted.is_empty() { trips } else { counted };
        let limits = &self.wanted.workload.limits;
        let good = counted.iter().filter(|trip| trip.is_whole() && limits.kept(trip)).count();
        let share = good as f64 / counted.len().max(1) as f64;
        let heard =
            |pick: fn(&Trip) -> Option<f64>| Spread::of(counted.iter().filter_map(|trip| pick(trip)).collect()).p99;
        let seconds = (end - settles_s.unwrap_or(0.0)).max(1e-3);
        let figures = Figures {
            requests: counted.len() as u64,
            share,
            goodput: if self.wanted.load().1 { good as f64 / seconds } else { asked.load * share },
            ttft_p99_ms: heard(Trip::ttft_ms),
            tpot_p99_ms: heard(Trip::tpot_ms),
        };
        (figures, late)
    }
}
