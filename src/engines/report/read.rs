//! From the bytes of `engines.jsonl` to what one report is made of.

use crate::engines::measured::{Meanwhile, Measured, Spread};
use crate::engines::rows::{Cell, Check, End, EngineTrace, Line, Of, Request, Run, Start, State};
use crate::report::rows::Trace;
use std::collections::{BTreeMap, HashSet};

/// Lines that no report can be made of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunsError {
    /// A line in the midst of the file.
    #[error("line {number} is not a line of `jitune bench`: {source}")]
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
    /// A second line of kind "run" is of another model or device than the first.
    #[error(
        "line {number} begins a run of another model or on another device; a report is of one: keep each run in a file of its own"
    )]
    Mixed {
        /// The line's number, from 1.
        number: usize,
    },
    /// No line says what was run.
    #[error("it has no line of kind \"run\", so it is not the engines.jsonl of `jitune bench`")]
    NoRun,
}

/// All lines of a run, by kind, in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Runs {
    /// What was run, and where.
    pub run: Run,
    /// Engines that were started, or could not be.
    pub starts: Vec<Start>,
    /// Whether each computes the model.
    pub checks: Vec<Check>,
    /// The figures.
    pub cells: Vec<Cell>,
    /// The requests of each cell.
    pub requests: BTreeMap<Of, Vec<Request>>,
    /// What the hardware did during each cell, in seconds since its begin.
    pub trace: BTreeMap<Of, Vec<Trace>>,
    /// The end, if the run came to one.
    pub end: Option<End>,
    /// Whether the last line was cut off and is left out.
    pub torn: bool,
}

impl Runs {
    /// Reads a file's bytes. A last line that is cut off is left out; any other bad line is an error that names it. What comes
    /// again replaces the earlier: a run that went on after a cut measured it anew.
    pub fn read(bytes: &[u8]) -> Result<Runs, RunsError> {
        let mut runs = Runs::default();
        let mut run: Option<Run> = None;
        let mut ids: BTreeMap<Of, HashSet<u64>> = BTreeMap::new();
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let mut at = 0;
        for (i, text) in bytes.split(|b| *b == b'\n').enumerate() {
            let (last, number) = (at >= whole, i + 1);
            at += text.len() + 1;
            if text.trim_ascii().is_empty() {
                continue;
            }
            let line: Line = match serde_json::from_slice(text) {
                Ok(line) => line,
                Err(_) if last => {
                    runs.torn = true;
                    continue;
                }
                Err(source) => return Err(RunsError::Line { number, source }),
            };
            check(&line).map_err(|(name, value)| RunsError::Number { number, name, value })?;
            match line {
                Line::Run(new) => {
                    if run.as_ref().is_some_and(|old| !same(old, &new)) {
                        return Err(RunsError::Mixed { number });
                    }
                    run = Some(*new);
                }
                Line::Start(new) => place(&mut runs.starts, *new, |a, b| {
                    (&a.engine, &a.dtype, a.round) == (&b.engine, &b.dtype, b.round)
                }),
                Line::Check(new) => place(&mut runs.checks, new, |a, b| (&a.engine, &a.dtype) == (&b.engine, &b.dtype)),
                Line::Cell(new) => place(&mut runs.cells, *new, |a, b| a.of == b.of),
                Line::Request(new) => {
                    let list = runs.requests.entry(new.of.clone()).or_default();
                    let known = ids.entry(new.of.clone()).or_default();
                    // The first number that comes again begins the cell anew.
                    if !known.insert(new.id) {
                        list.clear();
                        known.clear();
                        known.insert(new.id);
                    }
                    list.push(*new);
                }
                Line::Trace(new) => {
                    let list = runs.trace.entry(new.of).or_default();
                    if list.last().is_some_and(|t| t.t > new.reading.t) {
                        list.clear();
                    }
                    list.push(new.reading);
                }
                Line::End(new) => runs.end = Some(new),
            }
        }
        Ok(Runs { run: run.ok_or(RunsError::NoRun)?, ..runs })
    }

