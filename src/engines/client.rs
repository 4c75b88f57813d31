//! The load client: makes a workload's requests, and keeps every moment of what comes back.
//!
//! One thread, one loop: what is due is sent, then what is heard next is taken, or the time of what is due next has come. All times are the
//! service's, so that a simulated one is driven by the same code.

use super::plan::Plan;
use super::rows::State;
use super::service::{Gone, Heard, Service, What};
use super::workload::{Workload, WorkloadError};
use jitune_peer::engine::{End, Finish, Submit};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How often it is looked whether the run was interrupted, and how often progress is told.
const LOOK: Duration = Duration::from_millis(100);
/// How long the ends of requests that were cancelled are waited for.
const LAST: Duration = Duration::from_secs(2);
/// So many requests in a row without an answer are enough.
const IN_A_ROW: usize = 64;
/// Tokens beyond those that were asked for, after which a request is cancelled.
const BEYOND: usize = 64;

/// The numbers under which requests are asked: a service's requests are told apart whatever cells it served before.
static NUMBERS: AtomicU64 = AtomicU64::new(0);
/// Numbers that a cell takes.
const CELL: u64 = 1 << 32;

/// One request, and all that was heard of it; times by the service's clock, since the cell's begin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trip {
    /// Its number in the cell.
    pub id: u64,
    /// The chat that it is a turn of, and which.
    pub turn: Option<(u64, u32)>,
    /// Whether it belongs to the warm-up.
    pub warm: bool,
    /// When it was due.
    pub due: Duration,
    /// When it was sent.
    pub sent: Duration,
    /// Tokens of its prompt.
    pub prompt: usize,
    /// Tokens that were asked for.
    pub asked: usize,
    /// When each piece of the answer was received, and how many tokens it had.
    pub pieces: Vec<(Duration, u32)>,
    /// The tokens, where the engine says which.
    pub ids: Vec<u32>,
    /// When its end was received.
    pub end: Option<Duration>,
    /// Why it has no whole answer.
    pub error: Option<String>,
}

impl Trip {
    /// Tokens of the answer.
    pub fn tokens(&self) -> usize {
        self.pieces.iter().map(|(_, n)| *n as usize).sum()
    }

    /// Whether the answer is there, as long as was asked.
    pub fn is_whole(&self) -> bool {
        self.error.is_none() && self.end.is_some() && !self.pieces.is_empty()
    }
}

/// How far a cell is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// The time since the cell's begin.
    pub at: Duration,
    /// Whether what runs is the warm-up.
    pub warm: bool,
    /// Requests that were sent, the warm-up's included.
    pub sent: usize,
    /// Requests that have ended, with a whole answer or without.
    pub ended: usize,
    /// Requests that have ended without a whole answer.
    pub failed: usize,
    /// Tokens of answers.
    pub tokens: u64,
}

/// What came of a workload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// All requests that were sent, in this order.
    pub trips: Vec<Trip>,
    /// What the engine is: ok, miscounted, dropped, stalled, failed (gone), or cut.
    pub state: State,
    /// Why, if not ok.
    pub why: Option<String>,
}

/// Asks a service all that a workload says, on a model of `vocab` tokens, and waits for the answers; returns when the requests are done, or
/// when the time is over and those on their way have ended. `heard` is told of the progress some ten times a second. Soon after `stop` has
/// become true, what is on its way is cancelled. An engine that goes wrong is no error: its outcome says what it is, and has what was
/// heard before.
///
/// # Errors
/// A workload that makes no sense, or a trace that cannot be read; nothing was asked then.
pub fn drive(
    service: &mut impl Service,
    workload: &Workload,
    vocab: u64,
    stop: &AtomicBool,
    heard: &mut dyn FnMut(&Progress),
) -> Result<Outcome, WorkloadError> {
    let mut client = Client {
        plan: Plan::new(workload, vocab)?,
        begun: service.now(),
        numbers: NUMBERS.fetch_add(CELL, Ordering::Relaxed),
        bound: workload.bound().unwrap_or(usize::MAX).min(CELL as usize),
        patience: Duration::from_secs_f64(workload.patience()),
        trips: Vec::new(),
        open: BTreeMap::new(),
        last: Duration::ZERO,
        progress: Progress::default(),
        wrong: Wrong::default(),
    };
    let ended = match client.work(service, stop, heard) {
        Ok(()) => Ended::Done,
        Err(ended) => ended,
    };
    client.tell(client.now(service), heard);
    Ok(client.outcome(ended, stop))
}

