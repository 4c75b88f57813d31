//! The sections that say what was measured.

use super::costs::Cost;
use super::entry::{Entry, Figures, Value};
use super::rankings::Ranking;
use super::source;
use super::summary::LibraryComparisonReport;
use super::view::{Block, Section};
use super::words::{dollars, list, maybe, number, percent, ratio};

pub(super) fn section(id: &'static str, title: &'static str, blocks: Vec<Block>) -> Section {
    Section { id, title, blocks }
}

/// What is known of a value, with its rounds' range where there are several.
pub(super) fn value(v: Option<Value>) -> String {
    match v {
        None => "—".into(),
        Some(v) if v.rounds > 1 && v.low < v.high => {
            format!("{} [{}, {}]", number(v.median), number(v.low), number(v.high))
        }
        Some(v) => number(v.median),
    }
}

fn median(v: Option<Value>) -> String {
    maybe(v.map(|v| v.median), number)
}

/// Where jitune is behind, and where it has nothing.
pub fn losses(r: &LibraryComparisonReport) -> Section {
    let mut blocks = Vec::new();
    let lack = |l: &super::rankings::Lacking| {
        format!(
            "jitune has nothing that counts at {} {} on {}, where {} has: {}",
            l.workload,
            l.dtype,
            l.device,
            list(&l.others),
            l.why
        )
    };
    if !r.lacking.is_empty() {
        blocks.push(Block::List { items: r.lacking.iter().map(|l| (lack(l), source::text(&l.because))).collect() });
    }
    let row = |l: &super::rankings::Loss| {
        let group = [&l.workload, &l.dtype, &l.device].map(String::clone);
        let rest = [l.metric.name().into(), l.engine.clone(), number(l.its), number(l.ours), maybe(l.behind, ratio)];
        group.into_iter().chain(rest).collect()
    };
    let ranked =
        r.rankings.iter().any(|k| k.places.len() > 1 && k.places.iter().any(|p| p.engine == super::entry::OURS));
    if !r.losses.is_empty() {
        let header = ["workload", "dtype", "device", "in", "better", "its", "jitune's", "better by"];
        blocks.push(Block::table(&header, 5, r.losses.iter().map(row).collect()));
    } else if ranked {
        blocks.push(Block::text("No engine that counts is better than jitune beyond a tie."));
    } else if blocks.is_empty() {
        blocks.push(Block::text("jitune was held against no other engine."));
    }
    section("losses", "Where jitune loses", blocks)
}

/// The winners and the rankings.
pub fn rankings(r: &LibraryComparisonReport) -> Section {
    let mut blocks = Vec::new();
    if r.workload_winners.is_empty() {
        blocks.push(Block::text("No engine has a cell that counts."));
        return section("rankings", "Rankings", blocks);
    }
    let winner = |w: &super::rankings::WorkloadWinner| {
        let first = if w.of == 1 { format!("{}, alone", w.winners[0]) } else { w.winners.join(" = ") };
        vec![w.workload.clone(), w.dtype.clone(), w.device.clone(), first, w.by.name().into(), maybe(w.lead, ratio)]
    };
    blocks.push(Block::table(
        &["workload", "dtype", "device", "first", "by", "better than the next by"],
        5,
        r.workload_winners.iter().map(winner).collect(),
    ));
    let mut shown: Vec<[&str; 3]> = Vec::new();
    for k in &r.rankings {
        let group = [&k.workload[..], &k.dtype, &k.device];
        if shown.contains(&group) {
            continue;
        }
        shown.push(group);
        blocks.push(Block::heading(group.join(", ")));
        let here: Vec<&Ranking> =
            r.rankings.iter().filter(|o| [&o.workload[..], &o.dtype, &o.device] == group).collect();
        let line = |engine: &String| {
            let cell = |metric: &Ranking| {
                let place = metric.places.iter().find(|p| p.engine == *engine);
                place.map_or_else(|| "—".into(), |p| format!("{}. {}", p.rank, value(Some(p.value))))
            };
            [engine.clone()].into_iter().chain(here.iter().map(|m| cell(m))).collect::<Vec<_>>()
        };
        let header: Vec<&str> = ["engine"].into_iter().chain(here.iter().map(|m| m.metric.name())).collect();
        blocks.push(Block::table(&header, 1, k.places.iter().map(|p| line(&p.engine)).collect()));
    }
    blocks.push(Block::text(
        "A number before a figure is the rank; engines that tie share it. Figures are medians over rounds, with the least and the \
         greatest of them. Ranked are engines on the same device and in the same precision whose logits are those of the model.",
    ));
    section("rankings", "Rankings", blocks)
}

fn counted(r: &LibraryComparisonReport) -> impl Iterator<Item = (&Entry, &Figures)> {
    r.entries.iter().filter_map(|e| Some((e, e.counted()?)))
}