    /// All lines of cells that came to their end, as they stand in a file: what a run that goes on begins with.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = vec![Line::Run(Box::new(self.run.clone()))];
        lines.extend(self.starts.iter().map(|start| Line::Start(Box::new(start.clone()))));
        lines.extend(self.checks.iter().map(|check| Line::Check(check.clone())));
        for cell in self.cells.iter().filter(|cell| cell.state != State::Cut) {
            let requests = self.requests.get(&cell.of).into_iter().flatten();
            lines.extend(requests.map(|request| Line::Request(Box::new(request.clone()))));
            let trace = self.trace.get(&cell.of).into_iter().flatten();
            lines.extend(trace.map(|t| Line::Trace(EngineTrace { of: cell.of.clone(), reading: t.clone() })));
            lines.push(Line::Cell(Box::new(cell.clone())));
        }
        lines.extend(self.end.iter().map(|end| Line::End(end.clone())));
        lines
    }

    /// Whether the run was stopped or killed before its end.
    pub fn cut(&self) -> bool {
        self.torn || self.end.as_ref().is_none_or(|e| e.cut)
    }

    /// The start of a cell's engine.
    pub fn start(&self, of: &Of) -> Option<&Start> {
        self.starts.iter().find(|s| (&s.engine, &s.dtype, s.round) == (&of.engine, &of.dtype, of.round))
    }
}

/// Whether two lines say that they are of the same run.
fn same(a: &Run, b: &Run) -> bool {
    let device = |run: &Run| run.device.as_ref().map(|d| (d.target, d.name.clone()));
    (&a.model, a.parameters, device(a)) == (&b.model, b.parameters, device(b))
}

fn place<T>(list: &mut Vec<T>, new: T, same: impl Fn(&T, &T) -> bool) {
    match list.iter_mut().find(|old| same(old, &new)) {
        Some(old) => *old = new,
        None => list.push(new),
    }
}

