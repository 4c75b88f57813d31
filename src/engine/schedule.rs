//! Who computes what in the next step: one budget of tokens, and no phases.
//!
//! A sequence has tokens that are known and tokens that are computed, and a step lets the second catch up with the first: by one
//! in a decode, by a chunk in a prompt; beside decodes the chunks of a step have a bound of their own, since those wait for them. First come, first served, in everything: those that run are served in the order in which
//! they came, so that with a budget smaller than their number the oldest are; then the oldest of those that wait are admitted;
//! and where a page is missing the newest loses its own, to be computed again. The oldest loses none and has a row in each step,
//! so each has its turn. Knows no device and no clock.

use super::blocks::Blocks;
use std::collections::{BTreeMap, HashMap};

/// A request's number, chosen by the caller.
pub(super) type Id = u64;

/// How much a step computes, and how many may wait. Each is one at least.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Tokens of a step.
    pub tokens: usize,
    /// Tokens of prompts in a step beside sequences that decode, which have one token each.
    pub chunk: usize,
    /// Sequences that run, and so those of a step.
    pub sequences: usize,
    /// Requests that wait. Those that are to be computed again are not turned away.
    pub waiting: usize,
}

/// Why a request is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// There is nothing to compute.
    #[error("the prompt has no token: send one at least")]
    Empty,
    /// It leaves the context.
    #[error(
        "a prompt of {prompt} tokens and {most} for the answer are over the context of {context}: shorten the prompt, ask for \
         fewer tokens, or open the engine with a longer context"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens of the answer at most.
        most: usize,
        /// Tokens of a sequence at most.
        context: usize,
    },
    /// It would not fit if it were alone.
    #[error(
        "it may need {needed} pages of the cache, which has {pages}: ask for fewer tokens, or give the cache more memory"
    )]
    NeverFits {
        /// Pages of all of its tokens.
        needed: usize,
        /// Pages of the cache.
        pages: usize,
    },
    /// Too many wait.
    #[error("{waiting} requests wait already: try again later, or let more wait")]
    Full {
        /// Requests that wait.
        waiting: usize,
    },
    /// Another request has its number.
    #[error("request {id} has not ended yet: give each request a number of its own")]
    Known {
        /// The number.
        id: u64,
    },
}

/// What requests may fill.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Tokens of a sequence at most, prompt and answer.
    pub context: usize,
    /// Tokens of a page of the cache.
    pub page: usize,
    /// Pages of the cache.
    pub pages: usize,
}

/// Whether a request fits when it is alone: tokens of its prompt, and of its answer at most (one at least).
pub(super) fn fits(prompt: usize, most: usize, room: &Room) -> Result<(), Refused> {
    let Room { context, page, pages } = *room;
    let most = most.max(1);
    if prompt == 0 {
        return Err(Refused::Empty);
    }
    let all = prompt.saturating_add(most);
    if all > context {
        return Err(Refused::TooLong { prompt, most, context });
    }
    // The last token of the answer is in no page.
    let needed = (all - 1).div_ceil(page);
    if needed > pages {
        return Err(Refused::NeverFits { needed, pages });
    }
    Ok(())
}

/// Stands for a token that is being chosen, in the step before.
pub(super) const UNKNOWN: i32 = -1;

/// What a step computes of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Whose it is.
    pub id: Id,
    /// Where its first token stands in the sequence: tokens that are in the cache already.
    pub from: usize,
    /// The tokens that are computed. The last one may be [`UNKNOWN`].
    pub tokens: Vec<i32>,
    /// The pages of the sequence, in order; those of its known tokens, so there may be more than the step needs.
    pub pages: Vec<u32>,
    /// Whether its last token is the last one known, so that the next is sampled.
    pub samples: bool,
    /// Tokens of the prompt that the cache had when the request was first admitted.
    pub cached: usize,
}

/// What a step computes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Those of one token first, then those of several; both in the order in which the requests came.
    pub rows: Vec<Row>,
    /// Sequences that lost their pages for it.
    pub preempted: usize,
}

