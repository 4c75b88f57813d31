//! What `jitune compare` and `jitune report` print: a line a problem, and a few sentences.

use super::count::ours;
use super::summary::Summary;
use super::{Rows, text};

/// The header of [`rows`].
pub const HEADER: [&str; 6] = ["us", "of ceiling", "fastest other", "its us", "ratio", "problem"];
/// The columns of [`rows`] that hold numbers.
pub const RIGHT: [usize; 4] = [0, 1, 3, 4];

/// A line a problem: ours and the fastest other.
pub fn rows(rows: &Rows, summary: &Summary) -> Vec<Vec<String>> {
    let line = |p: &super::rows::ProblemLine| {
        let ours = ours(rows, &p.problem);
        let best = summary.best.iter().find(|b| b.problem == p.problem);
        let dash = || "-".to_string();
        vec![
            ours.and_then(|r| r.times()).map_or_else(dash, |t| text::us(t.median_us)),
            ours.and_then(|r| r.roofline_share).map_or_else(dash, |s| format!("{:.0}%", s * 100.0)),
            best.map_or_else(dash, |b| plain(&b.label)),
            best.map_or_else(dash, |b| text::us(b.us)),
            best.map_or_else(dash, |b| if b.tie { "tie".into() } else { text::ratio(b.ratio) }),
            plain(&p.problem),
        ]
    };
    rows.problems.iter().map(line).collect()
}

/// What follows the table.
pub fn closing(rows: &Rows, summary: &Summary) -> Vec<String> {
    let (wins, ties, losses) = summary.score();
    let mut list = vec![format!(
        "against the fastest other: jitune is faster on {wins} problems, ties on {ties}, is slower on {losses}; {} rows are \
         in no mean",
        summary.apart.len()
    )];
    for p in &summary.passes {
        let sums: Vec<String> =
            p.sums.iter().map(|(peer, us)| format!("{} {}", plain(peer), text::time(*us))).collect();
        if !sums.is_empty() {
            list.push(format!("one pass, {} {}: {}", p.phase.name(), p.bucket, sums.join(", ")));
        }
    }
    for (problem, why) in &summary.without_ours {
        list.push(format!("no time of jitune's: {}: {}", plain(problem), plain(why)));
    }
    let wrong = summary.apart.iter().filter(|a| a.reason == "wrong");
    list.extend(wrong.map(|a| format!("WRONG: {}: {}: {}", plain(&a.label), plain(&a.problem), plain(&a.why))));
    for p in rows.run.peers.iter().filter(|p| !p.here) {
        let or = |text: &Option<String>| plain(text.as_deref().unwrap_or(""));
        list.push(format!("not here: {}: {}; {}", plain(&p.peer), or(&p.why), or(&p.fix)));
    }
    if rows.cut() {
        list.push("the run was cut off before its end".into());
    }
    list
}

/// Text from rows without anything that a terminal would obey.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
