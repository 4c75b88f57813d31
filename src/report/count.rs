//! Which rows count: jitune's own, those held against it, and those that stand apart.

use super::rows::{Basis, ProblemLine, Row, State};
use super::{Rows, text};
use serde::Serialize;

/// The peer and the way that everything is held against.
pub const OURS: (&str, &str) = ("jitune", "tuned");

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
        State::Ok if row.less_accurate => "less accurate".into(),
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

/// The ratio of a right and whole row that is timed with its calls where jitune's is timed without: both with their calls.
pub fn as_called(row: &Row, ours: Option<&Row>) -> Option<f64> {
    let whole = row.state == State::Ok && row.covers == "all" && !row.less_accurate && !is_ours(row);
    let ratio = row.ratio.filter(|r| r.is_finite() && *r > 0.0);
    ratio.filter(|_| whole && row.basis == Basis::Called && ours.is_some_and(|o| o.basis == Basis::Kernel))
}

/// The fastest row of a problem that another peer has, where both are timed.
pub fn best(rows: &Rows, problem: &ProblemLine) -> Option<Best> {
    let ours = ours(rows, &problem.problem)?;
    let others = rows.rows.iter().filter(|r| r.problem == problem.problem && r.peer != OURS.0);
    let timed = others.filter_map(|r| counts(r, Some(ours)).map(|(us, ratio)| (r, us, ratio)));
    let (row, us, ratio) = timed.min_by(|a, b| a.2.total_cmp(&b.2))?;
    let (problem, label) = (problem.problem.clone(), text::label_of(row));
    Some(Best { problem, label, ours_us: ours.times()?.median_us, us, ratio, tie: row.tie })
}