#[derive(Debug)]
struct Sequence {
    id: Id,
    /// Those that are known: the prompt and the answer so far.
    tokens: Vec<i32>,
    /// Tokens that are ever computed: all but the last of the answer.
    most: usize,
    /// Tokens that are in the cache.
    computed: usize,
    pages: Vec<u32>,
    /// Pages that can be found.
    full: usize,
    cached: Option<usize>,
    /// Tokens behind the last one that steps choose and that are not known yet.
    pending: usize,
}

impl Sequence {
    /// Its tokens, those that are being chosen included.
    fn len(&self) -> usize {
        self.tokens.len() + self.pending
    }

    /// Tokens that are not computed.
    fn left(&self) -> usize {
        self.len().min(self.most).saturating_sub(self.computed)
    }

    /// Whether it may need more pages of `page` tokens than those of the tokens that it has.
    fn grows(&self, page: usize) -> bool {
        self.len().next_multiple_of(page) < self.most
    }

    /// Lets its pages be found whose tokens are all computed and known.
    fn fill(&mut self, blocks: &mut Blocks) {
        let page = blocks.page();
        let full = self.tokens.chunks(page).zip(&self.pages).enumerate();
        for (i, (tokens, &at)) in full.take(self.computed / page).skip(self.full) {
            if tokens.len() < page {
                return;
            }
            let before = i.checked_sub(1).and_then(|b| self.pages.get(b));
            blocks.full(at, before.copied(), tokens);
            self.full = i + 1;
        }
    }

    fn row(&self, budget: usize) -> Row {
        let to = self.computed + self.left().min(budget);
        Row {
            id: self.id,
            from: self.computed,
            tokens: (self.computed..to).map(|i| self.tokens.get(i).copied().unwrap_or(UNKNOWN)).collect(),
            pages: self.pages.clone(),
            samples: to == self.len(),
            cached: self.cached.unwrap_or(0),
        }
    }
}

/// Requests, and whose turn it is.
pub(super) struct Scheduler {
    limits: Limits,
    blocks: Blocks,
    context: usize,
    /// When each request came.
    arrivals: HashMap<Id, u64>,
    /// Both by arrival. All that run came before all that wait.
    running: BTreeMap<u64, Sequence>,
    waiting: BTreeMap<u64, Sequence>,
    /// Who was the first of those that wait and did not fit, and the pages that it lacked.
    blocked: Option<(u64, usize)>,
    /// The last arrival.
    arrived: u64,
}

impl Scheduler {
    /// Nobody waits; `context` is the most tokens of a sequence, prompt and answer.
    pub fn new(limits: Limits, blocks: Blocks, context: usize) -> Scheduler {
        let Limits { tokens, chunk, sequences, waiting } = limits;
        Scheduler {
            limits: Limits {
                tokens: tokens.max(1),
                chunk: chunk.max(1),
                sequences: sequences.max(1),
                waiting: waiting.max(1),
            },
            blocks,
            context,
            arrivals: HashMap::new(),
            running: BTreeMap::new(),
            waiting: BTreeMap::new(),
            blocked: None,
            arrived: 0,
        }
    }

    /// Lets a request wait for its turn: a prompt, and how many tokens its answer has at most (one at least). What is taken
    /// fits into the cache when it is alone.
    pub fn submit(&mut self, id: Id, prompt: Vec<i32>, most: usize) -> Result<(), Refused> {
        let room = Room { context: self.context, page: self.blocks.page(), pages: self.blocks.pages() };
        fits(prompt.len(), most, &room)?;
        let (all, waiting) = (prompt.len() + most.max(1), self.waiting.len());
        if self.arrivals.contains_key(&id) {
            return Err(Refused::Known { id });
        }
        if waiting >= self.limits.waiting {
            return Err(Refused::Full { waiting });
        }
        self.arrived += 1;
        self.arrivals.insert(id, self.arrived);
        let (pages, cached, most) = (Vec::new(), None, all - 1);
        let sequence = Sequence { id, tokens: prompt, most, computed: 0, pages, full: 0, cached, pending: 0 };
        self.waiting.insert(self.arrived, sequence);
        Ok(())
    }