fn name(e: &Entry) -> Vec<String> {
    vec![e.workload.clone(), e.dtype.clone(), e.engine.clone()]
}

/// All figures of what counts.
pub fn figures(r: &LibraryComparisonReport) -> Section {
    let row = |(e, f): (&Entry, &Figures)| {
        let rest = [
            f.output_throughput,
            f.request_throughput,
            f.goodput,
            f.ttft_ms,
            f.ttft_p99_ms,
            f.tpot_ms,
            f.tpot_p99_ms,
            f.itl_p99_ms,
            f.e2el_ms,
            f.late_p99_ms,
        ];
        let counts = [format!("{}/{}", f.completed, f.failed), super::words::rounds(&e.rounds)];
        name(e).into_iter().chain(counts).chain(rest.map(median)).collect()
    };
    let header = [
        "workload",
        "dtype",
        "engine",
        "answered/not",
        "rounds",
        "out tok/s",
        "answers/s",
        "goodput",
        "TTFT ms",
        "p99",
        "TPOT ms",
        "p99",
        "ITL p99",
        "to the end ms",
        "client late p99",
    ];
    let rows: Vec<Vec<String>> = counted(r).map(row).collect();
    let blocks = match rows.is_empty() {
        true => vec![Block::text("Nothing was measured that counts.")],
        false => vec![Block::table(&header, 5, rows)],
    };
    section("figures", "Figures", blocks)
}

/// Batches, the cache, drift.
pub fn scaling(r: &LibraryComparisonReport) -> Section {
    let mut blocks = Vec::new();
    if !r.batches.is_empty() {
        let row = |b: &super::costs::Batch| {
            let knee = b.beyond_knee.map_or("", |beyond| if beyond { "beyond" } else { "below" });
            let rest = [number(b.output_throughput), percent(b.efficiency), maybe(b.roofline, percent), knee.into()];
            [b.engine.clone(), b.dtype.clone(), b.device.clone(), b.batch.to_string()].into_iter().chain(rest).collect()
        };
        blocks.push(Block::heading("Batches"));
        blocks.push(Block::text(
            "Efficiency is the output tokens/s of a batch over batch × those of one; beside it what a step would allow that takes \
             what its bytes and operations need. Beyond the knee operations bound it rather than the weights' bytes.",
        ));
        let header = ["engine", "dtype", "device", "batch", "out tok/s", "efficiency", "roofline's", "the knee"];
        blocks.push(Block::table(&header, 3, r.batches.iter().map(row).collect()));
    }
    let cache = |(e, f): (&Entry, &Figures)| {
        let m = &f.meanwhile;
        let known = m.pages_used.is_some() || m.live_share.is_some() || m.prefix_hits.is_some();
        let rest = [m.pages_used, m.live_share, m.prefix_hits].map(|v| maybe(v, percent));
        let preempted = m.preempted.map_or_else(|| "—".into(), |v| v.to_string());
        known.then(|| name(e).into_iter().chain(rest).chain([preempted]).collect::<Vec<_>>())
    };
    let rows: Vec<Vec<String>> = counted(r).filter_map(cache).collect();
    if !rows.is_empty() {
        blocks.push(Block::heading("Keys and values"));
        let header = [
            "workload",
            "dtype",
            "engine",
            "pages used at most",
            "live tokens of their room",
            "prompts found",
            "computed again",
        ];
        blocks.push(Block::table(&header, 3, rows));
    }
    let drift = |(e, f): (&Entry, &Figures)| {
        let least = f.over_time.iter().copied().fold(f64::INFINITY, f64::min);
        let most = f.over_time.iter().copied().fold(0.0, f64::max);
        f.drift.map(|d| {
            name(e).into_iter().chain([format!("{:+.1}%", d * 100.0), number(least), number(most)]).collect::<Vec<_>>()
        })
    };
    let rows: Vec<Vec<String>> = counted(r).filter_map(drift).collect();
    if !rows.is_empty() {
        blocks.push(Block::heading("Drift"));
        blocks.push(Block::text(
            "Output tokens/s in the sixth to ninth tenth of the time beside those in the second to fifth; the least and the most of \
             any tenth.",
        ));
        blocks.push(Block::table(&["workload", "dtype", "engine", "later", "least", "most"], 3, rows));
    }
    if blocks.is_empty() {
        blocks.push(Block::text("Nothing was measured of batches, caches or drift."));
    }
    section("scaling", "Batches, cache and drift", blocks)
}

