//! Each type of kernel, an op in a phase: how every way stands beside jitune, and who wins.

use super::count::{Best, OURS, as_called, counts, ours};
use super::rows::{ProblemLine, Row};
use super::{Rows, text};
use crate::model::Phase;
use serde::Serialize;
use std::collections::BTreeMap;

/// How one way stands beside jitune at one type of kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// The op.
    pub op: String,
    /// The phase.
    pub phase: Option<Phase>,
    /// The way's label.
    pub label: String,
    /// Its place among the ways that have every problem of this type; none for others.
    pub rank: Option<usize>,
    /// Geometric mean of its times over ours.
    pub mean: f64,
    /// The least of them: where jitune stands worst.
    pub worst: f64,
    /// The problem of that.
    pub worst_problem: String,
    /// Problems in the mean.
    pub problems: usize,
    /// Problems of this type.
    pub of: usize,
    /// Problems at which jitune is faster.
    pub wins: usize,
    /// Problems at which neither is.
    pub ties: usize,
    /// Problems at which jitune is slower.
    pub losses: usize,
}

/// The winner of one type of kernel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KindWinner {
    /// The op.
    pub op: String,
    /// The phase.
    pub phase: Option<Phase>,
    /// The first of the ranking, and those that tie with it on every problem.
    pub winners: Vec<String>,
    /// Whether no other peer has every problem of this type, so that the winner was held against none.
    pub alone: bool,
    /// jitune's templates of this type, and how many problems each won.
    pub templates: BTreeMap<String, usize>,
    /// Problems at which each is the fastest; of a tie, jitune and the other are named together.
    pub fastest: BTreeMap<String, usize>,
}

/// An op in a phase, with its problems.
pub(super) struct KindOf<'a> {
    op: &'a str,
    phase: Option<Phase>,
    problems: Vec<&'a ProblemLine>,
}

/// One peer beside jitune at one type, at each problem by its fastest way.
pub(super) struct Against {
    /// Geometric mean of its times over ours.
    pub mean: f64,
    /// Problems in the mean.
    pub problems: usize,
    /// Problems at which jitune is faster, at which neither is, and at which the peer is.
    pub score: [usize; 3],
    /// Whether both are timed with their calls, because the peer cannot be captured.
    pub called: bool,
}

impl KindOf<'_> {
    /// The op and the phase in words.
    pub fn title(&self) -> String {
        format!("{}, {}", self.op, text::phase(self.phase))
    }

    pub fn problems(&self) -> usize {
        self.problems.len()
    }

    /// How a peer stands; none where it has no problem of this type right and whole.
    pub fn against(&self, rows: &Rows, peer: &str) -> Option<Against> {
        [false, true].into_iter().find_map(|called| {
            let (mut sum, mut problems, mut score) = (0.0, 0, [0; 3]);
            for p in &self.problems {
                let ours = ours(rows, &p.problem);
                let mine = rows.rows.iter().filter(|r| r.problem == p.problem && r.peer == peer);
                let ratio = |r: &Row| if called { as_called(r, ours) } else { counts(r, ours).map(|(_, ratio)| ratio) };
                let timed = mine.filter_map(|r| Some((ratio(r)?, r.tie)));
                let Some((ratio, tie)) = timed.min_by(|a, b| a.0.total_cmp(&b.0)) else { continue };
                (sum, problems) = (sum + ratio.ln(), problems + 1);
                score[if tie { 1 } else { 2 * usize::from(ratio < 1.0) }] += 1;
            }
            (problems > 0).then(|| Against { mean: (sum / problems as f64).exp(), problems, score, called })
        })
    }
}

/// The types of a run, in the order of its problems.
pub(super) fn kinds_of(rows: &Rows) -> Vec<KindOf<'_>> {
    let mut list: Vec<KindOf<'_>> = Vec::new();
    for p in &rows.problems {
        let mut phases: Vec<Option<Phase>> = p.calls.iter().map(|c| Some(c.phase)).collect();
        phases.dedup();
        if phases.is_empty() {
            phases.push(None);
        }
        for phase in phases {
            match list.iter_mut().find(|k| k.op == p.op && k.phase == phase) {
                Some(kind) if kind.problems.iter().any(|q| q.problem == p.problem) => {}
                Some(kind) => kind.problems.push(p),
                None => list.push(KindOf { op: &p.op, phase, problems: vec![p] }),
            }
        }
    }
    list
}

