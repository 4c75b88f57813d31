//! The tables of the README: products by size and rows, then the other ops, each beside the fastest other; every peer at
//! each type of kernel; the sums of a forward pass.

use super::count::{Best, OURS, ours};
use super::markdown::{escape, table};
use super::passes::Pass;
use super::rows::{ProblemLine, Row};
use super::standing::{KindOf, kinds_of};
use super::summary::Summary;
use super::{Rows, text};
use crate::problem::Problem;
use std::fmt::Write;

/// Markdown for the README.
pub fn tables(rows: &Rows) -> String {
    let summary = Summary::of(rows);
    let best = |p: &ProblemLine| summary.best.iter().find(|b| b.problem == p.problem);
    let mut out = String::new();
    let device = rows.run.device.as_ref().map_or_else(String::new, |d| format!("{}, ", escape(&d.name)));
    let _ = writeln!(
        out,
        "{device}{}. Microseconds, and in brackets the fastest other's time over ours: above 1 jitune is faster; = is a tie.\n",
        text::date(rows.run.at)
    );
    let parsed: Vec<(&ProblemLine, Problem, &Row)> =
        rows.problems.iter().filter_map(|p| Some((p, p.problem.parse().ok()?, ours(rows, &p.problem)?))).collect();
    products(&mut out, &parsed, &best);
    rest(&mut out, &parsed, &best);
    peers(&mut out, rows);
    passes(&mut out, &summary.passes);
    out
}

type Found<'a> = dyn Fn(&ProblemLine) -> Option<&'a Best> + 'a;

fn beside(us: f64, best: Option<&Best>) -> String {
    match best {
        Some(b) if b.tie => format!("{} (=)", text::us(us)),
        Some(b) => format!("{} ({})", text::us(us), text::ratio(b.ratio)),
        None => text::us(us),
    }
}

fn products<'a>(out: &mut String, parsed: &[(&ProblemLine, Problem, &Row)], best: &Found<'a>) {
    let list: Vec<_> = parsed.iter().filter(|(p, ..)| matches!(p.op.as_str(), "matmul" | "qkv")).collect();
    let mut widths: Vec<i64> = list.iter().map(|(_, p, _)| p.dim("m")).collect();
    widths.sort_unstable();
    widths.dedup();
    let name = |p: &Problem| {
        let op = p.op().name;
        let epilogue = if op == "qkv" { Some(op) } else { Some(p.word("epilogue")).filter(|e| *e != "none") };
        let base = format!("{}×{} {}", p.dim("n"), p.dim("k"), p.types());
        epilogue.map_or(base.clone(), |e| format!("{base} {e}"))
    };
    let mut names: Vec<String> = Vec::new();
    for (_, p, _) in &list {
        if !names.contains(&name(p)) {
            names.push(name(p));
        }
    }
    if names.is_empty() {
        return;
    }
    let cell = |key: &str, m: i64| {
        let found = list.iter().find(|(_, p, _)| name(p) == key && p.dim("m") == m);
        found.and_then(|(line, _, row)| Some(beside(row.times()?.median_us, best(line)))).unwrap_or_default()
    };
    let row = |key: &String| {
        let cells = widths.iter().map(|m| cell(key, *m));
        [escape(key)].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let header: Vec<String> = ["N×K".to_string()].into_iter().chain(widths.iter().map(|m| format!("M={m}"))).collect();
    table(out, &header, &names.iter().map(row).collect::<Vec<_>>(), |i| i > 0);
}

/// What a reader calls the problem.
fn title(p: &Problem) -> Option<String> {
    let dtype = p.types();
    Some(match p.op().name {
        "attention" => {
            let causal = if p.dim("causal") == 1 { " causal" } else { "" };
            let kv = if p.dim("kv") == p.dim("q") { String::new() } else { format!(" on {}", p.dim("kv")) };
            format!("prefill, d{}{causal} {dtype}, {}×{}{kv}", p.dim("head_dim"), p.dim("batch"), p.dim("q"))
        }
        "paged_attention" => {
            let [tokens, batch, context, d] = ["tokens", "batch", "context", "head_dim"].map(|name| p.dim(name));
            format!("paged, d{d} {dtype}, {tokens} tokens of {batch}, context {context}")
        }
        "decode" => {
            let [batch, context, d] = ["batch", "context", "head_dim"].map(|name| p.dim(name));
            format!("decode, d{d} {dtype}, batch {batch}, context {context}")
        }
        "rmsnorm" | "layernorm" => {
            let residual = if p.dim("residual") == 1 { "residual add + " } else { "" };
            format!("{residual}{} {dtype}, {}×{}", p.op().name, p.dim("rows"), p.dim("cols"))
        }
        "embedding" => format!("embedding {dtype}, {}×{}", p.dim("tokens"), p.dim("hidden")),
        "argmax" | "sample" => format!("{} {dtype}, {}×{}", p.op().name, p.dim("rows"), p.dim("cols")),
        _ => return None,
    })
}

fn rest<'a>(out: &mut String, parsed: &[(&ProblemLine, Problem, &Row)], best: &Found<'a>) {
    let line = |(line, problem, row): &(&ProblemLine, Problem, &Row)| {
        let us = row.times()?.median_us;
        let rate = match (line.memory_bound, row.gbs, row.tflops) {
            (true, Some(v), _) => format!("{v:.0} GB/s"),
            (false, _, Some(v)) => format!("{v:.0} TFLOP/s"),
            _ => String::new(),
        };
        let share = row.roofline_share.map(text::percent).unwrap_or_default();
        let other = match best(line) {
            Some(b) if b.tie => format!("{} {} µs (tie)", escape(&b.label), text::us(b.us)),
            Some(b) => format!("{} {} µs ({})", escape(&b.label), text::us(b.us), text::ratio(b.ratio)),
            None => NONE.into(),
        };
        Some(vec![title(problem)?, format!("{} µs", text::us(us)), rate, share, other])
    };
    let mut sorted: Vec<_> = parsed.iter().collect();
    sorted.sort_by_key(|(p, ..)| &p.op);
    let rows: Vec<Vec<String>> = sorted.into_iter().filter_map(line).collect();
    if !rows.is_empty() {
        let header = ["", "jitune", "rate", "of the roofline", "fastest other"].map(String::from);
        table(out, &header, &rows, |i| (1..4).contains(&i));
    }
}

