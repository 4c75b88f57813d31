//! What lies on the device as long as an engine does: planned once, before anything is allocated.

use super::arena::{ALIGNMENT, arena};
use super::step::{RESULTS, SEEN, bounds, bytes_of, workspaces};
use super::{EngineError, Options};
use crate::model::{Cache, Model, Pass, Shape, Tail};
use crate::model::{LEAST_CONTEXT, ModelError};
use crate::problem::{MOST_TOP, Problem};
use crate::program::{Life, Named};
use crate::runtime::Runtime;
use std::collections::HashSet;
use std::{fmt, iter};

/// Rows of logits that a request for all of them gets in one step.
const LOGITS_ROWS: i64 = 64;

/// Bytes on the device, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// Weights.
    pub weights: u64,
    /// The cache.
    pub cache: u64,
    /// Its pages.
    pub pages: i64,
    /// Activations of the largest step.
    pub activations: u64,
    /// Logits, the tokens that they lead to, and log-probabilities.
    pub results: [u64; 4],
    /// Flags of the tokens that are penalised.
    pub seen: u64,
    /// Scratch of kernels: what they leave as zeros, and the other.
    pub workspaces: [u64; 2],
    /// Ids, positions, block tables of a step.
    pub tables: u64,
}

impl MemoryPlan {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        let rest = self.results.iter().chain(&self.workspaces).sum::<u64>();
        self.weights + self.cache + self.activations + rest + self.seen + self.tables
    }

    /// What helps where there are no more than `most` bytes for it.
    pub(super) fn remedy(&self, most: u64) -> String {
        let rest = self.bytes() - self.cache;
        let page = self.cache.div_ceil(self.pages.max(1).unsigned_abs()).max(1);
        match most.saturating_sub(rest) / page {
            0 if self.weights >= most => {
                let weights = self.weights;
                format!(
                    "its weights alone are {weights}, whatever the context; more memory is needed, or weights of fewer bits"
                )
            }
            0 => format!("without the cache it is {rest}; more memory is needed, or steps of fewer tokens"),
            fits => format!(
                "there is room for {fits} of the {} pages of its cache, so that a shorter context fits",
                self.pages
            ),
        }
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "weights {:.1} MiB, cache {:.1} MiB ({} pages), activations {:.1} MiB, logits {:.1} MiB, workspaces {:.1} MiB, \
             tables {:.1} MiB: {:.1} MiB",
            mib(self.weights),
            mib(self.cache),
            self.pages,
            mib(self.activations),
            mib(self.results.iter().sum::<u64>() + self.seen),
            mib(self.workspaces[0] + self.workspaces[1]),
            mib(self.tables),
            mib(self.bytes()),
        )
    }
}

/// The shapes that steps have, and the cache that they share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Most tokens of a step.
    pub tokens: i64,
    /// Most sequences of a step.
    pub sequences: i64,
    /// Most rows that get logits.
    pub rows: i64,
    /// The cache.
    pub cache: Cache,
    /// Most tokens whose log-probabilities a row may have; none where nothing samples.
    pub top: Option<i64>,
}

/// The size that so many rows are computed as: themselves up to 16, and beyond that at most an eighth more.
pub(super) fn rounded(rows: i64) -> i64 {
    let rows = rows.max(1).unsigned_abs();
    let step = rows.next_power_of_two() / 16;
    rows.next_multiple_of(step.max(1)) as i64
}

/// The power of two that is no less.
fn power(count: i64) -> i64 {
    count.max(1).unsigned_abs().next_power_of_two() as i64
}

impl Sizes {
    /// Those of these options, with a cache that holds the whole context of all sequences.
    pub fn of(options: &Options) -> Sizes {
        let max_pages = (options.context - 1) / options.page + 1;
        let pages = max_pages.saturating_mul(options.sequences);
        let cache = Cache { page: options.page, pages, max_pages, max_pos: options.context };
        // Every running sequence has room for a token.
        let (tokens, sequences) = (rounded(options.tokens.max(options.sequences)), rounded(options.sequences));
        let rows = if options.logits { sequences.max(LOGITS_ROWS) } else { sequences };
        let mut sizes = Sizes { tokens, sequences, rows, cache, top: None };
        sizes.hold(pages);
        sizes
    }