/// Each way's standing at one type, the fastest first.
pub(super) fn standings(rows: &Rows, kind: &KindOf<'_>) -> Vec<Standing> {
    let of = kind.problems.len();
    let blank = |label: String| Standing {
        op: kind.op.into(),
        phase: kind.phase,
        label,
        rank: None,
        mean: 0.0,
        worst: f64::INFINITY,
        worst_problem: String::new(),
        problems: 0,
        of,
        wins: 0,
        ties: 0,
        losses: 0,
    };
    let mut list: Vec<Standing> = Vec::new();
    let mut us = Standing { worst: 1.0, ..blank(text::label(OURS.0, OURS.1)) };
    for p in &kind.problems {
        let ours = ours(rows, &p.problem);
        us.problems += usize::from(ours.is_some());
        for row in rows.rows.iter().filter(|r| r.problem == p.problem) {
            let Some((_, ratio)) = counts(row, ours) else { continue };
            let label = text::label_of(row);
            let at = list.iter().position(|s| s.label == label).unwrap_or_else(|| {
                list.push(blank(label));
                list.len() - 1
            });
            let s = &mut list[at];
            // The sum of logarithms, until the problems are all seen.
            s.mean += ratio.ln();
            s.problems += 1;
            *(if row.tie {
                &mut s.ties
            } else if ratio > 1.0 {
                &mut s.wins
            } else {
                &mut s.losses
            }) += 1;
            if ratio < s.worst {
                (s.worst, s.worst_problem) = (ratio, p.problem.clone());
            }
        }
    }
    if us.problems > 0 {
        list.push(us);
    }
    list.iter_mut().for_each(|s| s.mean = (s.mean / s.problems as f64).exp());
    list.sort_by(|a, b| (a.problems < of).cmp(&(b.problems < of)).then(a.mean.total_cmp(&b.mean)));
    for (i, s) in list.iter_mut().enumerate().filter(|(_, s)| s.problems == of) {
        s.rank = Some(i + 1);
    }
    list
}

/// The winner of one type.
pub(super) fn kind(kind: &KindOf<'_>, standings: &[Standing], best: &[Best]) -> KindWinner {
    let ours = text::label(OURS.0, OURS.1);
    let same = |s: &&Standing| s.op == kind.op && s.phase == kind.phase && s.rank.is_some();
    let ranked: Vec<&Standing> = standings.iter().filter(same).collect();
    let mut winners: Vec<String> = ranked.first().map(|s| s.label.clone()).into_iter().collect();
    // Ties are known against jitune alone: they add to it where it is first, and it to a first that it ties with.
    let tied = |s: &&&Standing| s.ties == s.problems && s.ties > 0;
    match ranked.first() {
        Some(first) if first.label == ours => winners.extend(ranked.iter().filter(tied).map(|s| s.label.clone())),
        Some(first) if tied(&first) => winners.push(ours.clone()),
        _ => {}
    }
    let (mut templates, mut fastest) = (BTreeMap::new(), BTreeMap::new());
    for p in &kind.problems {
        if let Some(w) = &p.winner {
            *templates.entry(w.template.clone()).or_insert(0) += 1;
        }
        if let Some(b) = best.iter().find(|b| b.problem == p.problem) {
            let who = match b {
                b if b.tie => format!("{ours} = {}", b.label),
                b if b.ratio > 1.0 => ours.clone(),
                b => b.label.clone(),
            };
            *fastest.entry(who).or_insert(0) += 1;
        }
    }
    let other = |s: &&Standing| s.label != OURS.0 && !s.label.starts_with(&format!("{}/", OURS.0));
    let alone = !ranked.iter().any(other);
    KindWinner { op: kind.op.into(), phase: kind.phase, winners, alone, templates, fastest }
}