/// How a cell ended.
enum Ended {
    Done,
    Cut,
    Stalled(String),
    Gone(Gone),
}

impl From<Gone> for Ended {
    fn from(gone: Gone) -> Ended {
        Ended::Gone(gone)
    }
}

/// What was wrong with answers.
#[derive(Default)]
struct Wrong {
    /// Answers of another length than was asked for.
    miscounted: usize,
    /// The first of them.
    count: String,
    /// Requests without an answer.
    dropped: usize,
    /// The first of them.
    drop: String,
    /// How many of the last ones had no answer.
    row: usize,
}

struct Client<'a> {
    plan: Plan<'a>,
    /// The cell's begin by the service's clock; all other times are since then.
    begun: Duration,
    /// The number under which the first request is asked.
    numbers: u64,
    bound: usize,
    patience: Duration,
    trips: Vec<Trip>,
    /// Places in `trips` of those that have not ended, and the tokens that each has.
    open: BTreeMap<usize, usize>,
    /// When something was last heard, or sent where nothing was on its way.
    last: Duration,
    progress: Progress,
    wrong: Wrong,
}

impl Client<'_> {
    fn now(&self, service: &impl Service) -> Duration {
        service.now().saturating_sub(self.begun)
    }

    fn work(
        &mut self,
        service: &mut impl Service,
        stop: &AtomicBool,
        heard: &mut dyn FnMut(&Progress),
    ) -> Result<(), Ended> {
        loop {
            if stop.load(Ordering::Relaxed) {
                self.let_go(service, "interrupted")?;
                return Err(Ended::Cut);
            }
            if self.wrong.row >= IN_A_ROW {
                self.plan.close();
            }
            let now = self.now(service);
            while self.open.len() < self.bound {
                let Some((trip, request)) = self.plan.take(now) else { break };
                self.send(service, trip, request)?;
            }
            let next = self.plan.next(now);
            if self.open.is_empty() && next.is_none() {
                return Ok(());
            }
            if now >= self.progress.at.saturating_add(LOOK) {
                self.tell(now, heard);
            }
            let room = self.open.len() < self.bound;
            let late = (!self.open.is_empty()).then(|| self.last.saturating_add(self.patience));
            let until = next.filter(|_| room).into_iter().chain(late).fold(now + LOOK, Duration::min);
            match service.next(self.begun + until)? {
                Some(heard) => self.hear(service, heard)?,
                // What was said while this process was held up is heard before anybody is blamed.
                None if late.is_some_and(|late| self.now(service) >= late) => return Err(self.stalled(service)),
                None => (),
            }
        }
    }

    fn send(&mut self, service: &mut impl Service, mut trip: Trip, request: Submit) -> Result<(), Gone> {
        let place = self.trips.len();
        trip.id = place as u64;
        trip.sent = self.now(service);
        trip.pieces.reserve_exact(request.most);
        if self.open.is_empty() {
            self.last = trip.sent;
        }
        self.open.insert(place, 0);
        self.trips.push(trip);
        self.progress.sent += 1;
        service.submit(self.numbers + place as u64, request)
    }

    /// Notes what was heard, and cancels a request whose answer does not end.
    fn hear(&mut self, service: &mut impl Service, heard: Heard) -> Result<(), Gone> {
        let at = heard.at.saturating_sub(self.begun);
        let place = heard.id.checked_sub(self.numbers).and_then(|n| usize::try_from(n).ok());
        let Some(place) = place.filter(|place| self.open.contains_key(place)) else { return Ok(()) };
        self.last = self.last.max(at);
        match heard.what {
            What::End(end) => self.end(place, at, end),
            What::Tokens { ids, known } => {
                if self.tokens(place, at, ids, known) {
                    service.cancel(heard.id)?;
                }
            }
        }
        Ok(())
    }

    /// Notes the next tokens of an answer; true if with them it has become far too long.
    fn tokens(&mut self, place: usize, at: Duration, ids: Vec<u32>, known: bool) -> bool {
        let (Some(trip), Some(tokens)) = (self.trips.get_mut(place), self.open.get_mut(&place)) else { return false };
        if ids.is_empty() {
            return false;
        }
        let before = *tokens;
        *tokens += ids.len();
        trip.pieces.push((at, ids.len() as u32));
        if known {
            trip.ids.extend(&ids);
        }
        self.progress.tokens += ids.len() as u64;
        before <= trip.asked + BEYOND && *tokens > trip.asked + BEYOND
    }

    fn end(&mut self, place: usize, at: Duration, end: End) {
        let (Some(trip), Some(tokens)) = (self.trips.get_mut(place), self.open.remove(&place)) else { return };
        trip.end = Some(at);
        let counted = matches!(end.why, Finish::Length | Finish::Stop);
        let wrong = &mut self.wrong;
        trip.error = if counted && tokens == trip.asked {
            None
        } else if counted || tokens > trip.asked {
            Some(format!("{tokens} tokens, and {} were asked for", trip.asked))
        } else {
            Some(end.error.unwrap_or_else(|| format!("it ended as {:?}", end.why).to_lowercase()))
        };
        match &trip.error {
            None => wrong.row = 0,
            Some(error) => {
                let (count, first) = match counted || tokens > trip.asked {
                    true => (&mut wrong.miscounted, &mut wrong.count),
                    false => (&mut wrong.dropped, &mut wrong.drop),
                };
                if *count == 0 {
                    first.clone_from(error);
                }
                *count += 1;
                wrong.row += 1;
                self.progress.failed += 1;
            }
        }
        self.progress.ended += 1;
        self.plan.ended(trip);
    }

    fn stalled(&mut self, service: &mut impl Service) -> Ended {
        let (open, sent) = (self.open.len(), self.trips.len());
        let mut why =
            format!("nothing was heard for {:.0} s; {open} of {sent} requests had no end", self.patience.as_secs_f64());
        if let Err(gone) = self.let_go(service, "stalled") {
            why = format!("{why}; then it was lost: {gone}");
        }
        Ended::Stalled(why)
    }

    /// Cancels what is on its way, and waits a little for its end; what has no whole answer then has `why` as its error.
    fn let_go(&mut self, service: &mut impl Service, why: &str) -> Result<(), Gone> {
        self.plan.close();
        let open: Vec<usize> = self.open.keys().copied().collect();
        let until = self.now(service) + LAST;
        let last = self.last_words(service, &open, until);
        for place in open {
            if let Some(trip) = self.trips.get_mut(place).filter(|trip| !trip.is_whole()) {
                trip.error = Some(why.into());
            }
        }
        self.open.clear();
        last
    }

    fn last_words(&mut self, service: &mut impl Service, open: &[usize], until: Duration) -> Result<(), Gone> {
        for place in open {
            service.cancel(self.numbers + *place as u64)?;
        }
        while !self.open.is_empty() && self.now(service) < until {
            if let Some(heard) = service.next(self.begun + until)? {
                self.hear(service, heard)?;
            }
        }
        Ok(())
    }

    fn tell(&mut self, now: Duration, heard: &mut dyn FnMut(&Progress)) {
        self.progress.at = now;
        self.progress.warm = self.plan.is_warm();
        heard(&self.progress);
    }

    fn outcome(mut self, ended: Ended, stop: &AtomicBool) -> Outcome {
        let sent = self.trips.len();
        let Wrong { miscounted, count, dropped, drop, .. } = self.wrong;
        let enough = match self.plan.is_closed() {
            true => format!(", {IN_A_ROW} of them in a row; no more was asked"),
            false => String::new(),
        };
        let (state, why) = match ended {
            // An interrupt may reach the engine too.
            Ended::Gone(_) if stop.load(Ordering::Relaxed) => (State::Cut, Some("interrupted".into())),
            Ended::Cut => (State::Cut, Some("interrupted".into())),
            Ended::Gone(gone) => (State::Failed, Some(gone.why)),
            Ended::Stalled(why) => (State::Stalled, Some(why)),
            Ended::Done if miscounted > 0 => {
                let why = format!(
                    "{miscounted} of {sent} answers have another length than was asked for{enough}, the first: {count}"
                );
                (State::Miscounted, Some(why))
            }
            Ended::Done if dropped > 0 => {
                (State::Dropped, Some(format!("{dropped} of {sent} requests had no answer{enough}, the first: {drop}")))
            }
            Ended::Done => (State::Ok, None),
        };
        for place in self.open.into_keys() {
            if let Some(trip) = self.trips.get_mut(place) {
                trip.error.clone_from(&why);
            }
        }
        Outcome { trips: self.trips, state, why }
    }
}