    /// Ends a request wherever it is, and gives its pages back at once: what a step computes of it is not counted any more.
    /// False where there is none of that number.
    pub fn cancel(&mut self, id: Id) -> bool {
        let Some(arrival) = self.arrivals.remove(&id) else { return false };
        if let Some(sequence) = self.running.remove(&arrival).or_else(|| self.waiting.remove(&arrival)) {
            self.blocks.release(&sequence.pages);
        }
        true
    }

    /// Ends a request that has its last token. Its full pages stay cached.
    pub fn finish(&mut self, id: Id) {
        self.cancel(id);
    }

    /// What to compute next. To be followed by [`Scheduler::begun`]: until then the same is due.
    pub fn next(&mut self) -> Step {
        let page = self.blocks.page();
        let mut step = Step::default();
        let mut budget = self.limits.tokens;
        // What prompts may have of it. One that is not read to its end is the newest that runs, so that none is passed over.
        let decodes = self.running.values().any(|sequence| sequence.left() == 1);
        let mut prompts = if decodes { self.limits.chunk } else { self.limits.tokens };
        // Running sequences that may need a page more.
        let mut growing = 0;
        let mut from = 0;
        while budget > 0 && prompts > 0 {
            let Some((&arrival, sequence)) = self.running.range_mut(from..).next() else { break };
            if sequence.left() > 0 {
                if sequence.pages.len() * page < sequence.len() {
                    match self.blocks.take() {
                        Some(page) => sequence.pages.push(page),
                        // The newest, which has no row yet, and may be this one.
                        None => {
                            self.preempt();
                            step.preempted += 1;
                        }
                    }
                    continue;
                }
                growing += usize::from(sequence.grows(page));
                let prompt = sequence.left() > 1;
                let row = sequence.row(if prompt { budget.min(prompts) } else { budget });
                budget -= row.tokens.len();
                prompts -= if prompt { row.tokens.len() } else { 0 };
                step.rows.push(row);
            }
            from = arrival + 1;
        }
        while budget > 0 && prompts > 0 && step.preempted == 0 && self.running.len() < self.limits.sequences {
            let Some(row) = self.admit(&mut growing, budget.min(prompts)) else { break };
            (budget, prompts) = (budget - row.tokens.len(), prompts - row.tokens.len());
            step.rows.push(row);
        }
        // A stable order: by arrival within each part.
        step.rows.sort_by_key(|row| row.tokens.len() > 1);
        step
    }

    /// Takes the first of those that wait among those that run, with pages for all tokens that it knows. One page must be left
    /// for each sequence that may still need one, itself included: a page lasts for as many steps as it has tokens, and so long
    /// nobody loses pages because of this one. One that is alone needs no such reserve.
    fn admit(&mut self, growing: &mut usize, budget: usize) -> Option<Row> {
        let page = self.blocks.page();
        let entry = self.waiting.first_entry()?;
        let arrival = *entry.key();
        let sequence = entry.get();
        // One that lost its pages while its token was being chosen.
        if sequence.pending > 0 {
            return None;
        }
        let grows = usize::from(sequence.grows(page));
        let reserve = if self.running.is_empty() { 0 } else { *growing + grows };
        let free = self.blocks.free();
        // Not looked at again until there are more pages: a long prompt takes long to look up.
        if self.blocked.is_some_and(|(who, lacked)| who == arrival && lacked + reserve > free) {
            return None;
        }
        let mut pages = self.blocks.find(&sequence.tokens);
        let found = pages.len() * page;
        let needed = sequence.tokens.len().div_ceil(page) - pages.len();
        if needed + reserve > self.blocks.free() {
            // Of the pages that were found, those that nobody uses count as free.
            self.blocked = Some((arrival, needed + free - self.blocks.free()));
            self.blocks.release(&pages);
            return None;
        }
        pages.extend((0..needed).map_while(|_| self.blocks.take()));
        let mut sequence = entry.remove();
        sequence.pages = pages;
        (sequence.computed, sequence.full) = (found, found / page);
        sequence.cached.get_or_insert(found);
        *growing += grows;
        let row = sequence.row(budget);
        self.running.insert(arrival, sequence);
        Some(row)
    }