type Bad = (&'static str, f64);

fn within(name: &'static str, list: &[f64], low: f64, high: f64) -> Result<(), Bad> {
    match list.iter().find(|v| !(low..=high).contains(*v)) {
        Some(value) => Err((name, *value)),
        None => Ok(()),
    }
}

/// A moment of a cell in seconds: no cell takes four months.
const LONGEST_S: f64 = 1e7;
/// Any rate, count or time beyond this was not measured.
const MOST: f64 = 1e18;

/// The first number of a line that cannot have been measured: pictures and tables are as large as what they show.
fn check(line: &Line) -> Result<(), Bad> {
    match line {
        Line::Run(run) => run.prices.values().try_for_each(|p| within("a price in dollars an hour", &[*p], 1e-6, 1e6)),
        Line::Start(start) => within("start_s", start.start_s.as_slice(), 0.0, LONGEST_S),
        Line::Check(check) => {
            // A divergence of nothing may come out a little below zero.
            for (name, value) in [("kl", check.kl), ("own_kl", check.own_kl)] {
                within(name, value.as_slice(), -1e-3, 1e9)?;
            }
            within("top1", check.top1.as_slice(), 0.0, 1.0)
        }
        Line::Request(request) => moments(request),
        Line::Cell(cell) => cell.measured.as_ref().map_or(Ok(()), measured),
        Line::Trace(t) => {
            let r = &t.reading;
            within("t", &[r.t], 0.0, LONGEST_S)?;
            [r.sm_mhz, r.mem_mhz, r.power_w, r.temp_c]
                .iter()
                .try_for_each(|v| within("a reading of the hardware", v.as_slice(), -300.0, 1e9))?;
            [r.gpu_pct, r.mem_pct].iter().try_for_each(|v| within("a share of the time in %", v.as_slice(), 0.0, 100.0))
        }
        Line::End(end) => within("seconds", &[end.seconds], 0.0, LONGEST_S),
    }
}

/// The moments of a request, one after another.
fn moments(r: &Request) -> Result<(), Bad> {
    within("due_s", &[r.due_s], 0.0, LONGEST_S)?;
    within("sent_s", &[r.sent_s], 0.0, LONGEST_S)?;
    within("prompt", &[r.prompt as f64, r.asked as f64], 0.0, 1e9)?;
    let mut before = r.sent_s;
    for at in r.at_s.iter().chain(&r.end_s) {
        within("a moment of a request, in seconds,", &[*at], before, LONGEST_S)?;
        before = *at;
    }
    Ok(())
}

fn measured(m: &Measured) -> Result<(), Bad> {
    within("duration_s", &[m.duration_s], 0.0, LONGEST_S)?;
    for (name, value) in [
        ("request_throughput", m.request_throughput),
        ("output_throughput", m.output_throughput),
        ("total_throughput", m.total_throughput),
        ("piece_tokens", m.piece_tokens),
    ] {
        within(name, &[value], 0.0, MOST)?;
    }
    within("goodput", m.goodput.as_slice(), 0.0, MOST)?;
    within("over_time", &m.over_time, 0.0, MOST)?;
    for (name, s) in [
        ("ttft_ms", m.ttft_ms),
        ("tpot_ms", m.tpot_ms),
        ("itl_ms", m.itl_ms),
        ("e2el_ms", m.e2el_ms),
        ("late_ms", m.late_ms),
    ] {
        spread(name, &s)?;
    }
    meanwhile(&m.meanwhile)
}

fn spread(name: &'static str, s: &Spread) -> Result<(), Bad> {
    within(name, &[s.mean, s.std], 0.0, LONGEST_S * 1e3)?;
    let mut before = 0.0;
    for v in [s.median, s.p90, s.p99, s.max] {
        within(name, &[v], before, LONGEST_S * 1e3)?;
        before = v;
    }
    Ok(())
}

fn meanwhile(m: &Meanwhile) -> Result<(), Bad> {
    for (name, value) in
        [("pages_used", m.pages_used), ("live_share", m.live_share), ("prefix_hits", m.prefix_hits), ("busy", m.busy)]
    {
        within(name, value.as_slice(), 0.0, 1.0)?;
    }
    for (name, value) in [
        ("launches_a_step", m.launches_a_step),
        ("host_us_a_step", m.host_us_a_step),
        ("to_device_a_step", m.to_device_a_step),
        ("to_host_a_step", m.to_host_a_step),
        ("roofline", m.roofline),
        ("sm_mhz", m.sm_mhz),
        ("power_w", m.power_w),
        ("joules_a_token", m.joules_a_token),
        ("host_cores", m.host_cores),
    ] {
        within(name, value.as_slice(), 0.0, MOST)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = r#"{"kind":"run","at":1,"jitune":"0.1.0","command":"jitune bench","model":"m","parameters":1,"device":null,"threads":0,"rounds":2,"engines":["a"],"workloads":[],"dtypes":["bf16"],"later":1}"#;
    const CELL: &str = r#"{"kind":"cell","engine":"a","dtype":"bf16","workload":"chat","round":0,"state":"ok","why":null,"measured":null}"#;
    const REQUEST: &str = r#"{"kind":"request","engine":"a","dtype":"bf16","workload":"chat","round":0,"id":3,"due_s":0.1,"sent_s":0.2,"prompt":4,"asked":2,"at_s":[0.5,0.6],"end_s":0.6}"#;
    const END: &str = r#"{"kind":"end","seconds":3.5,"cut":false}"#;

    /// How many cells and requests there are, whether a line was torn, whether the run was cut; or the message.
    fn reads(text: &str, expect: Result<(usize, usize, bool, bool), &str>) {
        let found = Runs::read(text.as_bytes());
        let found = found.map(|r| (r.cells.len(), r.requests.values().map(Vec::len).sum(), r.torn, r.cut()));
        match (found, expect) {
            (Ok(found), Ok(expect)) => assert_eq!(found, expect, "{text}"),
            (Err(found), Err(expect)) => assert!(found.to_string().contains(expect), "{found}"),
            (found, expect) => panic!("{text}: {found:?} is not {expect:?}"),
        }
    }

    #[test]
    fn files_whole_and_cut() {
        reads(&format!("{RUN}\n{CELL}\n{REQUEST}\n{END}\n"), Ok((1, 1, false, false)));
        reads(&format!("{RUN}\n{CELL}\n\n{END}"), Ok((1, 0, false, false)));
        reads(&format!("{RUN}\n{CELL}\n{}", &CELL[..40]), Ok((1, 0, true, true)));
        reads(&format!("{RUN}\n{}\n{CELL}\n", &CELL[..40]), Err("line 2 is not"));
        reads(&format!("{RUN}\n{{\"kind\":\"cells\"}}\n"), Err("unknown variant `cells`"));
        reads(CELL, Err("no line of kind"));
        reads("", Err("no line of kind"));
    }

    #[test]
    fn what_comes_again_replaces_what_was() {
        reads(&format!("{RUN}\n{CELL}\n{RUN}\n{CELL}\n"), Ok((1, 0, false, true)));
        let second = REQUEST.replace("\"id\":3", "\"id\":4");
        // The cell was cut off after two requests and made again with one.
        reads(&format!("{RUN}\n{REQUEST}\n{second}\n{REQUEST}\n"), Ok((0, 1, false, true)));
        let other = REQUEST.replace("\"round\":0", "\"round\":1");
        reads(&format!("{RUN}\n{REQUEST}\n{other}\n"), Ok((0, 2, false, true)));
        let trace = |t: f64| {
            format!(
                "{{\"kind\":\"trace\",\"engine\":\"a\",\"dtype\":\"d\",\"workload\":\"w\",\"round\":0,\"t\":{t}}}\n"
            )
        };
        let text = [RUN, "\n", &trace(0.0), &trace(1.0), &trace(0.5)].concat();
        let times: Vec<f64> = Runs::read(text.as_bytes()).unwrap().trace.values().flatten().map(|t| t.t).collect();
        assert_eq!(times, [0.5]);
    }

    #[test]
    fn runs_of_two_models_are_no_run() {
        reads(&format!("{RUN}\n{}\n", RUN.replace("\"m\"", "\"n\"")), Err("line 2 begins a run of another model"));
    }

    #[test]
    fn impossible_numbers_are_refused() {
        for (from, to, name) in [
            ("[0.5,0.6]", "[0.6,0.5]", "a moment of a request"),
            ("[0.5,0.6]", "[0.1,0.6]", "a moment of a request"),
            ("\"end_s\":0.6", "\"end_s\":0.55", "a moment of a request"),
            ("\"due_s\":0.1", "\"due_s\":-1", "due_s"),
            ("\"sent_s\":0.2", "\"sent_s\":1e300", "sent_s"),
        ] {
            reads(&format!("{RUN}\n{}\n", REQUEST.replace(from, to)), Err(name));
        }
        let measured = |change: fn(&mut Measured)| {
            let mut m = Measured::default();
            change(&mut m);
            let text = serde_json::to_string(&m).unwrap();
            format!("{RUN}\n{}\n", CELL.replace("\"measured\":null", &format!("\"measured\":{text}")))
        };
        reads(&measured(|_| ()), Ok((1, 0, false, true)));
        reads(&measured(|m| m.output_throughput = -1.0), Err("line 2: output_throughput"));
        reads(&measured(|m| m.meanwhile.busy = Some(1.5)), Err("busy"));
        reads(&measured(|m| m.over_time = vec![1.0, 1e300]), Err("over_time"));
        reads(&measured(|m| m.ttft_ms.median = 2.0), Err("ttft_ms"));
        let run = RUN.replace("\"later\":1", "\"prices\":{\"gpu\":0}");
        reads(&run, Err("a price"));
    }
}