    /// Makes the cache one of so many pages. No step has more tokens than it has places for.
    fn hold(&mut self, pages: i64) {
        self.cache.pages = pages;
        self.tokens = self.tokens.min(pages.saturating_mul(self.cache.page));
        self.sequences = self.sequences.min(self.tokens);
        self.rows = self.rows.min(self.tokens);
    }

    /// The sizes up to the greatest.
    fn list(most: i64) -> impl Iterator<Item = i64> {
        let next = move |size: &i64| (*size < most).then(|| rounded(size + 1).min(most));
        iter::successors(Some(1), next)
    }

    /// The context that a step is bound for where the longest sequence has so many tokens.
    pub fn context(&self, longest: i64) -> i64 {
        let most = self.cache.max_pages * self.cache.page;
        (longest.max(LEAST_CONTEXT).unsigned_abs().next_power_of_two() as i64).min(most)
    }

    /// A step that decodes so many sequences.
    pub fn decode(&self, sequences: i64, longest: i64) -> Shape {
        Shape::decode(rounded(sequences).min(self.sequences), self.context(longest))
    }

    /// A step over parts of prompts. Sequences, and rows of logits that are no more, are counted in powers of two: they cost little beside
    /// the tokens, and each of their counts with each count of tokens would be a step of its own.
    pub fn mixed(&self, tokens: i64, sequences: i64, logits: i64, longest: i64) -> Shape {
        let tokens = rounded(tokens).min(self.tokens);
        let sequences = power(sequences).min(self.sequences).min(tokens);
        let logits = match logits {
            0 => 0,
            few if few <= sequences => sequences,
            many => rounded(many),
        };
        let logits = logits.min(self.logits(tokens));
        Shape { logits, context: self.context(longest), ..Shape::chunk(tokens, sequences, 1) }
    }

    /// Shapes that most loads need, the smallest and most likely first: context by context what decodes, what reads the prompt of one, and
    /// what fills the budget of tokens with a part of a prompt beside what decodes; then prompts beside what decodes. Each with the tokens
    /// that are most likely, and with tokens that are drawn.
    pub fn expected(&self) -> Vec<Shape> {
        let longer = |context: &i64| Some(self.context(context + 1)).filter(|next| next > context);
        let contexts: Vec<i64> = iter::successors(Some(self.context(1)), longer).collect();
        let counts: Vec<i64> =
            iter::successors(Some(1), |n| Some(2 * n)).take_while(|n| *n < 2 * self.sequences).collect();
        let mut list = Vec::new();
        for &context in &contexts {
            list.extend(Sizes::list(self.sequences).map(|batch| self.decode(batch, context)));
            let prompts = Sizes::list(self.tokens).filter(|tokens| self.context(*tokens) == context);
            list.extend(prompts.map(|tokens| self.mixed(tokens, 1, 1, tokens)));
            list.push(self.mixed(self.tokens, 1, 0, context));
            list.extend(counts.iter().map(|count| self.mixed(self.tokens, *count, *count, context)));
        }
        for &context in &contexts {
            for &count in counts.iter().skip(1) {
                let tokens = Sizes::list(self.tokens).filter(|tokens| *tokens > count);
                list.extend(tokens.map(|tokens| self.mixed(tokens, count, count, context)));
            }
        }
        let mut known = HashSet::new();
        list.retain(|shape| known.insert(*shape));
        let tails = [Some(Tail::Argmax), self.top.map(|_| Tail::Sample { top: 0 })];
        let with = |shape: Shape| tails.into_iter().flatten().map(move |tail| Shape { tail, ..shape });
        list.into_iter().flat_map(with).collect()
    }

    /// The step of the same tokens that [`Sizes::plan`] made room for, whatever kernels answer for the first.
    pub fn roomy(&self, shape: Shape) -> Shape {
        let sequences = shape.tokens.min(self.sequences);
        let longest = self.cache.max_pages * self.cache.page;
        Shape { context: longest, sequences, logits: self.logits(shape.tokens), ..shape }
    }

