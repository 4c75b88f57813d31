//! `report.md`.

use super::count::OURS;
use super::passes::{Part, Pass};
use super::rows::Run;
use super::summary::Summary;
use super::tables::{Cell, families};
use super::{Rows, text};
use std::fmt::Write;

/// How the times came about; every report says it.
pub const METHOD: [&str; 3] = [
    "Every peer computed the same problems from the same bytes on the same device in one run, and only what agrees with an \
     f64 reference is timed.",
    "A time is the median over rounds of replayed CUDA graphs whose calls find their inputs outside of the caches (on a CPU, \
     and for what cannot be captured, of plain calls by the host's clock), with a 95% interval by order statistics.",
    "A ratio is a peer's time over that of jitune's tuned kernel on the same basis: above 1 jitune is faster, and where the \
     intervals overlap, or jitune entered twice differs as much, it is a tie.",
];

/// Text from rows, so that none of it is taken for Markdown or HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            // Within a word it is no mark, and names are full of it.
            '_' if before.is_alphanumeric() && rest.peek().is_some_and(|c| c.is_alphanumeric()) => out.push('_'),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '#' | '!' | '$' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
        before = c;
    }
    out
}

/// Text from rows as code. Within a table a bar would end the cell even there.
pub fn code(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let clean = clean.replace('|', "\\|");
    let longest = clean.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    let space = if clean.starts_with('`') || clean.ends_with('`') { " " } else { "" };
    if clean.is_empty() { String::new() } else { format!("{fence}{space}{clean}{space}{fence}") }
}

/// A table of cells that are Markdown already; columns in `right` hold numbers.
pub fn table(out: &mut String, header: &[String], rows: &[Vec<String>], right: impl Fn(usize) -> bool) {
    let mut line = |cells: &[String]| {
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    };
    line(header);
    let rule = |i| if right(i) { "--:".to_string() } else { "---".into() };
    line(&(0..header.len()).map(rule).collect::<Vec<_>>());
    rows.iter().for_each(|r| line(r));
    out.push('\n');
}

/// A table under plain words, of which the first `left` columns are text.
fn list(out: &mut String, header: &[&str], rows: &[Vec<String>], left: usize) {
    table(out, &header.iter().map(|h| h.to_string()).collect::<Vec<_>>(), rows, |i| i >= left);
}

