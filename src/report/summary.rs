//! What the rows of a run say together: who is how fast at which kind of kernel, and where jitune loses.
//!
//! A mean holds only rows that are right, whole, and timed on the same basis as jitune's own. The others are listed apart,
//! each with its reason.

use super::count::{Best, OURS, apart, best, counts, is_ours, ours};
use super::passes::{Opportunity, Pass, opportunities, passes};
use super::rows::{ProblemLine, Row, State};
use super::standing::{KindWinner, Standing, kind, kinds_of, standings};
use super::{Rows, text};
use serde::Serialize;

/// Everything that a report says beyond the rows themselves.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Each problem's fastest row of another peer.
    pub best: Vec<Best>,
    /// Each way's standing, by op and phase, the fastest first.
    pub standings: Vec<Standing>,
    /// The winner of each type of kernel.
    pub kinds: Vec<KindWinner>,
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
    // A peer without any way for a problem has one row that names none.
    let row =
        rows.rows.iter().find(|r| r.problem == p.problem && (is_ours(r) || (r.peer == OURS.0 && r.way.is_empty())));
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

#[cfg(test)]
mod tests {
    use super::super::rows::{Basis, Calls, Times, WinnerLine};
    use super::*;
    use crate::model::Phase;

    fn problem(name: &str, calls: &[(Phase, i64, i64)]) -> ProblemLine {
        let of = |(phase, bucket, calls): &(Phase, i64, i64)| Calls {
            role: "x".into(),
            phase: *phase,
            bucket: *bucket,
            calls: *calls,
        };
        ProblemLine {
            problem: name.into(),
            op: "gelu".into(),
            calls: calls.iter().map(of).collect(),
            roofline_us: 1.0,
            winner: Some(WinnerLine { template: "t".into(), ..WinnerLine::default() }),
            ..ProblemLine::default()
        }
    }

    /// A right and whole row of the kernel basis; ours takes 10 µs everywhere.
    fn row(problem: &str, way: &str, us: f64) -> Row {
        let (peer, way) = way.split_once('/').unwrap_or((way, way));
        Row {
            problem: problem.into(),
            peer: peer.into(),
            way: way.into(),
            covers: "all".into(),
            state: State::Ok,
            kernel: Some(Times { median_us: us, low_us: us, high_us: us, samples_us: vec![us] }),
            ratio: ((peer, way) != OURS).then_some(us / 10.0),
            ..Row::default()
        }
    }

    fn summary(problems: Vec<ProblemLine>, rows: Vec<Row>) -> Summary {
        Summary::of(&Rows { problems, rows, ..Rows::default() })
    }

    /// A row beside ours: why it is apart, or its ratio.
    fn check(change: impl Fn(&mut Row), expect: Result<f64, &str>) {
        let mut other = row("p", "a/b", 20.0);
        change(&mut other);
        let found = summary(vec![problem("p", &[])], vec![row("p", "jitune/tuned", 10.0), other]);
        let standing = found.standings.iter().find(|s| s.label == "a/b").map(|s| s.mean);
        match expect {
            Ok(mean) => assert!((standing.unwrap() - mean).abs() < 1e-9 && found.apart.is_empty()),
            Err("") => assert!(standing.is_none() && found.apart.is_empty()),
            Err(reason) => {
                assert!(standing.is_none() && found.best.is_empty() && found.losses.is_empty());
                assert_eq!(found.apart[0].reason, reason);
            }
        }
    }

    #[test]
    fn what_counts_and_what_is_apart() {
        check(|_| (), Ok(2.0));
        check(|r| r.covers = "product".into(), Err("covers product only"));
        check(|r| (r.covers, r.ratio) = ("product".into(), Some(0.5)), Err("covers product only"));
        check(|r| r.state = State::Wrong, Err("wrong"));
        check(|r| r.less_accurate = true, Err("less accurate"));
        check(|r| r.state = State::Failed, Err("failed"));
        check(|r| r.state = State::Cut, Err("cut off"));
        check(|r| r.state = State::Unsupported, Err(""));
        check(|r| r.ratio = None, Err("no ratio"));
        check(|r| r.ratio = Some(f64::INFINITY), Err("no ratio"));
        check(|r| r.kernel = None, Err("no ratio"));
        let called = |r: &mut Row| (r.basis, r.called) = (Basis::Called, r.kernel.take());
        check(called, Err("timed with its calls, jitune without"));
    }