/// Dollars, joules, the hardware.
pub fn costs(r: &LibraryComparisonReport) -> Section {
    let mut blocks = Vec::new();
    let row = |c: &Cost| {
        let start = [c.workload.clone(), c.dtype.clone(), c.engine.clone(), c.device.clone()];
        let rest =
            [maybe(c.dollars_an_hour, dollars), maybe(c.dollars_a_million, dollars), maybe(c.joules_a_token, number)];
        start.into_iter().chain(rest).collect()
    };
    if r.costs.is_empty() {
        blocks.push(Block::text(
            "No price was given (--price gpu=…/h,cpu=…/h) and no energy was read, so nothing is known of costs.",
        ));
    } else {
        let header =
            ["workload", "dtype", "engine", "device", "$ an hour", "$ a million output tokens", "joules a token"];
        blocks.push(Block::table(&header, 4, r.costs.iter().map(row).collect()));
    }
    let hardware = |(e, f): (&Entry, &Figures)| {
        let m = &f.meanwhile;
        let known = m.busy.is_some() || m.power_w.is_some() || m.host_cores.is_some() || m.peak_bytes.is_some();
        let gib = |v: Option<u64>| maybe(v.map(|v| v as f64 / f64::from(1 << 30)), number);
        let rest = [
            maybe(m.busy, percent),
            maybe(m.roofline, percent),
            maybe(m.sm_mhz, number),
            maybe(m.power_w, number),
            maybe(m.temp_c, number),
            gib(m.peak_bytes),
            gib(m.sustained_bytes),
            maybe(m.host_cores, number),
            gib(m.host_bytes),
            maybe(m.host_us_a_step, number),
            maybe(m.launches_a_step, number),
        ];
        known.then(|| name(e).into_iter().chain(rest).collect::<Vec<_>>())
    };
    let rows: Vec<Vec<String>> = counted(r).filter_map(hardware).collect();
    if !rows.is_empty() {
        blocks.push(Block::heading("The hardware meanwhile"));
        let header = [
            "workload",
            "dtype",
            "engine",
            "GPU busy",
            "roofline",
            "MHz",
            "watts",
            "°C at most",
            "GiB at most",
            "GiB",
            "host cores",
            "host GiB",
            "host µs a step",
            "launches a step",
        ];
        blocks.push(Block::table(&header, 3, rows));
    }
    section("costs", "Costs and hardware", blocks)
}

/// What is in no ranking.
pub fn apart(r: &LibraryComparisonReport) -> Section {
    let row = |e: &Entry| {
        let figures = e.figures.as_ref();
        let rest = [
            e.apart.clone().unwrap_or_default(),
            median(figures.and_then(|f| f.output_throughput)),
            median(figures.and_then(|f| f.ttft_ms)),
            median(figures.and_then(|f| f.tpot_ms)),
        ];
        [e.workload.clone(), e.dtype.clone(), e.engine.clone()].into_iter().chain(rest).collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = r.entries.iter().filter(|e| e.apart.is_some()).map(row).collect();
    let mut blocks = Vec::new();
    if !rows.is_empty() {
        blocks.push(Block::text("Engines that do not compute the model, that nothing could be held against, or without a round that went well."));
        let header = ["workload", "dtype", "engine", "why", "out tok/s", "TTFT ms", "TPOT ms"];
        blocks.push(Block::table(&header, 4, rows));
    }
    let left: Vec<Vec<String>> = r
        .entries
        .iter()
        .filter(|e| !e.rounds.is_empty())
        .flat_map(|e| e.left_out.iter().map(|why| name(e).into_iter().chain([why.clone()]).collect()))
        .collect();
    if !left.is_empty() {
        blocks.push(Block::text("Rounds that cost only themselves:"));
        blocks.push(Block::table(&["workload", "dtype", "engine", "round"], 4, left));
    }
    if blocks.is_empty() {
        blocks.push(Block::text("Every cell counts."));
    }
    section("apart", "In no ranking", blocks)
}

/// How far engines differ from themselves.
pub fn noise(r: &LibraryComparisonReport) -> Section {
    let mut blocks = Vec::new();
    if r.noise.pairs.is_empty() {
        blocks.push(Block::text(
            "No engine was entered twice, so the noise is not known; what ties, ties because its rounds overlap.",
        ));
    } else {
        blocks.push(Block::text(
            "The same engine entered twice: what differs by no more than it does, in the same workload, is a tie, and so is what \
             overlaps in its rounds.",
        ));
        let row = |p: &super::noise::Pair| {
            vec![
                p.workload.clone(),
                p.dtype.clone(),
                p.engine.clone(),
                p.metric.name().into(),
                format!("{:.4}", p.ratio),
            ]
        };
        let header = ["workload", "dtype", "engine", "in", "second over first"];
        blocks.push(Block::table(&header, 4, r.noise.pairs.iter().map(row).collect()));
    }
    section("noise", "Noise of the instrument", blocks)
}
