//! The pages of the cache: which are free, which are in use and how often, and which hold a prefix that another prompt has too.
//!
//! A page is *free* (never written, or given up), *cached* (nobody uses it, but its content is known and may be found again) or
//! *in use*. Only full pages are ever shared, and nobody writes to a full page, so a shared page is never written.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The hash of a page's tokens behind a prefix of that hash.
type Chain = fn(u64, &[i32]) -> u64;

fn chain(before: u64, tokens: &[i32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (before, tokens).hash(&mut hasher);
    hasher.finish()
}

/// What a full page holds: keys and values of its tokens, which depend on all tokens before them too.
#[derive(Debug)]
struct Content {
    /// The prefix that ends with this page. Two pages of one number hold the same, and a number is never used again: the index
    /// of a page or a hash would come to mean another prefix.
    prefix: u64,
    /// The prefix that ends before this page; 0 for none.
    before: u64,
    tokens: Box<[i32]>,
    hash: u64,
}

#[derive(Debug, Default)]
struct Page {
    references: usize,
    /// None as long as it is not full.
    content: Option<Content>,
    /// When it became cached: its key among the cached ones.
    since: u64,
}

/// The pages of a cache.
pub(super) struct Blocks {
    pages: Vec<Page>,
    page: usize,
    prefix: bool,
    hash: Chain,
    free: Vec<u32>,
    /// Cached pages, the one that has lain there longest first.
    cached: BTreeMap<u64, u32>,
    /// The one page that is found for a hash. All cached pages are here, and those in use whose content no other page had first.
    known: HashMap<u64, u32>,
    /// The last number of a prefix, and the last time.
    prefixes: u64,
    now: u64,
}

impl Blocks {
    /// All of `pages` pages of `page` tokens each are free. Without `prefix` none is ever found.
    pub fn new(pages: usize, page: usize, prefix: bool) -> Blocks {
        Blocks::with_hash(pages, page, prefix, chain)
    }

    pub(super) fn with_hash(pages: usize, page: usize, prefix: bool, hash: Chain) -> Blocks {
        // Block tables hold pages as i32.
        let pages = pages.min(i32::MAX as usize);
        Blocks {
            pages: (0..pages).map(|_| Page::default()).collect(),
            page: page.max(1),
            prefix,
            hash,
            // The lowest are taken first.
            free: (0..pages as u32).rev().collect(),
            cached: BTreeMap::new(),
            known: HashMap::new(),
            prefixes: 0,
            now: 0,
        }
    }

    /// The pages of the longest known prefix of `tokens` in whole pages, each with one reference more. Never all of the tokens:
    /// one at least is left to compute, since a token is sampled from it.
    pub fn find(&mut self, tokens: &[i32]) -> Vec<u32> {
        let mut found = Vec::new();
        let (mut before, mut hash) = (0, 0);
        for tokens in tokens.chunks(self.page).take(tokens.len().saturating_sub(1) / self.page) {
            hash = (self.hash)(hash, tokens);
            let Some((at, prefix)) = self.known(hash, before, tokens) else { break };
            let page = &mut self.pages[at as usize];
            if page.references == 0 {
                self.cached.remove(&page.since);
            }
            page.references += 1;
            before = prefix;
            found.push(at);
        }
        found
    }

    /// A page with one reference, whose content is nobody's: a free one, or else the one that has been cached longest, which is
    /// not found any more. None where all are in use.
    pub fn take(&mut self) -> Option<u32> {
        let at = self.free.pop().or_else(|| self.cached.pop_first().map(|(_, at)| at))?;
        let page = &mut self.pages[at as usize];
        page.references = 1;
        if let Some(content) = page.content.take() {
            self.known.remove(&content.hash);
        }
        Some(at)
    }

    /// Says that `page`, which is in use, now holds `tokens`, a page of them, behind those of the page `before`; to be said after
    /// they were computed, in the order of the pages. Where another page is known for the same, that one stays so.
    pub fn full(&mut self, page: u32, before: Option<u32>, tokens: &[i32]) {
        let at = page as usize;
        if !self.prefix || tokens.len() != self.page || self.pages[at].content.is_some() {
            return;
        }
        let (before, hash) = match before.map(|b| &self.pages[b as usize].content) {
            None => (0, 0),
            Some(Some(content)) => (content.prefix, content.hash),
            // Nobody could find what is behind it.
            Some(None) => return,
        };
        let hash = (self.hash)(hash, tokens);
        let prefix = match self.known(hash, before, tokens) {
            Some((_, prefix)) => prefix,
            None => {
                // What had the hash is another prefix, or behind one that nobody finds any more: the newer is worth more.
                if let Some(old) = self.known.insert(hash, page) {
                    let Page { references, content, since } = &mut self.pages[old as usize];
                    if *references == 0 {
                        *content = None;
                        self.cached.remove(since);
                        self.free.push(old);
                    }
                }
                self.prefixes += 1;
                self.prefixes
            }
        };
        self.pages[at].content = Some(Content { prefix, before, tokens: tokens.into(), hash });
    }

    /// Gives one reference to each of these pages of a sequence back, the last page first: the end of a prefix is given up
    /// before its beginning, without which it is not found.
    pub fn release(&mut self, pages: &[u32]) {
        for &at in pages.iter().rev() {
            let page = &mut self.pages[at as usize];
            debug_assert!(page.references > 0, "page {at} is released and nobody uses it");
            if page.references != 1 {
                page.references = page.references.saturating_sub(1);
                continue;
            }
            page.references = 0;
            // Of several with the same content one is kept.
            if page.content.as_ref().is_some_and(|c| *self.known.entry(c.hash).or_insert(at) == at) {
                self.now += 1;
                page.since = self.now;
                self.cached.insert(self.now, at);
            } else {
                page.content = None;
                self.free.push(at);
            }
        }
    }

    /// Pages that [`Blocks::take`] could give, one after the other: free and cached ones.
    pub fn free(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        self.pages.len() - self.free()
    }

    /// All pages.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Tokens of a page.
    pub fn page(&self) -> usize {
        self.page
    }

    /// The page that is known to hold just these tokens behind that prefix, and the prefix that ends with it.
    fn known(&self, hash: u64, before: u64, tokens: &[i32]) -> Option<(u32, u64)> {
        let at = *self.known.get(&hash)?;
        let content = self.pages[at as usize].content.as_ref()?;
        (content.before == before && *content.tokens == *tokens).then_some((at, content.prefix))
    }

    /// References to a page.
    #[cfg(test)]
    pub fn references(&self, page: u32) -> usize {
        self.pages[page as usize].references
    }

    /// Whether each page is exactly one of free, cached and in use, and is found as what it is.
    #[cfg(test)]
    pub fn check(&self) -> Result<(), String> {
        let mut lists = vec![0; self.pages.len()];
        for &at in &self.free {
            lists[at as usize] += 1;
            if self.pages[at as usize].content.is_some() {
                return Err(format!("page {at} is free and has content"));
            }
        }
        for (since, &at) in &self.cached {
            let page = &self.pages[at as usize];
            lists[at as usize] += 1;
            if page.since != *since || page.content.as_ref().is_none_or(|c| self.known.get(&c.hash) != Some(&at)) {
                return Err(format!("page {at} is cached and not found"));
            }
        }
        for (at, (page, lists)) in self.pages.iter().zip(lists).enumerate() {
            if lists + usize::from(page.references > 0) != 1 {
                return Err(format!("page {at} is in {lists} lists and has {} references", page.references));
            }
        }
        for (hash, &at) in &self.known {
            if self.pages[at as usize].content.as_ref().is_none_or(|c| c.hash != *hash) {
                return Err(format!("page {at} is known for what it does not hold"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: [u32; 0] = [];

    /// Takes the pages of `tokens` that are not found and fills them.
    fn fill(blocks: &mut Blocks, tokens: &[i32]) -> Vec<u32> {
        let mut pages = blocks.find(tokens);
        let found = pages.len();
        for (i, tokens) in tokens.chunks(blocks.page).enumerate().skip(found) {
            let page = blocks.take().unwrap();
            pages.push(page);
            let before = i.checked_sub(1).map(|b| pages[b]);
            blocks.full(page, before, tokens);
        }
        blocks.check().unwrap();
        pages
    }

    fn found(blocks: &mut Blocks, tokens: &[i32]) -> Vec<u32> {
        let pages = blocks.find(tokens);
        blocks.release(&pages);
        blocks.check().unwrap();
        pages
    }

    #[test]
    fn a_prefix_is_found_in_whole_pages_and_never_whole() {
        let mut blocks = Blocks::new(8, 4, true);
        let tokens: Vec<i32> = (0..10).collect();
        let pages = fill(&mut blocks, &tokens);
        assert_eq!((pages.len(), blocks.used(), blocks.free(), blocks.pages()), (3, 3, 5, 8));
        // In use already, and found all the same; the third page is not full.
        assert_eq!(found(&mut blocks, &tokens), pages[..2]);
        assert_eq!(found(&mut blocks, &tokens[..9]), pages[..2]);
        assert_eq!(found(&mut blocks, &tokens[..8]), pages[..1]);
        assert_eq!(found(&mut blocks, &tokens[..4]), NOTHING);
        assert_eq!(found(&mut blocks, &[]), NOTHING);
        // The same tokens in another place are another content.
        assert_eq!(found(&mut blocks, &tokens[4..10]), NOTHING);
        blocks.release(&pages);
        assert_eq!((blocks.used(), blocks.free()), (0, 8));
        assert_eq!(found(&mut blocks, &tokens), pages[..2]);
        let mut without = Blocks::new(8, 4, false);
        let pages = fill(&mut without, &tokens);
        without.release(&pages);
        assert_eq!(found(&mut without, &tokens), NOTHING);
    }

    #[test]
    fn what_was_used_last_is_given_up_last_and_ends_before_beginnings() {
        let mut blocks = Blocks::new(4, 2, true);
        let (one, two) = ([1, 1, 1, 1, 9], [2, 2, 2, 2, 9]);
        let first = fill(&mut blocks, &one[..4]);
        let second = fill(&mut blocks, &two[..4]);
        blocks.release(&first);
        blocks.release(&second);
        // Found again, the first prefix is the newer one.
        assert_eq!(found(&mut blocks, &one), first);
        assert_eq!(blocks.take(), Some(second[1]));
        assert_eq!(found(&mut blocks, &two), second[..1]);
        assert_eq!(blocks.take(), Some(first[1]));
        assert_eq!(blocks.take(), Some(first[0]));
        assert_eq!(blocks.take(), Some(second[0]));
        assert_eq!((blocks.take(), blocks.free(), blocks.used()), (None, 0, 4));
        blocks.check().unwrap();
    }

    #[test]
    fn equal_content_is_known_once_and_outlives_the_page_that_had_it_first() {
        let mut blocks = Blocks::new(4, 2, true);
        let tokens = [5, 6, 7, 8, 9];
        // Both were computed before either was known.
        let pages: Vec<u32> = (0..4).map(|_| blocks.take().unwrap()).collect();
        let (one, two) = pages.split_at(2);
        blocks.full(one[0], None, &tokens[..2]);
        blocks.full(two[0], None, &tokens[..2]);
        blocks.full(two[1], Some(two[0]), &tokens[2..4]);
        assert_eq!(found(&mut blocks, &tokens), [one[0], two[1]]);
        blocks.release(one);
        // The one page that is neither known nor in use goes first, and then the beginning that is known.
        assert_eq!((blocks.take(), blocks.take()), (Some(one[1]), Some(one[0])));
        assert_eq!(found(&mut blocks, &tokens), NOTHING);
        blocks.release(two);
        assert_eq!(found(&mut blocks, &tokens), two);
    }

    #[test]
    fn a_beginning_that_was_given_up_does_not_lend_its_end_to_another() {
        let mut blocks = Blocks::new(4, 2, true);
        let pages: Vec<u32> = (0..4).map(|_| blocks.take().unwrap()).collect();
        blocks.full(pages[0], None, &[1, 1]);
        blocks.full(pages[1], Some(pages[0]), &[2, 2]);
        // The end is kept in use, the page of the beginning comes to hold another one.
        blocks.release(&pages[..1]);
        assert_eq!(blocks.take(), Some(pages[0]));
        blocks.full(pages[0], None, &[3, 3]);
        assert_eq!(found(&mut blocks, &[3, 3, 2, 2, 9]), pages[..1]);
        // Computed anew, the end is known behind its new beginning.
        blocks.full(pages[2], None, &[1, 1]);
        blocks.full(pages[3], Some(pages[2]), &[2, 2]);
        assert_eq!(found(&mut blocks, &[1, 1, 2, 2, 9]), pages[2..]);
        blocks.release(&pages);
        blocks.check().unwrap();
    }

    #[test]
    fn a_collision_of_hashes_gives_nobody_the_page_of_another_prompt() {
        let mut blocks = Blocks::with_hash(8, 2, true, |_, _| 7);
        let one = fill(&mut blocks, &[1, 2, 3]);
        assert_eq!(found(&mut blocks, &[1, 3, 3]), NOTHING);
        assert_eq!(found(&mut blocks, &[1, 2, 9]), one[..1]);
        // Equal tokens behind another page: of one hash only the newest is known.
        let two = fill(&mut blocks, &[1, 2, 1, 2, 3]);
        assert_eq!(two[0], one[0]);
        assert_eq!(found(&mut blocks, &[1, 2, 1, 2, 1]), NOTHING);
        assert_eq!(found(&mut blocks, &[1, 2, 3]), NOTHING);
        blocks.release(&one);
        blocks.release(&two);
        blocks.check().unwrap();
        assert_eq!((blocks.used(), blocks.free()), (0, 8));
        // A cached page loses its place to one of the same hash, and is free.
        let three = fill(&mut blocks, &[4, 4, 1]);
        assert_eq!(found(&mut blocks, &[4, 4, 5]), three[..1]);
        blocks.release(&three);
        blocks.check().unwrap();
    }

    #[test]
    #[should_panic(expected = "nobody uses it")]
    fn a_page_is_not_released_twice() {
        let mut blocks = Blocks::new(2, 2, true);
        let page = blocks.take().unwrap();
        blocks.release(&[page]);
        blocks.release(&[page]);
    }
}
