//! Attention of several queries a sequence over a paged KV cache: rows of a decode beside chunks of prompts.

use super::attention::{QUERY, softmax_average};
use super::tensor::IndexFill;
use super::{DimDef, Expected, Fill, Inputs, Layout, OpDef, Problem, Storage, Tensor, cache, decode};

pub(super) static OP: OpDef = OpDef {
    name: "paged_attention",
    summary: "causal attention of several queries a sequence over a paged KV cache with a block table",
    probe: "paged_attention tokens=5 batch=2 context=7 heads=4 kv_heads=2 head_dim=36 page=5",
    dims: &[
        DimDef::size("tokens"),
        DimDef::size("batch"),
        DimDef::size("context"),
        DimDef::contract("heads"),
        DimDef::contract("kv_heads"),
        DimDef::contract("head_dim"),
        DimDef::option("page", 64),
        DimDef::workload("lens", &["full", "mixed", "chunk"]),
        DimDef::capacity("max_pages", decode::max_pages),
        DimDef::capacity("pages", |p| p.dim("batch") * p.dim("max_pages")),
    ],
    check: decode::check,
    tensors,
    flops: |p| {
        let pairs = Spread::of(p).sequences().map(|(q, kv)| q * (kv - q) + q * (q + 1) / 2);
        4.0 * (p.dim("heads") * p.dim("head_dim")) as f64 * pairs.sum::<i64>() as f64
    },
    units: |p| (Spread::of(p).queries() * p.dim("heads")) as u64,
    unit_cost: |p| (2 * p.dim("context") * p.dim("head_dim")) as u64,
    unit,
    slack: 2.0,
    mixed: false,
    scaled: false,
    cached: true,
};

/// How the queries and the KV tokens of a test spread over its sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    kind: Kind,
    pub(super) tokens: i64,
    batch: i64,
    pub(super) context: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Every sequence has the whole context and as many queries.
    Full,
    /// KV tokens spread as those of `decode`; the queries spread from none up, and the rows that are left are padding.
    Mixed,
    /// Every sequence has the whole context; all have one query but the last, which has the rest.
    Chunk,
}

impl Spread {
    fn of(p: &Problem) -> Spread {
        let kind = match p.word("lens") {
            "mixed" => Kind::Mixed,
            "chunk" => Kind::Chunk,
            _ => Kind::Full,
        };
        // No sequence is longer than its row of the block table.
        let context = p.dim("context").min(p.dim("max_pages") * p.dim("page"));
        Spread { kind, tokens: p.dim("tokens"), batch: p.dim("batch"), context }
    }

    /// Queries and KV tokens of every sequence.
    fn sequences(self) -> impl Iterator<Item = (i64, i64)> {
        let Spread { kind, tokens, batch, context } = self;
        (0..batch).map(move |b| match kind {
            Kind::Full => ((tokens * (b + 1) / batch - tokens * b / batch).min(context), context),
            Kind::Mixed => {
                let kv = decode::length(context, batch, b);
                // Weights 0..batch, the middle sequence's 0, so that long and short contexts both meet many queries.
                let (weight, all) = ((b + batch - batch / 2) % batch, batch * (batch - 1) / 2);
                (if all == 0 { tokens } else { tokens * weight / all }.min(kv), kv)
            }
            Kind::Chunk => {
                let q = if b < batch - 1 { i64::from(b < tokens) } else { (tokens - (batch - 1)).max(0) };
                (q.min(context), context)
            }
        })
    }

    /// Query tokens in use.
    fn queries(self) -> i64 {
        self.sequences().map(|(q, _)| q).sum()
    }