/// The whole report.
pub fn report(rows: &Rows) -> String {
    let summary = Summary::of(rows);
    let mut out = String::new();
    head(&mut out, rows, &summary);
    losses(&mut out, &summary);
    kinds(&mut out, &summary);
    passes(&mut out, &summary.passes);
    opportunities(&mut out, &summary);
    tables(&mut out, rows);
    apart(&mut out, &summary);
    noise(&mut out, rows);
    environment(&mut out, &rows.run);
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn head(out: &mut String, rows: &Rows, summary: &Summary) {
    let run = &rows.run;
    let device = run.device.as_ref().map_or("a device unknown".into(), |d| escape(&d.name));
    let _ = writeln!(out, "# jitune beside its peers on {device}\n");
    let (wins, ties, losses) = summary.score();
    let _ = writeln!(
        out,
        "Against the fastest other of each problem jitune is faster on {wins}, ties on {ties} and is slower on {losses}. \
         {} of {} problems have no such comparison.\n",
        rows.problems.len() - summary.best.len(),
        rows.problems.len()
    );
    let length = rows.end.as_ref().map(|e| format!(", {:.0} s", e.seconds)).unwrap_or_default();
    let cut = if rows.cut() { ", **cut off before its end: what it had is below**" } else { "" };
    let quick = if run.quick { ", the quick comparison" } else { "" };
    let peers: Vec<String> = run.peers.iter().filter(|p| p.here && p.peer != OURS.0).map(versions).collect();
    let mut lines = vec![
        ["date".to_string(), format!("{}{length}{quick}{cut}", text::date(run.at))],
        ["command".into(), code(&run.command)],
        [
            "versions".into(),
            [format!("jitune {}", escape(&run.jitune))].into_iter().chain(peers).collect::<Vec<_>>().join("; "),
        ],
        ["rounds".into(), run.rounds.to_string()],
    ];
    if let Some(model) = &run.model {
        lines.insert(1, ["model".into(), escape(model)]);
    }
    list(out, &["", ""], &lines.map_cells(), 2);
    let _ = writeln!(out, "{}\n", METHOD.join(" "));
}

trait Cells {
    fn map_cells(self) -> Vec<Vec<String>>;
}

impl<const N: usize> Cells for Vec<[String; N]> {
    fn map_cells(self) -> Vec<Vec<String>> {
        self.into_iter().map(Vec::from).collect()
    }
}

fn versions(p: &super::rows::Peer) -> String {
    let libraries: Vec<String> =
        p.libraries.iter().map(|(name, v)| format!("{} {}", escape(name), escape(v))).collect();
    let inner = if libraries.is_empty() { String::new() } else { format!(" ({})", libraries.join(", ")) };
    format!("{} {}{inner}", escape(&p.peer), escape(p.version.as_deref().unwrap_or("")))
}

fn losses(out: &mut String, summary: &Summary) {
    out.push_str("## Where jitune loses\n\n");
    if summary.losses.is_empty() {
        out.push_str("No row that counts is faster than jitune's beyond its interval.\n\n");
    } else {
        let row = |l: &super::summary::Loss| {
            vec![
                escape(&l.problem),
                escape(&l.label),
                text::us(l.ours_us),
                text::us(l.us),
                format!("{:.1}%", (1.0 / l.ratio - 1.0) * 100.0),
            ]
        };
        let rows: Vec<Vec<String>> = summary.losses.iter().map(row).collect();
        list(out, &["problem", "faster", "jitune µs", "its µs", "jitune takes longer by"], &rows, 2);
    }
    for (problem, why) in &summary.without_ours {
        let _ = writeln!(out, "- jitune has no time for {}: {}", escape(problem), escape(why));
    }
    if !summary.without_ours.is_empty() {
        out.push('\n');
    }
}

fn kinds(out: &mut String, summary: &Summary) {
    out.push_str("## Winner of each type of kernel\n\n");
    let counted = |map: &std::collections::BTreeMap<String, usize>| {
        map.iter().map(|(name, n)| format!("{} on {n}", escape(name))).collect::<Vec<_>>().join(", ")
    };
    let row = |k: &super::standing::KindWinner| {
        let winners: Vec<String> = k.winners.iter().map(|w| escape(w)).collect();
        let alone = if k.alone { ", no other has them all" } else { "" };
        let winner = if winners.is_empty() { "—".into() } else { winners.join(" = ") + alone };
        vec![escape(&k.op), text::phase(k.phase).into(), winner, counted(&k.fastest), counted(&k.templates)]
    };
    let rows: Vec<Vec<String>> = summary.kinds.iter().map(row).collect();
    list(out, &["op", "phase", "winner by mean", "fastest by problem", "jitune's templates"], &rows, 5);
    out.push_str("## Standings\n\n");
    let row = |s: &super::standing::Standing| {
        vec![
            escape(&s.op),
            text::phase(s.phase).into(),
            s.rank.map_or("—".into(), |r| r.to_string()),
            escape(&s.label),
            text::ratio(s.mean),
            text::ratio(s.worst),
            format!("{} of {}", s.problems, s.of),
            s.wins.to_string(),
            s.ties.to_string(),
            s.losses.to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = summary.standings.iter().map(row).collect();
    let header = [
        "op",
        "phase",
        "rank",
        "way",
        "mean ratio",
        "worst for jitune",
        "problems",
        "jitune wins",
        "ties",
        "jitune loses",
    ];
    list(out, &header, &rows, 4);
    out.push_str("Means are geometric. Only ways that have every problem of a type are ranked.\n\n");
}

fn passes(out: &mut String, passes: &[Pass]) {
    out.push_str("## One forward pass\n\n");
    if passes.is_empty() {
        out.push_str("The problems were not taken from a model, so there is no pass to sum.\n\n");
        return;
    }
    let row = |p: &Pass| {
        let sums: Vec<String> =
            p.sums.iter().map(|(peer, us)| format!("{} {}", escape(peer), text::time(*us))).collect();
        let parts: Vec<String> = p.parts.iter().map(|part| escape(&part_in_words(p, part))).collect();
        let or = |list: Vec<String>| if list.is_empty() { "—".into() } else { list.join(", ") };
        vec![
            format!("{} {}", p.phase.name(), p.bucket),
            or(sums),
            text::time(p.roofline_us),
            if parts.is_empty() { "—".into() } else { parts.join("; ") },
        ]
    };
    let rows: Vec<Vec<String>> = passes.iter().map(row).collect();
    list(out, &["pass", "sum of calls × time", "roofline", "on a part of it, beside jitune on the same"], &rows, 4);
}

/// What a peer that has not all of a pass has of it, beside ours.
pub fn part_in_words(pass: &Pass, part: &Part) -> String {
    let beside = if part.peer == OURS.0 { String::new() } else { format!(", jitune {}", text::time(part.ours_us)) };
    format!("{} on {} of {}: {}{beside}", part.peer, part.problems, pass.problems, text::time(part.us))
}

fn opportunities(out: &mut String, summary: &Summary) {
    if summary.opportunities.is_empty() {
        return;
    }
    out.push_str("## What a pass could save\n\n");
    let row = |o: &super::passes::Opportunity| {
        let best = o.to_best.as_ref().map(|(label, us)| format!("{} ({})", text::time(*us), escape(label)));
        vec![
            format!("{} {}", o.phase.name(), o.bucket),
            escape(&o.role),
            escape(&o.problem),
            o.calls.to_string(),
            text::us(o.ours_us),
            text::time(o.to_roofline_us),
            best.unwrap_or_else(|| "—".into()),
        ]
    };
    let rows: Vec<Vec<String>> = summary.opportunities.iter().map(row).collect();
    list(out, &["pass", "role", "problem", "calls", "µs a call", "to the roofline", "to the fastest other"], &rows, 3);
}

fn tables(out: &mut String, rows: &Rows) {
    for f in families(rows) {
        let _ = writeln!(out, "## {}\n", escape(&f.op));
        let mut header = vec!["µs (ratio)".to_string(), "roofline".into()];
        header.extend(f.ways.iter().map(|w| escape(w)));
        let cell = |c: &Cell| match c.class {
            "loss" | "wrong" => format!("**{}**", escape(&c.text())),
            _ => escape(&c.text()),
        };
        let line = |l: &super::tables::Line| {
            let start = [escape(&l.short), text::us(l.roofline_us)];
            start.into_iter().chain(l.cells.iter().map(cell)).collect::<Vec<_>>()
        };
        table(out, &header, &f.lines.iter().map(line).collect::<Vec<_>>(), |i| i > 0);
    }
}

fn apart(out: &mut String, summary: &Summary) {
    out.push_str("## In no mean\n\n");
    if summary.apart.is_empty() {
        out.push_str("Every row counts.\n\n");
        return;
    }
    let row = |a: &super::summary::Apart| {
        vec![
            escape(&a.problem),
            escape(&a.label),
            escape(&a.reason),
            a.us.map(text::us).unwrap_or_default(),
            a.ratio.map(text::ratio).unwrap_or_default(),
            escape(&a.why),
        ]
    };
    let rows: Vec<Vec<String>> = summary.apart.iter().map(row).collect();
    table(out, &["problem", "way", "why apart", "µs", "ratio", "what it said"].map(String::from), &rows, |i| {
        i == 3 || i == 4
    });
}

fn noise(out: &mut String, rows: &Rows) {
    out.push_str("## Noise of the instrument\n\n");
    let _ = writeln!(out, "{}\n", noise_in_words(rows));
}

/// What the peer that was entered twice says of the measuring itself.
pub fn noise_in_words(rows: &Rows) -> String {
    let Some(noise) = rows.noise.as_ref().filter(|n| !n.pairs.is_empty()) else {
        return "No peer was entered twice, so the noise of this run is not known.".into();
    };
    let worst = noise.worst.map_or("none was that long".into(), text::percent);
    let mut off: Vec<f64> = noise.pairs.iter().map(|p| (p.ratio - 1.0).abs()).collect();
    off.sort_by(f64::total_cmp);
    format!(
        "One peer was entered twice on {} problems: its two times differ by {} in the middle of them, and by {worst} at \
         most above 5 µs.",
        off.len(),
        text::percent(off[off.len() / 2])
    )
}

fn environment(out: &mut String, run: &Run) {
    out.push_str("## Environment\n\n");
    let rows: Vec<Vec<String>> =
        super::environment(run).into_iter().map(|(name, value)| vec![escape(&name), escape(&value)]).collect();
    list(out, &["", ""], &rows, 2);
    let absent: Vec<_> = run.peers.iter().filter(|p| !p.here).collect();
    if absent.is_empty() {
        return;
    }
    out.push_str("## Peers that are not here\n\n");
    let row = |p: &&super::rows::Peer| {
        let or = |text: &Option<String>| text.clone().unwrap_or_default();
        vec![escape(&p.peer), escape(&or(&p.why)), code(&or(&p.fix))]
    };
    list(out, &["peer", "why", "what brings it"], &absent.iter().map(row).collect::<Vec<_>>(), 3);
}
