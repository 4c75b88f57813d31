//! The requests of a workload, one after another as they are due.

use super::client::Trip;
use super::random::Random;
use super::workload::{Arrival, Arrivals, Workload, WorkloadError, read_trace};
use jitune_peer::engine::{Sampling, Submit};
use std::collections::BTreeMap;
use std::time::Duration;

/// Ids below this are left out where the vocabulary is large: they often mean something to an engine.
const SPECIAL: u64 = 256;
/// What part of [`Random::of`] the gaps between arrivals are.
const GAPS: u64 = u64::MAX;

/// What is to be asked when; times since the cell's begin.
pub(super) struct Plan<'a> {
    workload: &'a Workload,
    vocab: Vocab,
    seed: u64,
    gaps: Random,
    trace: std::vec::IntoIter<Arrival>,
    /// What will be due, by time and then in the order in which it was placed.
    queue: BTreeMap<(Duration, u64), Next>,
    placed: u64,
    /// Chats (where there are no turns: requests) that were begun.
    chats: u64,
    /// What was said in chats whose turn is on its way.
    said: BTreeMap<u64, Vec<u32>>,
    /// Requests of the warm-up that have not ended.
    warm: usize,
    /// Requests that count and were made.
    made: usize,
    /// When the last random arrival was due, in seconds.
    arrived_s: f64,
    /// When the time is over; during the warm-up it has not begun.
    end: Duration,
    /// Whether no request will be made any more.
    closed: bool,
}

enum Next {
    /// A prompt that has nothing to do with another.
    New,
    /// One of the warm-up.
    Warm,
    /// One of a trace.
    Traced(Arrival),
    /// The next turn of a chat, and what was said before.
    Turn(u64, u32, Vec<u32>),
}

/// The ids that prompts are made of.
struct Vocab {
    low: u64,
    span: u64,
    shift: u64,
}

impl Vocab {
    fn random(&self, random: &mut Random) -> u32 {
        (self.low + random.below(self.span)) as u32
    }

    /// The first token of prompt `number`: another one for each, so that no two begin alike before all ids have been used.
    fn first(&self, number: u64) -> u32 {
        (self.low + (self.shift.wrapping_add(number)) % self.span) as u32
    }
}

