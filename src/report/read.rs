//! From the bytes of `rows.jsonl` to what one report is made of.

use super::rows::{End, Line, Noise, ProblemLine, Row, Run, State, Trace};
use crate::winner::is_time;

/// Rows that no report can be made of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowsError {
    /// A line in the midst of the file.
    #[error("line {number} is not a line of a comparison: {source}")]
    Line {
        /// Its number, from 1.
        number: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A number of a line cannot have been measured.
    #[error("line {number}: {name} = {value:e} cannot have been measured")]
    Number {
        /// The line's number, from 1.
        number: usize,
        /// Which number.
        name: &'static str,
        /// What it says.
        value: f64,
    },
    /// No line says what was run.
    #[error("it has no line of kind \"run\", so it is not the rows.jsonl of a comparison")]
    NoRun,
}

/// All lines of a run, by kind, in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// What was run, and where.
    pub run: Run,
    /// The problems.
    pub problems: Vec<ProblemLine>,
    /// The rows.
    pub rows: Vec<Row>,
    /// How far the same program differs from itself.
    pub noise: Option<Noise>,
    /// What the hardware did.
    pub trace: Vec<Trace>,
    /// The end, if the run came to one.
    pub end: Option<End>,
    /// Whether the last line was cut off and is left out.
    pub torn: bool,
}

impl Rows {
    /// Reads a file's bytes. A last line that is cut off is left out; any other bad line is an error that names it.
    pub fn read(bytes: &[u8]) -> Result<Rows, RowsError> {
        let mut lines = Vec::new();
        let mut torn = false;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let mut at = 0;
        for (i, text) in bytes.split(|b| *b == b'\n').enumerate() {
            let last = at >= whole;
            at += text.len() + 1;
            if text.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice(text) {
                Ok(line) => {
                    check(&line).map_err(|(name, value)| RowsError::Number { number: i + 1, name, value })?;
                    lines.push(line)
                }
                Err(_) if last => torn = true,
                Err(source) => return Err(RowsError::Line { number: i + 1, source }),
            }
        }
        let rows = Rows::of(lines)?;
        Ok(Rows { torn, ..rows })
    }

    /// Sorts lines by kind. A problem or row that comes again replaces the earlier one: a run that went on after a cut
    /// measured it anew.
    pub fn of(lines: impl IntoIterator<Item = Line>) -> Result<Rows, RowsError> {
        let mut run = None;
        let mut rows = Rows::default();
        for line in lines {
            match line {
                Line::Run(line) => run = Some(*line),
                Line::Problem(line) => place(&mut rows.problems, *line, |a, b| a.problem == b.problem),
                Line::Row(line) => {
                    place(&mut rows.rows, *line, |a, b| (&a.problem, &a.peer, &a.way) == (&b.problem, &b.peer, &b.way))
                }
                Line::Noise(line) => rows.noise = Some(line),
                Line::Trace(line) => rows.trace.push(line),
                Line::End(line) => rows.end = Some(line),
            }
        }
        Ok(Rows { run: run.ok_or(RowsError::NoRun)?, ..rows })
    }

    /// Whether a problem was measured to its end: the run went on to another one or came to an end, and no row of it was
    /// cut off.
    pub fn whole(&self, problem: &str) -> bool {
        let of = |r: &&Row| r.problem == problem;
        let last = self.problems.last().is_some_and(|p| p.problem == problem);
        self.rows.iter().any(|r| of(&r))
            && !self.rows.iter().filter(of).any(|r| r.state == State::Cut)
            && !(last && self.cut())
    }

    /// Whether the run was stopped or killed before its end.
    pub fn cut(&self) -> bool {
        self.torn || self.end.as_ref().is_none_or(|e| e.cut)
    }
}