    /// Lets the newest that runs wait again, first of all, since it came before those that wait.
    fn preempt(&mut self) {
        let Some((arrival, mut sequence)) = self.running.pop_last() else { return };
        self.blocks.release(&std::mem::take(&mut sequence.pages));
        (sequence.computed, sequence.full) = (0, 0);
        self.waiting.insert(arrival, sequence);
    }

    /// Counts a step that the device is given, behind those before it: its tokens are computed for whatever comes after. Rows of requests
    /// that ended meanwhile are ignored.
    pub fn begun(&mut self, step: &Step) {
        for row in &step.rows {
            let Some(sequence) = self.arrivals.get(&row.id).and_then(|a| self.running.get_mut(a)) else { continue };
            // Counted once.
            if sequence.computed != row.from {
                continue;
            }
            sequence.computed += row.tokens.len();
            sequence.pending += usize::from(row.samples);
            sequence.fill(&mut self.blocks);
        }
    }

    /// Hears the tokens that a step chose, by requests. Before that a sequence has one row more at most, which asks for that token.
    pub fn known(&mut self, chosen: &[(Id, i32)]) {
        for (id, token) in chosen {
            let Some(arrival) = self.arrivals.get(id) else { continue };
            let sequence = self.running.get_mut(arrival).or_else(|| self.waiting.get_mut(arrival));
            if let Some(sequence) = sequence.filter(|s| s.pending > 0) {
                sequence.pending -= 1;
                sequence.tokens.push(*token);
                sequence.fill(&mut self.blocks);
            }
        }
    }

    /// Requests that wait for their turn.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether a request has pages.
    #[cfg(test)]
    pub fn runs(&self, id: Id) -> bool {
        self.arrivals.get(&id).is_some_and(|arrival| self.running.contains_key(arrival))
    }

    /// Sequences that have pages.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Tokens that their pages hold.
    pub fn live(&self) -> usize {
        self.running.values().map(|sequence| sequence.computed).sum()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.arrivals.is_empty()
    }

