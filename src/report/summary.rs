//! What the rows of a run say together: who is how fast at which kind of kernel, and where jitune loses.
//!
//! A mean holds only rows that are right, whole, and timed on the same basis as jitune's own. The others are listed apart,
//! each with its reason.

use super::passes::{Opportunity, Pass, opportunities, passes};
use super::rows::{Basis, ProblemLine, Row, State};
use super::{Rows, text};
use crate::model::Phase;
use serde::Serialize;
use std::collections::BTreeMap;

/// The peer and the way that everything is held against.
pub const OURS: (&str, &str) = ("jitune", "tuned");

/// Everything that a report says beyond the rows themselves.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Each problem's fastest row of another peer.
    pub best: Vec<Best>,
    /// Each way's standing, by op and phase, the fastest first.
    pub standings: Vec<Standing>,
    /// The winner of each type of kernel.
    pub kinds: Vec<Kind>,
    /// Where jitune loses, the worst first.
    pub losses: Vec<Loss>,
    /// Problems for which jitune has no time, and why.
    pub without_ours: Vec<(String, String)>,
    /// Where a forward pass could become faster, by phase and bucket, the greatest first.
    pub opportunities: Vec<Opportunity>,
    /// What one forward pass takes, by phase and bucket.
    pub passes: Vec<Pass>,
    /// Rows that are in no mean.
    pub apart: Vec<Apart>,
}

/// The fastest row of a problem that another peer has: what jitune measures beside its winner is no other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Best {
    /// The problem.
    pub problem: String,
    /// The row's label.
    pub label: String,
    /// Our time.
    pub ours_us: f64,
    /// Its time.
    pub us: f64,
    /// Its time over ours.
    pub ratio: f64,
    /// Whether the two cannot be told apart.
    pub tie: bool,
}

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
pub struct Kind {
    /// The op.
    pub op: String,
    /// The phase.
    pub phase: Option<Phase>,
    /// The first of the ranking, and those that tie with it on every problem.
    pub winners: Vec<String>,
    /// jitune's templates of this type, and how many problems each won.
    pub templates: BTreeMap<String, usize>,
    /// Problems at which each is the fastest; of a tie, jitune and the other are named together.
    pub fastest: BTreeMap<String, usize>,
}

/// A row that is faster than ours.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Loss {
    /// The problem.
    pub problem: String,
    /// The row's label.
    pub label: String,
    /// What is called.
    pub how: String,
    /// Our time.
    pub ours_us: f64,
    /// Its time.
    pub us: f64,
    /// Its time over ours.
    pub ratio: f64,
}

/// A row that is in no mean.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Apart {
    /// The problem.
    pub problem: String,
    /// The row's label.
    pub label: String,
    /// In a word or a few.
    pub reason: String,
    /// What the row says about it.
    pub why: String,
    /// Its time.
    pub us: Option<f64>,
    /// Its time over ours.
    pub ratio: Option<f64>,
}

impl Summary {
    /// Sums up a run.
    pub fn of(rows: &Rows) -> Summary {
        let best: Vec<Best> = rows.problems.iter().filter_map(|p| best(rows, p)).collect();
        let kinds = kinds_of(rows);
        let standings: Vec<Standing> = kinds.iter().flat_map(|k| standings(rows, k)).collect();
        let apart = rows.rows.iter().filter_map(|row| {
            let reason = apart(row, ours(rows, &row.problem)).filter(|_| !is_ours(row))?;
            let why = row.why.clone().unwrap_or_default();
            let us = row.times().map(|t| t.median_us);
            let (problem, label) = (row.problem.clone(), text::label_of(row));
            Some(Apart { problem, label, reason, why, us, ratio: row.ratio })
        });
        Summary {
            kinds: kinds.iter().map(|k| kind(k, &standings, &best)).collect(),
            losses: losses(rows),
            without_ours: rows.problems.iter().filter_map(|p| without_ours(rows, p)).collect(),
            opportunities: opportunities(rows, &best),
            passes: passes(rows),
            apart: apart.collect(),
            standings,
            best,
        }
    }

    /// Problems at which jitune is faster than all others, ties with the fastest, and is slower.
    pub fn score(&self) -> (usize, usize, usize) {
        let count = |f: fn(&&Best) -> bool| self.best.iter().filter(f).count();
        (count(|b| !b.tie && b.ratio > 1.0), count(|b| b.tie), count(|b| !b.tie && b.ratio <= 1.0))
    }
}

