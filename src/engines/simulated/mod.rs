//! A service with a clock of its own, to try the client on: what it says of a request, and when, is a function.

mod batches;
mod faults;
mod load;
mod prompts;
mod queue;
mod serving;

use super::client::{Outcome, drive};
use super::service::{Gone, Heard, Service, What};
use super::workload::{Arrivals, Length, Workload};
use jitune_peer::engine::{End, Finish, Submit};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Tokens of the simulated model.
const VOCAB: u64 = 5000;

/// `answer` says what is heard of a request that is submitted at a moment.
struct Simulated<F> {
    now: Duration,
    order: u64,
    /// What will be heard, by time and then in the order in which it was said.
    coming: BTreeMap<(Duration, u64), (u64, What)>,
    answer: F,
    /// When it dies.
    dies: Option<Duration>,
    /// Whether it passes over `cancel`.
    deaf: bool,
}

impl<F: FnMut(Duration, &Submit) -> Vec<(Duration, What)>> Simulated<F> {
    /// Opened a while ago: its clock is not at 0.
    fn new(answer: F) -> Simulated<F> {
        Simulated { now: s(1000.0), order: 0, coming: BTreeMap::new(), answer, dies: None, deaf: false }
    }

    fn say(&mut self, id: u64, at: Duration, what: What) {
        self.order += 1;
        self.coming.insert((at, self.order), (id, what));
    }
}

impl<F: FnMut(Duration, &Submit) -> Vec<(Duration, What)>> Service for Simulated<F> {
    fn now(&self) -> Duration {
        self.now
    }

    fn submit(&mut self, id: u64, request: Submit) -> Result<(), Gone> {
        for (at, what) in (self.answer)(self.now, &request) {
            self.say(id, at, what);
        }
        Ok(())
    }

    fn cancel(&mut self, id: u64) -> Result<(), Gone> {
        if !self.deaf {
            self.coming.retain(|_, (of, _)| *of != id);
            self.say(id, self.now, end(Finish::Cancelled));
        }
        Ok(())
    }

    fn next(&mut self, until: Duration) -> Result<Option<Heard>, Gone> {
        let first = self.coming.first_key_value().map(|((at, _), _)| *at).filter(|at| *at <= until);
        if self.dies.is_some_and(|dies| dies <= first.unwrap_or(until)) {
            return Err(Gone { why: "out of memory".into() });
        }
        let heard = first.and_then(|_| self.coming.pop_first()).map(|((at, _), (id, what))| Heard { id, at, what });
        self.now = self.now.max(first.unwrap_or(until));
        Ok(heard)
    }
}

fn s(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn tokens(ids: &[u32]) -> What {
    What::Tokens { ids: ids.to_vec(), known: true }
}

fn end(why: Finish) -> What {
    What::End(End { why, ..End::default() })
}

/// An answer of so many tokens, the first after `first` and each other after `gap`, and its end.
fn answer(now: Duration, count: usize, first: Duration, gap: Duration) -> Vec<(Duration, What)> {
    let at = |place: usize| now + first + gap * place as u32;
    let mut all: Vec<_> = (0..count).map(|place| (at(place), tokens(&[place as u32 + 7]))).collect();
    all.push((at(count.saturating_sub(1)), end(Finish::Length)));
    all
}

/// So many clients, prompts of 32 tokens and answers of 4.
fn closed(clients: usize, requests: usize) -> Workload {
    let (prompt, answer) = (Length::Fixed(32), Length::Fixed(4));
    Workload { arrivals: Arrivals::Closed { clients }, prompt, answer, requests, seconds: 1e6, ..Workload::default() }
}

/// Arrivals at random, prompts and answers of one token.
fn open(rate: f64, burstiness: f64, requests: usize) -> Workload {
    let arrivals = Arrivals::Open { rate, burstiness, most: None };
    Workload { arrivals, requests, seconds: 1e6, ..Workload::default() }
}

/// Drives it to its end.
fn run(service: &mut impl Service, workload: &Workload) -> Outcome {
    drive(service, workload, VOCAB, &AtomicBool::new(false), &mut |_| ()).unwrap()
}