    fn logits(&self, tokens: i64) -> i64 {
        tokens.min(self.rows)
    }

    /// Plans the memory of a model; the pages of the cache are as many as `most` bytes leave for them, and no more than all
    /// sequences of the whole context fill.
    pub fn plan(
        &mut self,
        runtime: &Runtime,
        model: &Model,
        options: &Options,
        most: u64,
    ) -> Result<MemoryPlan, EngineError> {
        let (longest, dtype) = (self.cache.max_pages * self.cache.page, options.precision.dtype);
        let told = Problem::advance(1, 1, 1).dtype(dtype).build().map_err(ModelError::Problem)?;
        if runtime.lookup(&told).is_err() {
            let why = "no kernel here tells steps what to do (`advance`): these are of a program that knew none; export the bundle again";
            return Err(EngineError::Options(why.into()));
        }
        let top = MOST_TOP.min(model.vocab);
        let sample: Problem = format!("sample rows=1 cols={} top={top} dtype={dtype}", model.vocab)
            .parse()
            .map_err(ModelError::Problem)?;
        self.top = runtime.lookup(&sample).is_ok().then_some(top);
        let tails = [Some(Tail::Argmax), self.top.map(|top| Tail::Sample { top })];
        let decodes = Sizes::list(self.sequences).map(|b| Shape::decode(b, longest));
        let mixed = Sizes::list(self.tokens).map(|t| Shape {
            context: longest,
            logits: self.logits(t),
            ..Shape::chunk(t, t.min(self.sequences), 1)
        });
        let mut plan = MemoryPlan {
            weights: 0,
            cache: 0,
            pages: 0,
            activations: 0,
            results: [0; 4],
            seen: 0,
            // What `advance` counts blocks in.
            workspaces: [0, ALIGNMENT],
            tables: 0,
        };
        // Of the cache as it is planned now, each tensor.
        let mut states: Vec<u64> = Vec::new();
        let shapes = decodes.chain(mixed);
        for shape in shapes.flat_map(|shape| tails.into_iter().flatten().map(move |tail| Shape { tail, ..shape })) {
            let Pass { program, .. } = Pass::of(model, shape, self.cache, &options.precision)?;
            plan.weights = bytes_of(&program, Life::Weight);
            states = program.tensors.iter().filter(|t| t.life == Life::State).map(Named::bytes).collect();
            let places = RESULTS.map(|name| program.tensor(name));
            let kept: Vec<usize> = places.iter().flatten().copied().collect();
            plan.activations = plan.activations.max(arena(&program, &kept).bytes);
            for (most, place) in plan.results.iter_mut().zip(places) {
                *most = place.map_or(0, |t| program.tensors[t].bytes()).max(*most);
            }
            plan.seen = program.tensor(SEEN).map_or(0, |t| program.tensors[t].bytes()).max(plan.seen);
            let wanted = workspaces(runtime, &program)?;
            plan.workspaces = [0, 1].map(|i| plan.workspaces[i].max(wanted[i]));
            plan.tables = plan.tables.max(bounds(model, self.cache, &shape).bytes());
        }
        let (rest, all) = (plan.bytes(), self.cache.pages as u64);
        let cache =
            |pages: i64| states.iter().map(|b| (b / all * pages as u64).next_multiple_of(ALIGNMENT)).sum::<u64>();
        let each = states.iter().map(|b| b / all).sum::<u64>().max(1);
        let room = most.saturating_sub(rest);
        let mut fit = i64::try_from(room / each).unwrap_or(i64::MAX).min(self.cache.pages);
        // What each tensor is rounded up by.
        while fit > 0 && cache(fit) > room {
            fit -= 1;
        }
        (plan.pages, plan.cache) = (fit, cache(fit));
        if fit < self.cache.max_pages {
            let pages = self.cache.max_pages;
            let least = MemoryPlan { pages, cache: cache(pages), ..plan };
            return Err(EngineError::Memory { needed: least.bytes(), most, plan: Box::new(least) });
        }
        self.hold(fit);
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Phase;
    use crate::problem::Dtype;

    fn sizes(sequences: i64, tokens: i64, context: i64) -> Sizes {
        let options = Options { sequences, tokens, ..Options::new(Dtype::F32, context) };
        Sizes { top: Some(5), ..Sizes::of(&options) }
    }

    #[test]
    fn what_helps_where_memory_is_short_is_said_and_nothing_else() {
        let plan = MemoryPlan {
            weights: 1000,
            cache: 800,
            pages: 8,
            activations: 100,
            results: [0; 4],
            seen: 0,
            workspaces: [0; 2],
            tables: 0,
        };
        for (most, said) in [
            (1899, "room for 7 of the 8 pages of its cache, so that a shorter context fits"),
            (1200, "room for 1 of the 8 pages"),
            (1199, "without the cache it is 1100; more memory is needed, or steps of fewer tokens"),
            (1000, "its weights alone are 1000, whatever the context; more memory"),
            (0, "its weights alone are 1000"),
        ] {
            let remedy = plan.remedy(most);
            assert!(remedy.contains(said) && remedy.contains("context") == (most != 1199), "{most}: {remedy}");
        }
    }

    #[test]
    fn a_step_over_prompts_has_room_for_what_it_is_made_for_and_is_one_of_few() {
        for sizes in [sizes(1, 512, 2048), sizes(48, 2048, 4096), sizes(7, 7, 100)] {
            let mut shapes = HashSet::new();
            for tokens in 1..=sizes.tokens {
                for sequences in 1..=tokens.min(sizes.sequences) {
                    for logits in [0, 1, sequences] {
                        let shape = sizes.mixed(tokens, sequences, logits, 200);
                        assert!(shape.tokens >= tokens && shape.sequences >= sequences && shape.logits >= logits);
                        assert_eq!(shape.logits == 0, logits == 0);
                        let most = sizes.roomy(shape);
                        assert!(shape.sequences <= most.sequences && shape.logits <= most.logits, "{shape:?}");
                        // What it is bound as is its own shape.
                        let Shape { tokens, sequences, logits, context, .. } = shape;
                        assert_eq!(sizes.mixed(tokens, sequences, logits, context), shape);
                        shapes.insert(shape);
                    }
                }
            }
            // Counts of tokens by powers of two, by whether any has logits.
            let powers = power(sizes.sequences).ilog2() as usize + 1;
            assert!(shapes.len() <= Sizes::list(sizes.tokens).count() * powers * 2, "{}", shapes.len());
        }
    }

    #[test]
    fn what_is_expected_is_what_steps_are_bound_as_each_once() {
        let sizes = sizes(48, 2048, 3000);
        let list = sizes.expected();
        assert_eq!(list.iter().collect::<HashSet<_>>().len(), list.len());
        assert_eq!(list[0], sizes.decode(1, 1));
        for shape in &list {
            let Shape { phase, tokens, sequences, logits, context, tail } = *shape;
            let again = match phase {
                Phase::Decode => sizes.decode(sequences, context),
                _ => sizes.mixed(tokens, sequences, logits, context),
            };
            assert_eq!(*shape, Shape { tail, ..again });
        }
        // Whatever decodes, and each prompt alone.
        for tail in [Tail::Argmax, Tail::Sample { top: 0 }] {
            let known = |shape: Shape| list.contains(&Shape { tail, ..shape });
            assert!((1..=48).all(|n| [1, 300, 1000, 3000].iter().all(|longest| known(sizes.decode(n, *longest)))));
            assert!((1..=2048).all(|n| known(sizes.mixed(n, 1, 1, n))));
            assert!((1..=48).all(|n| known(sizes.mixed(2048, n, n - 1, 2500))));
        }
    }

    #[test]
    fn few_rows_more_are_computed_than_asked_for() {
        let list: Vec<i64> = Sizes::list(2048).collect();
        assert_eq!((list.len(), list[15], list[16], list.last()), (72, 16, 18, Some(&2048)));
        for rows in 1..=5000 {
            let size = rounded(rows);
            assert!(size >= rows && (rows <= 16 && size == rows || 8 * (size - rows) < rows), "{rows}: {size}");
            assert_eq!(rounded(size), size);
            assert!(rows > 2048 || list.contains(&size));
        }
    }
}