impl<'a> Plan<'a> {
    /// The plan of a sound workload on a model of `vocab` tokens, from 0 on.
    pub fn new(workload: &'a Workload, vocab: u64) -> Result<Plan<'a>, WorkloadError> {
        workload.check()?;
        let vocab = vocab.min(1 << 32);
        if vocab == 0 {
            return Err(WorkloadError::Nonsense("the model has no vocabulary".into()));
        }
        let trace = match &workload.arrivals {
            Arrivals::Trace { file } => read_trace(file)?,
            _ => Vec::new(),
        };
        let seed = seed(workload);
        let low = if vocab > 4 * SPECIAL { SPECIAL } else { 0 };
        let shift = Random::of(seed, GAPS, GAPS).below(vocab - low).wrapping_add(workload.variant);
        let vocab = Vocab { low, span: vocab - low, shift };
        let mut plan = Plan {
            workload,
            vocab,
            seed,
            gaps: Random::of(seed, GAPS, 0),
            trace: trace.into_iter(),
            queue: BTreeMap::new(),
            placed: 0,
            chats: 0,
            said: BTreeMap::new(),
            warm: workload.warm,
            made: 0,
            arrived_s: 0.0,
            end: Duration::MAX,
            closed: false,
        };
        match workload.warm {
            0 => plan.begin(Duration::ZERO),
            warm => (0..warm).for_each(|_| plan.place(Duration::ZERO, Next::Warm)),
        }
        Ok(plan)
    }

    /// Whether what runs now is the warm-up.
    pub fn is_warm(&self) -> bool {
        self.warm > 0
    }

    /// When the next request is due; none where no more will be made unless one ends.
    pub fn next(&self, now: Duration) -> Option<Duration> {
        let due = self.queue.first_key_value()?.0.0;
        let left = self.is_warm() || (self.made < self.workload.requests && now < self.end && due < self.end);
        left.then_some(due)
    }

    /// Makes the next request if it is due.
    pub fn take(&mut self, now: Duration) -> Option<(Trip, Submit)> {
        let due = self.next(now).filter(|due| *due <= now)?;
        let (_, next) = self.queue.pop_first()?;
        let warm = matches!(next, Next::Warm);
        let (chat, turn, before, lengths) = match next {
            Next::Turn(chat, turn, said) => (chat, turn, said, None),
            Next::Traced(arrival) => (self.begun(), 0, Vec::new(), Some((arrival.prompt, arrival.answer))),
            Next::New | Next::Warm => (self.begun(), 0, Vec::new(), None),
        };
        if !warm {
            self.made += 1;
            if turn == 0 {
                self.arrive();
            }
        }
        let mut random = Random::of(self.seed, chat, turn.into());
        let (more, asked) =
            lengths.unwrap_or_else(|| (self.workload.prompt.draw(&mut random), self.workload.answer.draw(&mut random)));
        // Servers take seeds of 31 bits, some of them no more.
        let seed = random.bits() >> 33;
        let mut prompt = before;
        prompt.reserve_exact(more);
        let old = prompt.len();
        if old == 0 {
            prompt.push(self.vocab.first(chat));
        }
        prompt.extend((prompt.len()..old + more).map(|_| self.vocab.random(&mut random)));
        let chats = self.workload.turns > 1 && !warm;
        if chats && turn + 1 < self.workload.turns {
            self.said.insert(chat, prompt.clone());
        }
        let turn = chats.then_some((chat, turn));
        let trip = Trip { turn, warm, due, prompt: prompt.len(), asked, ..Trip::default() };
        let sampling = Sampling { temperature: self.workload.temperature, seed, ..Sampling::default() };
        Some((trip, Submit { prompt, most: asked, sampling, ignore_eos: true }))
    }

    /// Goes on after a request that has ended: with the chat's next turn, or with the client's next request.
    pub fn ended(&mut self, trip: &Trip) {
        let at = trip.end.unwrap_or(trip.sent);
        if trip.warm {
            self.warm = self.warm.saturating_sub(1);
            if self.warm == 0 {
                self.begin(at);
            }
            return;
        }
        let said = trip.turn.and_then(|(chat, turn)| Some((chat, turn, self.said.remove(&chat)?)));
        match said {
            Some((chat, turn, mut said)) if trip.error.is_none() => {
                let tokens = trip.tokens();
                if trip.ids.len() == tokens {
                    said.extend(&trip.ids);
                } else {
                    // A server of text does not say which tokens it told; as many others keep the lengths as they should be.
                    let mut random = Random::of(self.seed, chat, GAPS ^ u64::from(turn));
                    said.extend((0..tokens).map(|_| self.vocab.random(&mut random)));
                }
                let think = Duration::from_secs_f64(self.workload.think_s);
                self.place(at.saturating_add(think), Next::Turn(chat, turn + 1, said));
            }
            _ if matches!(self.workload.arrivals, Arrivals::Closed { .. }) => self.place(at, Next::New),
            _ => (),
        }
    }

    /// Makes no request any more.
    pub fn close(&mut self) {
        self.queue.clear();
        self.closed = true;
    }

    /// Whether it was closed.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Begins what counts.
    fn begin(&mut self, now: Duration) {
        self.end = now.saturating_add(Duration::from_secs_f64(self.workload.seconds));
        self.arrived_s = now.as_secs_f64();
        match self.workload.arrivals {
            Arrivals::Closed { clients } => (0..clients).for_each(|_| self.place(now, Next::New)),
            Arrivals::Open { .. } => self.arrive(),
            Arrivals::Trace { .. } => {
                while let Some(arrival) = self.trace.next() {
                    self.place(now.saturating_add(seconds(arrival.at_s)), Next::Traced(arrival));
                }
            }
        }
    }

    /// Places the next random arrival, in absolute time: whoever is late with one is not late with all after it.
    fn arrive(&mut self) {
        if let Arrivals::Open { rate, burstiness, .. } = self.workload.arrivals {
            let chats = rate / f64::from(self.workload.turns);
            self.arrived_s += self.gaps.gamma(burstiness) / (chats * burstiness);
            self.place(seconds(self.arrived_s), Next::New);
        }
    }

    fn place(&mut self, due: Duration, next: Next) {
        if !self.closed {
            self.placed += 1;
            self.queue.insert((due, self.placed), next);
        }
    }

    fn begun(&mut self) -> u64 {
        self.chats += 1;
        self.chats - 1
    }
}

fn seconds(s: f64) -> Duration {
    Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX)
}

/// The seed of a workload's random choices: two workloads of one run have no prompt in common (FNV-1a of the name).
fn seed(workload: &Workload) -> u64 {
    let hash = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    workload.seed ^ workload.name.bytes().fold(0xcbf2_9ce4_8422_2325, hash)
}