    /// The pages of the cache.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// Whether each reference to a page is one of a running sequence, and each request is in one place.
    #[cfg(test)]
    pub fn check(&self) -> Result<(), String> {
        self.blocks.check()?;
        let mut references = vec![0; self.blocks.pages()];
        self.running.values().flat_map(|s| &s.pages).for_each(|page| references[*page as usize] += 1);
        for (page, count) in references.into_iter().enumerate() {
            if self.blocks.references(page as u32) != count {
                return Err(format!("{count} sequences have page {page}, not {}", self.blocks.references(page as u32)));
            }
        }
        if let Some(s) = self.waiting.values().find(|s| !s.pages.is_empty() || s.computed > 0) {
            return Err(format!("{} waits and has pages", s.id));
        }
        let all = self.running.iter().chain(&self.waiting);
        if !all.clone().is_sorted_by_key(|(arrival, _)| *arrival)
            || all.clone().count() != self.arrivals.len()
            || !all.clone().all(|(arrival, s)| self.arrivals.get(&s.id) == Some(arrival))
        {
            return Err("requests are lost, or out of order".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(tokens: usize, sequences: usize, pages: usize) -> Scheduler {
        chunked([tokens, tokens], sequences, pages)
    }

    /// With so many tokens of a step, and of prompts beside decodes.
    fn chunked([tokens, chunk]: [usize; 2], sequences: usize, pages: usize) -> Scheduler {
        Scheduler::new(Limits { tokens, chunk, sequences, waiting: 8 }, Blocks::new(pages, 4, true), 64)
    }

    /// Takes a step: of each row whose it is, from where, how many tokens, and whether it samples; its answer is its id.
    fn take(scheduler: &mut Scheduler) -> Vec<(Id, usize, usize, bool)> {
        let step = scheduler.next();
        answer(scheduler, &step);
        step.rows.iter().map(|r| (r.id, r.from, r.tokens.len(), r.samples)).collect()
    }

    fn answer(scheduler: &mut Scheduler, step: &Step) {
        scheduler.begun(step);
        tell(scheduler, step);
    }

    fn tell(scheduler: &mut Scheduler, step: &Step) {
        let chosen: Vec<(Id, i32)> = step.rows.iter().filter(|r| r.samples).map(|r| (r.id, r.id as i32)).collect();
        scheduler.known(&chosen);
        scheduler.check().unwrap();
    }

    fn prompt(first: i32, count: usize) -> Vec<i32> {
        vec![first; count]
    }

    #[test]
    fn a_prompt_is_read_in_chunks_beside_those_that_decode() {
        let mut s = scheduler(8, 4, 64);
        s.submit(1, prompt(1, 3), 9).unwrap();
        s.submit(2, prompt(2, 12), 9).unwrap();
        s.submit(3, prompt(3, 1), 9).unwrap();
        assert_eq!(take(&mut s), [(1, 0, 3, true), (2, 0, 5, false)]);
        // The budget is used by the first two.
        assert_eq!(take(&mut s), [(1, 3, 1, true), (2, 5, 7, true)]);
        // One of one token comes before the chunks, whenever it arrived.
        s.submit(4, prompt(4, 20), 9).unwrap();
        assert_eq!(take(&mut s), [(1, 4, 1, true), (2, 12, 1, true), (3, 0, 1, true), (4, 0, 5, false)]);
        assert_eq!((s.running(), s.waiting()), (4, 0));
        // Four run, and no more than four may.
        s.submit(5, prompt(5, 1), 9).unwrap();
        s.finish(1);
        assert_eq!(take(&mut s), [(2, 13, 1, true), (3, 1, 1, true), (4, 5, 6, false)]);
        assert_eq!(take(&mut s), [(2, 14, 1, true), (3, 2, 1, true), (4, 11, 6, false)]);
        assert_eq!(take(&mut s), [(2, 15, 1, true), (3, 3, 1, true), (5, 0, 1, true), (4, 17, 3, true)]);
        assert!([2, 3, 4, 5].iter().all(|id| s.cancel(*id)) && !s.cancel(5) && s.is_idle());
        assert_eq!(s.next(), Step::default());
        assert_eq!(s.blocks().used(), 0);
    }

    #[test]
    fn prompts_beside_decodes_have_a_bound_of_their_own() {
        let mut s = chunked([16, 3], 4, 64);
        s.submit(1, prompt(1, 4), 9).unwrap();
        s.submit(2, prompt(2, 20), 9).unwrap();
        // Nobody decodes yet: the whole budget.
        assert_eq!(take(&mut s), [(1, 0, 4, true), (2, 0, 12, false)]);
        // All decodes have their tokens, and what comes waits as long as the chunk is another's.
        s.submit(3, prompt(3, 2), 9).unwrap();
        assert_eq!(take(&mut s), [(1, 4, 1, true), (2, 12, 3, false)]);
        assert_eq!((s.running(), s.waiting()), (2, 1));
        assert_eq!(take(&mut s), [(1, 5, 1, true), (2, 15, 3, false)]);
        // What one leaves of it is the next one's.
        assert_eq!(take(&mut s), [(1, 6, 1, true), (3, 0, 1, false), (2, 18, 2, true)]);
        assert_eq!(take(&mut s), [(1, 7, 1, true), (2, 20, 1, true), (3, 1, 1, true)]);
        // Decodes that fill the budget leave nothing, whatever the chunk.
        let mut s = chunked([2, 8], 4, 64);
        (1..=3).for_each(|id| s.submit(id, prompt(1, 1), 9).unwrap());
        assert_eq!(take(&mut s).len(), 2);
        assert_eq!(take(&mut s), [(1, 1, 1, true), (2, 1, 1, true)]);
    }

    #[test]
    fn with_too_small_a_budget_the_oldest_are_served() {
        let mut s = scheduler(2, 4, 64);
        for id in 1..=3 {
            s.submit(id, prompt(1, 1), 3).unwrap();
        }
        assert_eq!(take(&mut s), [(1, 0, 1, true), (2, 0, 1, true)]);
        assert_eq!(take(&mut s), [(1, 1, 1, true), (2, 1, 1, true)]);
        s.finish(1);
        assert_eq!(take(&mut s), [(2, 2, 1, true), (3, 0, 1, true)]);
    }

    #[test]
    fn the_newest_loses_its_pages_and_is_the_next_to_have_some() {
        // Of 5 pages the first two take one each and need a second one at their fifth token; the third has two and needs no more.
        let mut s = scheduler(32, 4, 5);
        s.submit(1, prompt(1, 4), 10).unwrap();
        s.submit(2, prompt(2, 4), 6).unwrap();
        assert_eq!(take(&mut s).len(), 2);
        // Two pages are kept for these two, so one is left, and two would be needed.
        s.submit(3, prompt(3, 7), 2).unwrap();
        s.submit(4, prompt(4, 1), 1).unwrap();
        assert_eq!(take(&mut s), [(1, 4, 1, true), (2, 4, 1, true)]);
        assert_eq!((s.running(), s.waiting(), s.blocks().free()), (2, 2, 1));
        for _ in 0..3 {
            assert_eq!(take(&mut s).len(), 2);
        }
        // The first needs its third page and takes the last one, so the second, which needs one too, gives up its own.
        let step = s.next();
        assert_eq!((step.rows.len(), step.rows[0].id, step.preempted), (1, 1, 1));
        answer(&mut s, &step);
        // It comes before those that waited already, and finds its first pages again; its prompt had none in the cache.
        s.finish(1);
        let step = s.next();
        let row = &step.rows[0];
        assert_eq!((row.id, row.from, &*row.tokens, row.cached, row.samples), (2, 8, &[2][..], 0, true));
        assert_eq!(step.rows[1].id, 3);
    }

    #[test]
    fn nobody_is_admitted_into_the_pages_that_the_others_need_next() {
        let mut s = scheduler(32, 4, 3);
        s.submit(1, prompt(1, 4), 8).unwrap();
        assert_eq!(take(&mut s), [(1, 0, 4, true)]);
        // The first takes its second page and may need the third one, as the second would.
        s.submit(2, prompt(2, 4), 4).unwrap();
        assert_eq!(take(&mut s), [(1, 4, 1, true)]);
        assert_eq!((s.waiting(), s.blocks().free()), (1, 1));
        // Alone, the second needs no reserve.
        s.finish(1);
        assert_eq!(take(&mut s), [(2, 0, 4, true)]);
        s.finish(2);
        // For those that have all pages of their answers none is kept.
        s.submit(3, prompt(3, 5), 4).unwrap();
        s.submit(4, prompt(4, 4), 1).unwrap();
        assert_eq!(take(&mut s), [(3, 0, 5, true), (4, 0, 4, true)]);
        assert_eq!(s.blocks().free(), 0);
    }

    #[test]
    fn what_was_computed_for_one_prompt_serves_another() {
        let mut s = scheduler(32, 4, 16);
        s.submit(1, prompt(1, 10), 4).unwrap();
        s.submit(2, prompt(1, 8), 4).unwrap();
        // Both in one step: nothing is known yet.
        assert_eq!(take(&mut s), [(1, 0, 10, true), (2, 0, 8, true)]);
        s.submit(3, prompt(1, 8), 4).unwrap();
        s.submit(4, prompt(1, 12), 4).unwrap();
        let step = s.next();
        let of = |id| step.rows.iter().find(|r| r.id == id).unwrap();
        assert_eq!((of(3).cached, of(3).from, of(3).tokens.len()), (4, 4, 4));
        assert_eq!((of(4).cached, of(4).from, of(4).tokens.len()), (8, 8, 4));
        assert_eq!((of(3).pages[0], &of(4).pages[..2]), (of(1).pages[0], &of(1).pages[..2]));
        answer(&mut s, &step);
        // An answer is found like a prompt.
        assert_eq!(take(&mut s)[0], (1, 11, 1, true));
        s.finish(1);
        s.submit(5, [prompt(1, 12), prompt(9, 3)].concat(), 1).unwrap();
        assert!(take(&mut s).contains(&(5, 12, 3, true)));
    }

    #[test]
    fn rows_of_what_ended_before_the_step_did_are_ignored() {
        let mut s = scheduler(32, 4, 16);
        s.submit(1, prompt(1, 8), 4).unwrap();
        s.submit(2, prompt(2, 4), 4).unwrap();
        let step = s.next();
        assert!(s.cancel(1));
        // A new request of the same number is not the one of the row.
        s.submit(1, prompt(1, 8), 4).unwrap();
        answer(&mut s, &step);
        let again = s.next();
        assert_eq!(again.rows.iter().map(|r| (r.id, r.from)).collect::<Vec<_>>(), [(2, 4), (1, 0)]);
        // Counted once.
        answer(&mut s, &step);
        answer(&mut s, &again);
        answer(&mut s, &again);
        assert_eq!(take(&mut s), [(2, 5, 1, true), (1, 8, 1, true)]);
    }

    #[test]
    fn a_step_may_begin_before_the_tokens_of_the_one_before_are_known() {
        let mut s = scheduler(32, 4, 16);
        s.submit(1, prompt(1, 2), 2).unwrap();
        s.submit(2, prompt(2, 3), 9).unwrap();
        let first = s.next();
        s.begun(&first);
        let second = s.next();
        let rows: Vec<_> = second.rows.iter().map(|r| (r.id, r.from, &r.tokens[..], r.samples)).collect();
        assert_eq!(rows, [(1, 2, &[UNKNOWN][..], true), (2, 3, &[UNKNOWN][..], true)]);
        s.begun(&second);
        tell(&mut s, &first);
        // The first has all that are ever computed. The second's page is full and its fourth token known, so it is found.
        s.submit(3, [prompt(2, 4), prompt(9, 1)].concat(), 1).unwrap();
        let third = s.next();
        let rows: Vec<_> = third.rows.iter().map(|r| (r.id, r.from, r.tokens.len())).collect();
        assert_eq!(rows, [(2, 4, 1), (3, 4, 1)]);
        s.begun(&third);
        tell(&mut s, &second);
        s.finish(1);
        s.finish(2);
        // What was begun for those that ended is nobody's.
        tell(&mut s, &third);
        assert!(s.next().rows.is_empty() && !s.is_idle());
        s.finish(3);
        assert_eq!((s.blocks().used(), s.is_idle()), (0, true));
    }

    #[test]
    fn who_loses_its_pages_while_its_token_is_chosen_waits_for_it() {
        // Of five pages they have three, then all, and at the thirteenth token of the first the second gives up its own.
        let mut s = scheduler(32, 4, 5);
        s.submit(1, prompt(1, 7), 10).unwrap();
        s.submit(2, prompt(2, 3), 10).unwrap();
        let mut before = s.next();
        s.begun(&before);
        let last = loop {
            let step = s.next();
            s.begun(&step);
            if step.preempted > 0 {
                break step;
            }
            tell(&mut s, &before);
            before = step;
        };
        assert_eq!((last.rows.len(), last.rows[0].id, last.rows[0].from, last.preempted), (1, 1, 12, 1));
        s.finish(1);
        // There is room for it, and it waits until its token is heard of.
        assert!(s.next().rows.is_empty());
        tell(&mut s, &before);
        let row = s.next().rows[0].clone();
        assert_eq!((row.id, row.from, &row.tokens[..]), (2, 4, &[2; 5][..]));
    }

    #[test]
    fn what_can_never_run_is_refused_and_says_what_to_do() {
        let mut s = scheduler(8, 4, 3);
        let why = |r: Result<(), Refused>| r.unwrap_err().to_string();
        assert!(why(s.submit(1, Vec::new(), 4)).contains("send one"));
        assert!(why(s.submit(1, prompt(1, 60), 5)).contains("60 tokens and 5"));
        assert_eq!(
            s.submit(1, prompt(1, 60), usize::MAX).unwrap_err(),
            Refused::TooLong { prompt: 60, most: usize::MAX, context: 64 }
        );
        // The last token is never computed.
        assert!(why(s.submit(1, prompt(1, 8), 6)).contains("need 4 pages of the cache, which has 3"));
        s.submit(1, prompt(1, 8), 5).unwrap();
        assert!(why(s.submit(1, prompt(1, 1), 1)).contains("request 1 has not ended"));
        for id in 2..9 {
            s.submit(id, prompt(1, 1), 0).unwrap();
        }
        assert_eq!(s.submit(9, prompt(1, 1), 1), Err(Refused::Full { waiting: 8 }));
        take(&mut s);
        s.submit(9, prompt(1, 1), 1).unwrap();
    }
}