    /// The first query of every sequence, then the number of queries in use.
    pub(super) fn starts(self) -> Vec<i32> {
        let ends = self.sequences().scan(0, |end, (q, _)| {
            *end += q as i32;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// The KV tokens of every sequence.
    pub(super) fn lengths(self) -> Vec<i32> {
        self.sequences().map(|(_, kv)| kv as i32).collect()
    }
}

fn tensors(p: &Problem) -> Vec<Tensor> {
    let t = p.types.x;
    let [tokens, b, h, hk, d] = ["tokens", "batch", "heads", "kv_heads", "head_dim"].map(|name| p.dim(name));
    let [page, max_pages, pages] = ["page", "max_pages", "pages"].map(|name| p.dim(name));
    let (unit, kv) = (cache::fill(p), cache::storage(p));
    let spread = Spread::of(p);
    let keys: i64 = spread.sequences().filter(|(q, _)| *q > 0).map(|(_, kv)| kv).sum();
    let read = keys.saturating_mul(hk).saturating_mul(d);
    let rows = spread.queries() * h * d;
    let mut list = vec![
        Tensor::input("q", t, &[tokens, h, d], QUERY).touching(rows),
        Tensor::input("k_cache", kv, &[pages, hk, page, d], unit).laid(Layout::Paged).touching(read),
        Tensor::input("v_cache", kv, &[pages, hk, page, d], unit).laid(Layout::Paged).touching(read),
    ];
    list.extend(cache::scales(p, cache::READ));
    list.extend([
        Tensor::input("block_table", Storage::I32, &[b, max_pages], Fill::Index(IndexFill::Distinct(pages))),
        Tensor::input("q_starts", Storage::I32, &[b + 1], Fill::Index(IndexFill::QueryStarts(spread))),
        Tensor::input("kv_lens", Storage::I32, &[b], Fill::Index(IndexFill::KvLengths(spread))),
        Tensor::output("o", t, &[tokens, h, d]).touching(rows),
    ]);
    list
}

fn unit(p: &Problem, inputs: &Inputs, unit: u64, out: &mut Vec<Expected>) {
    let [h, hk, d, page, max_pages] =
        ["heads", "kv_heads", "head_dim", "page", "max_pages"].map(|name| p.dim(name) as u64);
    let (token, head) = (unit / h, unit % h);
    let (starts, lens, table) = (inputs.get("q_starts"), inputs.get("kv_lens"), inputs.get("block_table"));
    let Some(b) = (0..p.dim("batch") as u64).find(|&b| token < starts.at(b + 1) as u64) else { return };
    let behind = starts.at(b + 1) as u64 - token - 1; // queries of the sequence after this one
    let [of_k, of_v] = cache::worth(p, inputs, head / (h / hk));
    let q_row: Vec<f64> = (0..d).map(|c| inputs.get("q").at(unit * d + c) * of_k).collect();
    let row = |j: u64| {
        let physical = table.at(b * max_pages + j / page) as u64;
        ((physical * hk + head / (h / hk)) * page + j % page) * d
    };
    let keys = lens.at(b) as u64 - behind;
    let value = softmax_average(&q_row, keys, inputs.get("k_cache"), inputs.get("v_cache"), row);
    out.extend(value.into_iter().zip(unit * d..).map(|(value, index)| Expected::new("o", index, value * of_v)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::problem::expected;

    fn spread(text: &str) -> Spread {
        Spread::of(&text.parse().unwrap())
    }

    const HEADS: &str = "heads=2 kv_heads=1 head_dim=4 page=2";

    #[test]
    fn queries_and_lengths_spread_as_asked() {
        let of = |text: &str| spread(&format!("paged_attention {text} {HEADS}"));
        let full = of("tokens=7 batch=3 context=5");
        assert_eq!((full.starts(), full.lengths()), (vec![0, 2, 4, 7], vec![5, 5, 5]));
        let chunk = of("tokens=7 batch=3 context=9 lens=chunk");
        assert_eq!((chunk.starts(), chunk.lengths()), (vec![0, 1, 2, 7], vec![9, 9, 9]));
        let mixed = of("tokens=8 batch=3 context=9 lens=mixed");
        assert_eq!((mixed.starts(), mixed.lengths()), (vec![0, 5, 5, 7], vec![9, 6, 3]));
        for lens in ["full", "mixed", "chunk"] {
            for (tokens, batch, context) in [(1, 1, 1), (1, 5, 3), (100, 7, 4), (3, 3, 1000)] {
                let s = of(&format!("tokens={tokens} batch={batch} context={context} lens={lens}"));
                assert!(s.queries() <= tokens && s.sequences().all(|(q, kv)| 0 <= q && q <= kv && kv <= context));
            }
        }
    }

    #[test]
    fn the_last_query_sees_all_keys_and_the_one_before_it_one_less() {
        let p: Problem = format!("paged_attention tokens=2 batch=1 context=3 {HEADS} dtype=f32").parse().unwrap();
        let inputs = Inputs::new(&p, 5);
        let all = expected(&p, &inputs, 5, u64::MAX / 2);
        let table = inputs.get("block_table");
        let row = |j: u64| (table.at(j / 2) as u64 * 2 + j % 2) * 4;
        for (token, keys) in [(0, 2), (1, 3)] {
            let q: Vec<f64> = (0..4).map(|c| inputs.get("q").at(token * 8 + c)).collect();
            let value = softmax_average(&q, keys, inputs.get("k_cache"), inputs.get("v_cache"), row);
            assert_eq!(value, all[token as usize * 8..][..4].iter().map(|e| e.value).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_small_cache_is_shared_and_a_short_table_shortens_the_sequences() {
        let p: Problem =
            format!("paged_attention tokens=4 batch=2 context=8 {HEADS} pages=3 max_pages=3").parse().unwrap();
        let inputs = Inputs::new(&p, 1);
        assert_eq!(
            (inputs.get("kv_lens").at(0), inputs.get("block_table").at(5)),
            (6.0, inputs.get("block_table").at(2))
        );
        assert_eq!(expected(&p, &inputs, 1, u64::MAX / 2).len(), 4 * 8);
    }
}
