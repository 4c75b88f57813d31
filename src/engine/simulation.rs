//! The scheduler and the pages of the cache under random requests, with a model of what the cache holds.
//!
//! `JITUNE_SIMULATED` is the number of requests; a million without it. The lines that it prints are seen with `--nocapture`.

use super::blocks::Blocks;
use super::schedule::{Id, Limits, Refused, Scheduler, Step, UNKNOWN};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Below `n`.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

fn mix(v: u64) -> u64 {
    let v = (v ^ (v >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let v = (v ^ (v >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    v ^ (v >> 31)
}

/// What keys and values of a token depend on: it and all before it.
fn behind(before: u64, token: i32) -> u64 {
    mix(before ^ (token as u64).wrapping_add(0x1234_5678_9abc_def1))
}

/// Tokens of the model. Few, so that prompts share beginnings by chance too.
const VOCAB: usize = 3;
/// Tokens that every prompt begins with some of.
const STEMS: usize = 6;
const STEM: usize = 40;
/// Requests whose tokens later prompts begin with, as in a conversation.
const REMEMBERED: usize = 64;

/// A cache and its limits, and who comes.
struct World {
    name: &'static str,
    pages: usize,
    page: usize,
    limits: Limits,
    context: usize,
    prefix: bool,
    /// Whether the hashes of different pages are often equal.
    collide: bool,
    /// Requests per step, per mille, on a usual day.
    load: usize,
    /// Tokens of a long answer at most; one in two is.
    answer: usize,
    /// Preemptions per mille of requests, at least and at most.
    preempted: (u64, u64),
}

impl World {
    fn blocks(&self) -> Blocks {
        fn weak(before: u64, tokens: &[i32]) -> u64 {
            let mut hasher = DefaultHasher::new();
            (before, tokens).hash(&mut hasher);
            hasher.finish() % 61
        }
        match self.collide {
            false => Blocks::new(self.pages, self.page, self.prefix),
            true => Blocks::with_hash(self.pages, self.page, self.prefix, weak),
        }
    }
}

struct Request {
    /// Those too that the device has chosen and of which the scheduler has not heard.
    tokens: Vec<i32>,
    /// Tokens that the scheduler knows.
    known: usize,
    /// Tokens that are ever computed.
    most: usize,
    /// What the cache must hold of each token.
    held: Vec<u64>,
    prompt: usize,
    /// Tokens after which it ends, of those that it asked for.
    answer: usize,
    computed: usize,
    cached: Option<usize>,
    /// Steps that it may take once it is the oldest.
    cost: u64,
    arrived: u64,
    /// The step in which it must have ended.
    deadline: u64,
}

impl Request {
    fn push(&mut self, token: i32) {
        self.held.push(behind(self.held.last().copied().unwrap_or(0), token));
        self.tokens.push(token);
    }

    /// The token that the model says comes next: a function of all before it.
    fn following(&self) -> i32 {
        (mix(self.held[self.held.len() - 1]) % VOCAB as u64) as i32
    }
}

#[derive(Default)]
struct Totals {
    steps: u64,
    requests: u64,
    /// Steps whose rows, tokens and pages are counted: those that had some.
    busy: u64,
    computed: u64,
    used: u64,
    live: u64,
    prompt: u64,
    cached: u64,
    preempted: u64,
    /// Requests that began again, and their tokens that were computed again.
    admitted: u64,
    again: u64,
    cancelled: u64,
    refused: u64,
    /// Steps of the request that took most, and the largest share of its bound that one took.
    longest: u64,
    share: f64,
}

struct Simulation<'a> {
    world: &'a World,
    random: Random,
    scheduler: Scheduler,
    /// By id, and ids are given in the order of arrival.
    alive: BTreeMap<Id, Request>,
    /// What lies in each place of the cache.
    cache: Vec<u64>,
    /// Of each page the last row, counted over all steps, that had it in its table; and the last step in which two had.
    seen: Vec<u64>,
    shared: Vec<u64>,
    rows: u64,
    stems: Vec<Vec<i32>>,
    remembered: Vec<Vec<i32>>,
    /// What the device has chosen in the last step, where the next one begins before that is heard.
    flight: Vec<(Id, i32)>,
    /// The costs of all that are alive.
    ahead: u64,
    totals: Totals,
}

impl<'a> Simulation<'a> {
    fn new(world: &'a World, seed: u64) -> Simulation<'a> {
        let mut random = Random(seed);
        let mut stems: Vec<Vec<i32>> = Vec::new();
        for _ in 0..STEMS {
            // A tree: each leaves an earlier one somewhere.
            let mut stem: Vec<i32> = match stems.len() {
                0 => Vec::new(),
                n => stems[random.below(n)][..random.below(STEM)].to_vec(),
            };
            stem.resize_with(STEM, || random.below(VOCAB) as i32);
            stems.push(stem);
        }
        Simulation {
            world,
            random,
            scheduler: Scheduler::new(world.limits, world.blocks(), world.context),
            alive: BTreeMap::new(),
            cache: vec![0; world.pages * world.page],
            seen: vec![0; world.pages],
            shared: vec![0; world.pages],
            rows: 0,
            stems,
            remembered: Vec::new(),
            flight: Vec::new(),
            ahead: 0,
            totals: Totals::default(),
        }
    }

    fn run(mut self, requests: u64) -> Totals {
        let mut load = self.world.load;
        while self.totals.requests < requests || !self.alive.is_empty() {
            if self.random.once_in(100) {
                // Quiet times let the queue run empty, and bursts fill it.
                load = self.world.load * [0, 1, 1, 3][self.random.below(4)];
            }
            let mut arrivals = load / 1000 + usize::from(self.random.below(1000) < load % 1000);
            while arrivals > 0 && self.totals.requests < requests {
                self.arrive();
                arrivals -= 1;
            }
            self.leave(15);
            let ran: BTreeSet<Id> = self.alive.keys().copied().filter(|id| self.scheduler.runs(*id)).collect();
            let step = self.scheduler.next();
            self.beside(&step, &ran);
            self.verify(&step);
            self.write(&step);
            // The device has computed all rows, those too whose requests end before the step is counted.
            let chosen = self.choose(&step);
            self.leave(15);
            self.scheduler.begun(&step);
            self.totals.steps += 1;
            let before = std::mem::replace(&mut self.flight, chosen);
            self.answer(&before);
            // One step is ahead of what is known, or none.
            if self.random.once_in(2) {
                let now = std::mem::take(&mut self.flight);
                self.answer(&now);
            }
            if self.totals.steps.is_multiple_of(64) || self.world.pages < 32 {
                self.scheduler.check().unwrap();
            }
        }
        self.scheduler.check().unwrap();
        assert!(self.scheduler.is_idle() && self.scheduler.running() + self.scheduler.waiting() == 0);
        assert_eq!((self.scheduler.blocks().used(), self.scheduler.blocks().free()), (0, self.world.pages));
        self.totals
    }

    fn arrive(&mut self) {
        let World { context, limits, page, pages, .. } = *self.world;
        let mut tokens = match self.remembered.len() {
            // What was said and answered before, and more.
            n if n > 0 && self.random.once_in(4) => self.remembered[self.random.below(n)].clone(),
            _ => self.stems[self.random.below(STEMS)][..self.random.below(STEM)].to_vec(),
        };
        let more = 1 + self.random.below(8);
        tokens.extend((0..more).map(|_| self.random.below(VOCAB) as i32));
        let long = if self.random.once_in(2) { self.world.answer } else { 6 };
        let most = 1 + self.random.below(long);
        let id = self.totals.requests;
        let all = tokens.len() + most;
        let taken = self.scheduler.submit(id, tokens.clone(), most);
        match taken {
            Err(Refused::Full { .. }) => {
                assert!(self.scheduler.waiting() >= limits.waiting);
                self.totals.refused += 1;
                return;
            }
            Err(Refused::TooLong { .. } | Refused::NeverFits { .. }) => {
                assert!(all > context || (all - 1).div_ceil(page) > pages, "{taken:?}");
                return;
            }
            Err(other) => panic!("{other}"),
            Ok(()) => {}
        }
        assert!(
            all <= context
                && (all - 1).div_ceil(page) <= pages
                && self.scheduler.waiting() <= limits.waiting.max(1) + limits.sequences
        );
        // Once it is the oldest, nothing takes its pages: it computes at most all that it knows, and then a token a step.
        // Its last token is heard of a step later, and until then it may have a row more that takes somebody's place.
        let cost = all.div_ceil(limits.tokens.min(limits.chunk)) as u64 + most as u64 + 2;
        self.ahead += cost;
        let (prompt, answer, arrived) = (tokens.len(), 1 + self.random.below(most), self.totals.steps);
        let deadline = arrived + self.ahead;
        let (held, computed, cached, known, most) = (Vec::new(), 0, None, prompt, all - 1);
        let mut request = Request {
            tokens: Vec::new(),
            known,
            most,
            held,
            prompt,
            answer,
            computed,
            cached,
            cost,
            arrived,
            deadline,
        };
        tokens.into_iter().for_each(|token| request.push(token));
        self.alive.insert(id, request);
        self.totals.requests += 1;
        self.totals.prompt += prompt as u64;
    }

    /// Somebody leaves, once in so many calls.
    fn leave(&mut self, often: usize) {
        if self.alive.is_empty() || !self.random.once_in(often) {
            return;
        }
        let (first, last) = (self.alive.keys().next().copied(), self.alive.keys().next_back().copied());
        let (Some(first), Some(last)) = (first, last) else { return };
        let id = first + self.random.below((last - first + 1) as usize) as u64;
        let gone = self.alive.remove(&id);
        assert_eq!(self.scheduler.cancel(id), gone.is_some());
        if let Some(gone) = gone {
            self.ahead -= gone.cost;
            self.totals.cancelled += 1;
        }
    }

    /// Who decodes, among those that ran, waits for no more of prompts than a chunk; and where the budget lets it, has its token.
    fn beside(&self, step: &Step, ran: &BTreeSet<Id>) {
        let Limits { tokens, chunk, .. } = self.world.limits;
        let of = |id: &Id| &self.alive[id];
        // Who lost its pages reads its answer again, too.
        let left = |id: &Id| of(id).tokens.len().min(of(id).most) - of(id).computed;
        let decodes = |id: &Id| of(id).computed >= of(id).prompt && left(id) == 1;
        let prompts: usize = step.rows.iter().map(|r| r.tokens.len()).filter(|n| *n > 1).sum();
        let beside = step.rows.iter().any(|r| r.tokens.len() == 1 && ran.contains(&r.id) && decodes(&r.id));
        assert!(!beside || prompts <= chunk, "{prompts} tokens of prompts beside decodes");
        if prompts > 0 && step.preempted == 0 {
            let due = ran.iter().filter(|id| decodes(id)).count();
            let served = step.rows.iter().filter(|r| r.tokens.len() == 1 && ran.contains(&r.id)).count();
            assert!(served >= due, "{due} decode, and {served} have a token beside {prompts} of {tokens}");
        }
    }

    fn verify(&mut self, step: &Step) {
        let World { page, pages, limits, prefix, .. } = *self.world;
        let rows = &step.rows;
        let tokens: usize = rows.iter().map(|r| r.tokens.len()).sum();
        assert!(tokens <= limits.tokens && rows.len() <= limits.sequences, "{tokens} tokens of {} rows", rows.len());
        assert!(self.scheduler.running() <= limits.sequences);
        assert!(rows.is_sorted_by_key(|r| r.tokens.len() > 1), "rows of one token come first");
        // First come, first served: those with a row are the oldest, and somebody has one.
        let mut ids: Vec<Id> = rows.iter().map(|r| r.id).collect();
        ids.sort();
        // Nothing is left to compute of who waits for the last token alone.
        let due = self.alive.iter().filter(|(_, r)| r.computed < r.tokens.len().min(r.most)).map(|(id, _)| id);
        assert!(ids.iter().eq(due.take(ids.len())), "{ids:?}: the oldest are passed over");
        assert!(!ids.is_empty() || self.alive.is_empty() || !self.flight.is_empty(), "nobody has a row");
        if let Some((id, oldest)) = self.alive.iter().next() {
            assert!(self.totals.steps <= oldest.deadline, "{id} should have ended in step {}", oldest.deadline);
        }
        // In this step a page is seen by the rows above `first`.
        let first = self.rows;
        let (mut again, mut live) = (0, 0);
        for row in rows {
            self.rows += 1;
            let request = self.alive.get_mut(&row.id).expect("a row is of somebody alive");
            let to = row.from + row.tokens.len();
            let known: Vec<i32> =
                (row.from..to).map(|at| if at < request.known { request.tokens[at] } else { UNKNOWN }).collect();
            assert!(row.from < to && row.tokens == known, "{}: other tokens", row.id);
            assert_eq!(row.samples, to == request.tokens.len());
            assert!(row.pages.len() == request.tokens.len().div_ceil(page), "{}: {} pages", row.id, row.pages.len());
            if row.from != request.computed {
                // Admitted for the first time, or again after it lost its pages.
                assert!(row.from == 0 || prefix && row.from % page == 0, "{}: from {}", row.id, row.from);
                again += u64::from(request.cached.is_some());
            }
            match request.cached {
                None => {
                    assert!(row.cached == row.from && row.cached < request.prompt && row.cached % page == 0);
                    request.cached = Some(row.cached);
                    self.totals.cached += row.cached as u64;
                }
                Some(cached) => assert_eq!(row.cached, cached),
            }
            for (at, held) in request.held[..row.from].iter().enumerate() {
                let place = row.pages[at / page] as usize * page + at % page;
                assert!(self.cache[place] == *held, "{}: token {at} is not in page {}", row.id, row.pages[at / page]);
            }
            for (i, &at) in row.pages.iter().enumerate() {
                let at = at as usize;
                assert!(at < pages && self.seen[at] != self.rows, "{}: page {at} twice", row.id);
                if self.seen[at] > first {
                    self.shared[at] = self.totals.steps + 1;
                } else {
                    live += page.min(to.saturating_sub(i * page)) as u64;
                }
                self.seen[at] = self.rows;
            }
        }
        for row in rows {
            for at in &row.pages[row.from / page..=(row.from + row.tokens.len() - 1) / page] {
                assert!(
                    self.shared[*at as usize] != self.totals.steps + 1,
                    "{}: page {at} is shared and written",
                    row.id
                );
                // Nobody has it who has no row in this step either.
                assert_eq!(self.scheduler.blocks().references(*at), 1, "{}: page {at}", row.id);
            }
        }
        let totals = &mut self.totals;
        totals.preempted += step.preempted as u64;
        if !rows.is_empty() {
            totals.busy += 1;
            totals.computed += tokens as u64;
            totals.used += self.scheduler.blocks().used() as u64;
            totals.live += live;
        }
        totals.admitted += again;
        assert!(totals.admitted <= totals.preempted, "somebody began again without having lost its pages");
    }

    fn write(&mut self, step: &Step) {
        let page = self.world.page;
        for row in &step.rows {
            let request = self.alive.get_mut(&row.id).expect("it was verified");
            let to = row.from + row.tokens.len();
            self.totals.again += request.computed.saturating_sub(row.from) as u64;
            request.computed = to;
            for at in row.from..to {
                self.cache[row.pages[at / page] as usize * page + at % page] = request.held[at];
            }
        }
    }

    /// The tokens that the device chooses in a step.
    fn choose(&mut self, step: &Step) -> Vec<(Id, i32)> {
        let mut chosen = Vec::new();
        for row in step.rows.iter().filter(|row| row.samples) {
            let request = self.alive.get_mut(&row.id).expect("it was verified");
            let token = request.following();
            request.push(token);
            chosen.push((row.id, token));
        }
        chosen
    }

    fn answer(&mut self, chosen: &[(Id, i32)]) {
        self.scheduler.known(chosen);
        for (id, _) in chosen {
            let Some(request) = self.alive.get_mut(id) else { continue };
            request.known += 1;
            if request.known < request.prompt + request.answer {
                continue;
            }
            self.scheduler.finish(*id);
            let Some(mut ended) = self.alive.remove(id) else { continue };
            ended.tokens.truncate(ended.known);
            let (took, most) = (self.totals.steps - ended.arrived, ended.deadline - ended.arrived);
            assert!(took <= most, "{id} took {took} steps, and {most} at most");
            self.totals.longest = self.totals.longest.max(took);
            self.totals.share = self.totals.share.max(took as f64 / most as f64);
            self.ahead -= ended.cost;
            match self.remembered.len() {
                REMEMBERED => {
                    let place = self.random.below(REMEMBERED);
                    self.remembered[place] = ended.tokens;
                }
                _ => self.remembered.push(ended.tokens),
            }
        }
    }
}

/// The worlds: all of memory, too little, a budget below the number of sequences, small chunks beside decodes, hashes that collide, pages of one token.
const WORLDS: [World; 9] = [
    World {
        name: "plenty",
        pages: 2048,
        page: 4,
        limits: Limits { tokens: 96, chunk: 96, sequences: 32, waiting: 64 },
        context: 128,
        prefix: true,
        collide: false,
        load: 4000,
        answer: 12,
        preempted: (0, 0),
    },
    World {
        name: "saturated",
        pages: 160,
        page: 16,
        limits: Limits { tokens: 64, chunk: 64, sequences: 32, waiting: 64 },
        context: 160,
        prefix: true,
        collide: false,
        load: 4000,
        answer: 60,
        preempted: (0, 100),
    },
    World {
        name: "scarce",
        pages: 30,
        page: 4,
        limits: Limits { tokens: 24, chunk: 24, sequences: 8, waiting: 16 },
        context: 100,
        prefix: true,
        collide: false,
        load: 400,
        answer: 40,
        preempted: (10, 1000),
    },
    World {
        name: "no prefixes",
        pages: 30,
        page: 4,
        limits: Limits { tokens: 24, chunk: 24, sequences: 8, waiting: 16 },
        context: 100,
        prefix: false,
        collide: false,
        load: 400,
        answer: 40,
        preempted: (10, 1000),
    },
    World {
        name: "small budget",
        pages: 200,
        page: 8,
        limits: Limits { tokens: 5, chunk: 5, sequences: 16, waiting: 32 },
        context: 128,
        prefix: true,
        collide: false,
        load: 300,
        answer: 12,
        preempted: (0, 100),
    },
    World {
        name: "collisions",
        pages: 64,
        page: 2,
        limits: Limits { tokens: 48, chunk: 48, sequences: 16, waiting: 32 },
        context: 100,
        prefix: true,
        collide: true,
        load: 800,
        answer: 30,
        preempted: (10, 1000),
    },
    World {
        name: "small chunk",
        pages: 120,
        page: 4,
        limits: Limits { tokens: 48, chunk: 5, sequences: 16, waiting: 32 },
        context: 100,
        prefix: true,
        collide: false,
        load: 500,
        answer: 30,
        preempted: (0, 1000),
    },
    World {
        name: "chunk of 1",
        pages: 30,
        page: 4,
        limits: Limits { tokens: 24, chunk: 1, sequences: 8, waiting: 16 },
        context: 100,
        prefix: true,
        collide: false,
        load: 100,
        answer: 40,
        preempted: (1, 1000),
    },
    World {
        name: "page of 1",
        pages: 110,
        page: 1,
        limits: Limits { tokens: 32, chunk: 32, sequences: 6, waiting: 16 },
        context: 110,
        prefix: true,
        collide: false,
        load: 600,
        answer: 30,
        preempted: (10, 1000),
    },
];

#[test]
fn no_page_is_lost_or_shared_wrongly_and_nobody_starves() {
    let requests: u64 = match std::env::var("JITUNE_SIMULATED") {
        Ok(number) => number.parse().expect("JITUNE_SIMULATED is a number of requests"),
        Err(_) => 1_000_000,
    };
    let each = requests.div_ceil(WORLDS.len() as u64).max(1000);
    for (seed, world) in WORLDS.iter().enumerate() {
        let t = Simulation::new(world, seed as u64).run(each);
        let percent = |part: u64, all: u64| 100.0 * part as f64 / all.max(1) as f64;
        println!(
            "{:12} {} requests in {} steps: budget used {:.0}%, pages {:.0}%, their places {:.0}%; prompt tokens found \
             {:.0}%; {} preempted, {:.1}% computed again; {} cancelled, {} refused; at most {} steps, {:.0}% of the bound",
            world.name,
            t.requests,
            t.steps,
            percent(t.computed, t.busy * world.limits.tokens as u64),
            percent(t.used, t.busy * world.pages as u64),
            percent(t.live, t.used * world.page as u64),
            percent(t.cached, t.prompt),
            t.preempted,
            percent(t.again, t.computed),
            t.cancelled,
            t.refused,
            t.longest,
            100.0 * t.share,
        );
        let (least, most) = world.preempted;
        assert!(t.preempted * 1000 >= least * each && t.preempted * 1000 <= most * each, "{} preempted", t.preempted);
        assert_eq!(t.cached > 0, world.prefix);
        assert!(t.cancelled > 0);
    }
}