/// Whether it is the row that the others are held against.
pub fn is_ours(row: &Row) -> bool {
    (row.peer.as_str(), row.way.as_str()) == OURS
}

/// Our row of a problem, if it has a time to be held against.
pub fn ours<'a>(rows: &'a Rows, problem: &str) -> Option<&'a Row> {
    rows.rows.iter().find(|r| is_ours(r) && r.problem == problem && r.state == State::Ok && r.times().is_some())
}

/// Why a row is in no mean. None for one that is, and for what its peer does not have at all.
pub fn apart(row: &Row, ours: Option<&Row>) -> Option<String> {
    let reason = match row.state {
        State::Unsupported => return None,
        State::Wrong => "wrong".into(),
        State::Failed => "failed".into(),
        State::Cut => "cut off".into(),
        State::Ok if row.covers != "all" => format!("covers {} only", row.covers),
        State::Ok => match ours {
            None => "no time of jitune's to hold it against".into(),
            Some(ours) if ours.basis != row.basis => match row.basis {
                Basis::Called => "timed with its calls, jitune without".into(),
                Basis::Kernel => "timed without its calls, jitune with them".into(),
            },
            Some(_) if row.times().is_none() || !row.ratio.is_some_and(|r| r.is_finite() && r > 0.0) => {
                "no ratio".into()
            }
            Some(_) => return None,
        },
    };
    Some(reason)
}

/// Time and ratio of a row that counts in means; never our own.
pub fn counts(row: &Row, ours: Option<&Row>) -> Option<(f64, f64)> {
    let counted = row.state == State::Ok && !is_ours(row) && apart(row, ours).is_none();
    Some((row.times()?.median_us, row.ratio?)).filter(|_| counted)
}

fn best(rows: &Rows, problem: &ProblemLine) -> Option<Best> {
    let ours = ours(rows, &problem.problem)?;
    let others = rows.rows.iter().filter(|r| r.problem == problem.problem && r.peer != OURS.0);
    let timed = others.filter_map(|r| counts(r, Some(ours)).map(|(us, ratio)| (r, us, ratio)));
    let (row, us, ratio) = timed.min_by(|a, b| a.2.total_cmp(&b.2))?;
    let (problem, label) = (problem.problem.clone(), text::label_of(row));
    Some(Best { problem, label, ours_us: ours.times()?.median_us, us, ratio, tie: row.tie })
}

/// One type of kernel: an op in a phase, with its problems.
struct KindOf<'a> {
    op: &'a str,
    phase: Option<Phase>,
    problems: Vec<&'a ProblemLine>,
}

fn kinds_of(rows: &Rows) -> Vec<KindOf<'_>> {
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

fn standings(rows: &Rows, kind: &KindOf<'_>) -> Vec<Standing> {
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

fn kind(kind: &KindOf<'_>, standings: &[Standing], best: &[Best]) -> Kind {
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
    Kind { op: kind.op.into(), phase: kind.phase, winners, templates, fastest }
}

fn losses(rows: &Rows) -> Vec<Loss> {
    let lost = |row: &Row| {
        let ours = ours(rows, &row.problem)?;
        let (us, ratio) = counts(row, Some(ours)).filter(|(_, ratio)| *ratio < 1.0 && !row.tie)?;
        let (problem, label, how) = (row.problem.clone(), text::label_of(row), row.how.clone());
        Some(Loss { problem, label, how, ours_us: ours.times()?.median_us, us, ratio })
    };
    let mut list: Vec<Loss> = rows.rows.iter().filter_map(lost).collect();
    list.sort_by(|a, b| a.ratio.total_cmp(&b.ratio));
    list
}

fn without_ours(rows: &Rows, p: &ProblemLine) -> Option<(String, String)> {
    if ours(rows, &p.problem).is_some() {
        return None;
    }
    let row = rows.rows.iter().find(|r| is_ours(r) && r.problem == p.problem);
    let state = row.map_or("not reached", |r| match r.state {
        State::Wrong => "wrong",
        State::Failed => "failed",
        State::Unsupported => "no winner",
        State::Cut => "cut off",
        State::Ok => "not timed",
    });
    let why = row.and_then(|r| r.why.as_ref()).map(|why| format!(": {why}")).unwrap_or_default();
    Some((p.problem.clone(), format!("{state}{why}")))
}