/// Where a peer has nothing.
const NONE: &str = "—";

/// Each peer at each type of kernel.
fn peers(out: &mut String, rows: &Rows) {
    let others = rows.run.peers.iter().map(|p| p.peer.as_str()).filter(|name| *name != OURS.0);
    let names: Vec<&str> = others.filter(|name| rows.rows.iter().any(|r| r.peer == *name)).collect();
    let kinds = kinds_of(rows);
    let cell = |k: &KindOf<'_>, peer: &str| {
        let Some(a) = k.against(rows, peer) else { return NONE.into() };
        let part =
            if a.problems < k.problems() { format!(" on {} of {}", a.problems, k.problems()) } else { String::new() };
        let called = if a.called { ", with calls" } else { "" };
        let [wins, ties, losses] = a.score;
        format!("{} ({wins}/{ties}/{losses}){part}{called}", text::ratio(a.mean))
    };
    let line = |k: &KindOf<'_>| {
        let cells = names.iter().map(|peer| cell(k, peer));
        [escape(&k.title()), k.problems().to_string()].into_iter().chain(cells).collect::<Vec<_>>()
    };
    let lines: Vec<Vec<String>> = kinds.iter().map(line).filter(|l| l[2..].iter().any(|cell| cell != NONE)).collect();
    if lines.is_empty() {
        return;
    }
    out.push_str(
        "Geometric means of a peer's time over ours, at each problem by the fastest of its ways that is right and computes \
         all of it, and how often jitune is faster, ties, is slower. \"With calls\": by the host's clock, both, where the peer \
         cannot be captured.\n\n",
    );
    let start = ["kernels", "problems"].map(String::from);
    let header: Vec<String> = start.into_iter().chain(names.iter().map(|n| escape(n))).collect();
    table(out, &header, &lines, |i| i > 0);
}

/// One forward pass, as far as a peer has all of it.
fn passes(out: &mut String, passes: &[Pass]) {
    if passes.is_empty() {
        return;
    }
    let line = |p: &Pass| {
        let ours = p.sums.iter().find(|(peer, _)| peer == OURS.0).map(|(_, us)| *us);
        let others = p.sums.iter().filter(|(peer, _)| peer != OURS.0).map(|(peer, us)| {
            let beside = ours.map_or_else(String::new, |ours| format!(" ({})", text::ratio(us / ours)));
            format!("{} {}{beside}", escape(peer), text::time(*us))
        });
        let others = others.collect::<Vec<_>>().join(", ");
        vec![
            format!("{} {}", p.phase.name(), p.bucket),
            text::time(p.roofline_us),
            ours.map_or_else(|| NONE.into(), text::time),
            if others.is_empty() { NONE.into() } else { others },
        ]
    };
    out.push_str(
        "The kernels of one forward pass, one after another; a peer that has all of them, each by its fastest way:\n\n",
    );
    let header = ["pass", "roofline", "jitune", "others"].map(String::from);
    table(out, &header, &passes.iter().map(line).collect::<Vec<_>>(), |i| (1..3).contains(&i));
}
