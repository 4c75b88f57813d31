//! The section of the tokenizer: how fast it is, and how much of the time to the first token it would be.

use super::entry::Entry;
use super::summary::LibraryComparisonReport;
use super::tables::section;
use super::view::{Block, Section};
use super::words::{maybe, number, percent};

/// Rates, and each prompt's share; none where no line is of a tokenizer.
pub fn tokenization(r: &LibraryComparisonReport) -> Option<Section> {
    let first = r.tokenization.first()?;
    let mut blocks = vec![Block::text(
        "Text and tokens, one into the other, by one thread, over one text of some hundred words, code and figures, again and again. The workloads \
         ask in token ids: none of it is in the other figures.",
    )];
    let row = |t: &crate::engines::rows::Tokenization| {
        let same = t.same.map_or("—", |same| if same { "yes" } else { "no" });
        let rates = [t.encode, t.decode].map(|v| maybe(v, number));
        let first =
            [t.by.clone(), t.version.clone(), t.why.clone().unwrap_or_default(), same.into(), t.tokens.to_string()];
        first.into_iter().chain(rates).collect()
    };
    let header = ["by", "version", "not measured, since", "jitune's ids", "tokens", "encode tok/s", "decode tok/s"];
    blocks.push(Block::table(&header, 4, r.tokenization.iter().map(row).collect()));
    let rate = first.encode.filter(|rate| *rate > 0.0);
    let share = |e: &Entry| {
        let figures = e.counted()?;
        let (ttft, ms) = (figures.ttft_ms.filter(|v| v.median > 0.0)?.median, figures.input_tokens / rate? * 1e3);
        let name = [e.workload.clone(), e.dtype.clone(), e.device.clone()];
        let rest = [number(figures.input_tokens), number(ms), number(ttft), percent(ms / (ms + ttft))];
        Some(name.into_iter().chain(rest).collect::<Vec<_>>())
    };
    let rows: Vec<Vec<String>> = r.entries.iter().filter(|e| e.ours()).filter_map(share).collect();
    if !rows.is_empty() {
        blocks.push(Block::text(
            "What encoding a prompt of each workload takes at that rate, and its share of the time to the first token of jitune with it:",
        ));
        let header = ["workload", "dtype", "device", "prompt tokens", "encode ms", "TTFT ms", "share"];
        blocks.push(Block::table(&header, 3, rows));
    }
    Some(section("tokenization", "Tokenization", blocks))
}
