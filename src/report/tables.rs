//! The table of one op: a line a problem, a column a way.

use super::count::{apart, is_ours, ours};
use super::rows::{Row, State};
use super::{Rows, text};
use serde::Serialize;

/// All problems of one op.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Family {
    /// The op.
    pub op: String,
    /// The labels of its ways, ours first.
    pub ways: Vec<String>,
    /// One a problem.
    pub lines: Vec<Line>,
}

/// One problem.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The problem.
    pub problem: String,
    /// The problem without its op.
    pub short: String,
    /// The least time that the device's ceilings allow.
    pub roofline_us: f64,
    /// One a way.
    pub cells: Vec<Cell>,
}

/// One way on one problem, in text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// Its time, or WRONG, failed, cut off, — for what is not there.
    pub time: String,
    /// Its time over ours; empty for ours.
    pub ratio: String,
    /// What else a reader must know: a tie, what it leaves out, another basis.
    pub note: String,
    /// `ours`, `win`, `tie`, `loss`, `apart`, `wrong` or `none`.
    pub class: &'static str,
}

impl Cell {
    /// On one line.
    pub fn text(&self) -> String {
        let inner: Vec<&str> =
            [&self.ratio, &self.note].into_iter().map(String::as_str).filter(|s| !s.is_empty()).collect();
        if inner.is_empty() { self.time.clone() } else { format!("{} ({})", self.time, inner.join(", ")) }
    }
}

/// The tables of a run, in the order of its problems.
pub fn families(rows: &Rows) -> Vec<Family> {
    let mut list: Vec<Family> = Vec::new();
    for p in &rows.problems {
        if !list.iter().any(|f| f.op == p.op) {
            list.push(family(rows, &p.op));
        }
    }
    list
}

fn family(rows: &Rows, op: &str) -> Family {
    let problems: Vec<_> = rows.problems.iter().filter(|p| p.op == op).collect();
    let mut ways: Vec<(&str, &str)> = Vec::new();
    let of_op = |r: &&Row| r.state != State::Unsupported && problems.iter().any(|p| p.problem == r.problem);
    for row in rows.rows.iter().filter(of_op) {
        let way = (row.peer.as_str(), row.way.as_str());
        match (ways.contains(&way), is_ours(row)) {
            (true, _) => {}
            (false, true) => ways.insert(0, way),
            (false, false) => ways.push(way),
        }
    }
    let line = |p: &&super::rows::ProblemLine| {
        let ours = ours(rows, &p.problem);
        let row = |way: &(&str, &str)| {
            rows.rows.iter().find(|r| r.problem == p.problem && (r.peer.as_str(), r.way.as_str()) == *way)
        };
        Line {
            problem: p.problem.clone(),
            short: text::short(&p.problem, op).into(),
            roofline_us: p.roofline_us,
            cells: ways.iter().map(|w| cell(row(w), ours)).collect(),
        }
    };
    Family {
        op: op.into(),
        lines: problems.iter().map(line).collect(),
        ways: ways.iter().map(|(peer, way)| text::label(peer, way)).collect(),
    }
}

/// One row in text; none is a way that the peer does not have here.
pub fn cell(row: Option<&Row>, ours: Option<&Row>) -> Cell {
    let word = |time: &str, class| Cell { time: time.into(), ratio: String::new(), note: String::new(), class };
    let Some(row) = row else { return word("—", "none") };
    match row.state {
        State::Unsupported => return word("—", "none"),
        State::Wrong => return word("WRONG", "wrong"),
        State::Failed => return word("failed", "wrong"),
        State::Cut => return word("cut off", "none"),
        State::Ok => {}
    }
    let Some(times) = row.times() else { return word("not timed", "none") };
    let time = text::us(times.median_us);
    if is_ours(row) {
        return Cell { time, ..word("", "ours") };
    }
    let ratio = row.ratio.map(text::ratio).unwrap_or_default();
    let (note, class) = match (apart(row, ours), row.ratio) {
        (Some(_), _) if row.covers != "all" => (format!("{} only", row.covers), "apart"),
        (Some(_), Some(_)) => ("with its calls".into(), "apart"),
        (Some(_), None) => (String::new(), "apart"),
        (None, _) if row.tie => ("tie".into(), "tie"),
        (None, Some(r)) if r < 1.0 => (String::new(), "loss"),
        (None, _) => (String::new(), "win"),
    };
    Cell { time, ratio, note, class }
}