    #[test]
    fn means_are_geometric_and_ties_are_no_wins() {
        let problems = ["p", "q", "r"].map(|n| problem(n, &[])).to_vec();
        let mut rows = ["p", "q", "r"].map(|p| row(p, "jitune/tuned", 10.0)).to_vec();
        rows.extend([row("p", "a", 40.0), row("q", "a", 5.0), Row { tie: true, ..row("r", "a", 10.0) }]);
        rows.extend([row("p", "b", 4.0)]);
        let found = summary(problems, rows);
        let order: Vec<_> = found.standings.iter().map(|s| (s.label.as_str(), s.rank)).collect();
        assert_eq!(order, [("jitune/tuned", Some(1)), ("a", Some(2)), ("b", None)]);
        let a = &found.standings[1];
        assert!((a.mean - 2f64.cbrt()).abs() < 1e-12);
        assert_eq!((a.wins, a.ties, a.losses, a.worst, a.worst_problem.as_str()), (1, 1, 1, 0.5, "q"));
        assert_eq!(found.losses.iter().map(|l| l.label.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(found.score(), (0, 1, 2));
        assert_eq!(found.kinds[0].winners, ["jitune/tuned"]);
        assert_eq!(found.kinds[0].templates["t"], 3);
    }

    #[test]
    fn a_way_that_ties_everywhere_shares_the_win() {
        let rows = |us| vec![row("p", "jitune/tuned", 10.0), Row { tie: true, ..row("p", "a", us) }];
        for (us, expect) in [(10.1, ["jitune/tuned", "a"]), (9.9, ["a", "jitune/tuned"])] {
            let kind = &summary(vec![problem("p", &[])], rows(us)).kinds[0];
            assert_eq!(kind.winners, expect);
            assert!(!kind.alone);
        }
    }

    #[test]
    fn passes_sum_calls_and_name_what_is_lacking() {
        let problems =
            vec![problem("p", &[(Phase::Decode, 4, 3), (Phase::Decode, 1, 1)]), problem("q", &[(Phase::Decode, 4, 1)])];
        let mut rows = vec![row("p", "jitune/tuned", 10.0), row("q", "jitune/tuned", 10.0)];
        rows.extend([row("p", "a/slow", 30.0), row("p", "a/fast", 5.0), row("q", "a/slow", 40.0), row("q", "b", 50.0)]);
        let found = summary(problems, rows);
        let [one, four] = &found.passes[..] else { panic!("{:?}", found.passes) };
        assert_eq!((one.bucket, &one.sums), (1, &vec![("a".to_string(), 5.0), ("jitune".to_string(), 10.0)]));
        assert_eq!((four.bucket, &four.sums), (4, &vec![("jitune".to_string(), 40.0), ("a".to_string(), 55.0)]));
        let part = &four.parts[0];
        assert_eq!((part.peer.as_str(), part.problems, part.us, part.ours_us), ("b", 1, 50.0, 10.0));
        let most = &found.opportunities[1];
        assert_eq!((most.problem.as_str(), most.to_roofline_us), ("p", 27.0));
        assert_eq!(most.to_best, Some(("a/fast".to_string(), 15.0)));
    }

    #[test]
    fn what_jitune_measures_beside_its_winner_is_no_other() {
        let rows = vec![row("p", "jitune/tuned", 10.0), row("p", "jitune/unfused", 8.0)];
        let found = summary(vec![problem("p", &[]), problem("q", &[])], rows);
        assert!(found.best.is_empty());
        assert_eq!(found.losses.len(), 1);
        assert!(found.kinds[0].alone);
        assert_eq!(found.without_ours, [("q".to_string(), "not reached".to_string())]);
    }
}