/// The first number of a line that cannot have been measured: pictures and tables are as large as what they show.
fn check(line: &Line) -> Result<(), (&'static str, f64)> {
    // Rates, shares and ratios are of such times.
    let time = |us: f64| is_time(us);
    let number = |v: f64| (0.0..=1e18).contains(&v);
    let within = |name, list: &[f64], fits: &dyn Fn(f64) -> bool| match list.iter().find(|v| !fits(**v)) {
        Some(value) => Err((name, *value)),
        None => Ok(()),
    };
    match line {
        Line::Row(row) => {
            for t in [&row.kernel, &row.called].into_iter().flatten() {
                within("a time in us", &[t.median_us, t.low_us, t.high_us], &time)?;
                within("a sample in us", &t.samples_us, &time)?;
            }
            for (name, value) in [
                ("tflops", row.tflops),
                ("gbs", row.gbs),
                ("roofline_share", row.roofline_share),
                ("ratio", row.ratio),
                ("clock_mhz", row.clock_mhz),
                ("setup_s", row.setup_s),
            ] {
                within(name, value.as_slice(), &number)?;
            }
            Ok(())
        }
        Line::Problem(problem) => {
            within("roofline_us", &[problem.roofline_us], &number)?;
            for (seconds, us) in &problem.history {
                within("seconds of a trial", &[*seconds], &number)?;
                within("us of a trial", &[*us], &time)?;
            }
            Ok(())
        }
        Line::Noise(noise) => {
            within("worst", noise.worst.as_slice(), &number)?;
            noise.pairs.iter().try_for_each(|p| within("a pair", &[p.ratio, p.us], &number))
        }
        Line::Trace(t) => within("t", &[t.t], &number),
        Line::End(end) => within("seconds", &[end.seconds], &number),
        _ => Ok(()),
    }
}

/// Puts a row in the place of the one that it is newer than, or behind all.
pub(crate) fn place<T>(list: &mut Vec<T>, new: T, same: impl Fn(&T, &T) -> bool) {
    match list.iter_mut().find(|old| same(old, &new)) {
        Some(old) => *old = new,
        None => list.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = r#"{"kind":"run","at":1,"jitune":"0.1.0","command":"jitune compare","model":null,"device":null,"rounds":9,"later":1}"#;
    const ROW: &str =
        r#"{"kind":"row","problem":"gelu rows=1 cols=8","peer":"torch","way":"eager","covers":"all","state":"ok"}"#;
    const END: &str = r#"{"kind":"end","seconds":3.5,"cut":false}"#;

    /// How many rows there are, whether a line was torn, whether the run was cut; or the message.
    fn reads(text: &str, expect: Result<(usize, bool, bool), &str>) {
        let found = Rows::read(text.as_bytes()).map(|r| (r.rows.len(), r.torn, r.cut()));
        match (found, expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect, "{text}"),
            (Err(found), Err(expect)) => assert!(found.to_string().contains(expect), "{found}"),
            (found, expect) => panic!("{text}: {found:?} is not {expect:?}"),
        }
    }

    #[test]
    fn files_whole_and_cut() {
        reads(&format!("{RUN}\n{ROW}\n{END}\n"), Ok((1, false, false)));
        reads(&format!("{RUN}\n{ROW}\n\n{END}"), Ok((1, false, false)));
        reads(&format!("{RUN}\n{ROW}\n"), Ok((1, false, true)));
        reads(&format!("{RUN}\n{ROW}\n{}", &ROW[..40]), Ok((1, true, true)));
        reads(&format!("{RUN}\n{ROW}\n{ROW}\n"), Ok((1, false, true)));
        reads(&format!("{RUN}\n{}\n{ROW}\n", &ROW[..40]), Err("line 2 is not"));
        reads(&format!("{RUN}\n{}\n", &ROW[..40]), Err("line 2 is not"));
        reads(&format!("{RUN}\n{{\"kind\":\"rows\"}}\n"), Err("unknown variant `rows`"));
        reads(&format!("{RUN}\n{}\n", ROW.replace("torch\"", "torch\",\"peer\":1")), Err("line 2"));
        for us in ["1e308", "-5", "0", "1e-300", "3.7e9"] {
            let times = format!("\"kernel\":{{\"median_us\":{us},\"low_us\":1,\"high_us\":1}},\"covers\"");
            reads(&format!("{RUN}\n{}\n", ROW.replace("\"covers\"", &times)), Err("line 2: a time in us"));
        }
        reads(&format!("{RUN}\n{}\n", ROW.replace("\"covers\"", "\"tflops\":1e308,\"covers\"")), Err("line 2: tflops"));
        reads(&format!("{RUN}\n{}\n", END.replace("3.5", "1e300")), Err("line 2: seconds"));
        reads(ROW, Err("no line of kind"));
        reads("", Err("no line of kind"));
    }

    #[test]
    fn a_cut_within_a_character_is_a_torn_line() {
        let mut bytes = format!("{RUN}\n").into_bytes();
        bytes.extend(b"{\"kind\":\"row\",\"why\":\"\xe2\x80");
        assert!(Rows::read(&bytes).unwrap().torn);
    }

    #[test]
    fn lines_come_back_as_they_were_written() {
        for text in [RUN, ROW, END] {
            let line: Line = serde_json::from_str(text).unwrap();
            let again: Line = serde_json::from_str(&line.text().unwrap()).unwrap();
            assert_eq!(line, again);
        }
    }
}
