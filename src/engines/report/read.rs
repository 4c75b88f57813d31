//! From the bytes of `engines.jsonl` to what one report is made of.

use super::numbers;
use crate::engines::rows::{Cell, Check, End, EngineTrace, Line, Of, Request, Run, Start, State, Tokenization};
use crate::report::read::place;
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
    /// Engines that were started, or could not be, each for some workloads.
    pub starts: Vec<Start>,
    /// Whether each computes the model.
    pub checks: Vec<Check>,
    /// The figures.
    pub cells: Vec<Cell>,
    /// The requests of each cell.
    pub requests: BTreeMap<Of, Vec<Request>>,
    /// What the hardware did during each cell, in seconds since its begin.
    pub trace: BTreeMap<Of, Vec<Trace>>,
    /// How fast the model's tokenizer is, by whose code.
    pub tokenization: Vec<Tokenization>,
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
        // Engines with starts that do not say for which workloads they are, as earlier versions wrote them.
        let mut silent: HashSet<(String, String, u32)> = HashSet::new();
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
            numbers::check(&line).map_err(|(name, value)| RunsError::Number { number, name, value })?;
            match line {
                Line::Run(new) => {
                    if run.as_ref().is_some_and(|old| !same(old, &new)) {
                        return Err(RunsError::Mixed { number });
                    }
                    run = Some(*new);
                }
                Line::Start(new) => {
                    if new.workloads.is_empty() {
                        silent.insert((new.engine.clone(), new.dtype.clone(), new.round));
                    }
                    started(&mut runs.starts, *new);
                }
                Line::Check(new) => place(&mut runs.checks, new, |a, b| (&a.engine, &a.dtype) == (&b.engine, &b.dtype)),
                Line::Cell(new) => {
                    if silent.contains(&(new.of.engine.clone(), new.of.dtype.clone(), new.of.round)) {
                        belongs(&mut runs.starts, &new.of);
                    }
                    place(&mut runs.cells, *new, |a, b| a.of == b.of);
                }
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
                Line::Tokenization(new) => place(&mut runs.tokenization, new, |a, b| a.by == b.by),
                Line::End(new) => runs.end = Some(new),
            }
        }
        Ok(Runs { run: run.ok_or(RunsError::NoRun)?, ..runs })
    }

    /// All lines of cells that came to their end, as they stand in a file: what a run that goes on begins with.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = vec![Line::Run(Box::new(self.run.clone()))];
        lines.extend(self.starts.iter().map(|start| Line::Start(Box::new(start.clone()))));
        lines.extend(self.tokenization.iter().map(|line| Line::Tokenization(line.clone())));
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

    /// The last start of a cell's engine for its workload, or any of the engine where none says for which it is.
    pub fn start(&self, of: &Of) -> Option<&Start> {
        let mut found = self.starts.iter().rev().filter(|s| is_of(s, of));
        found.clone().find(|s| s.workloads.contains(&of.workload)).or_else(|| found.next())
    }
}

/// Whether two lines say that they are of the same run.
fn same(a: &Run, b: &Run) -> bool {
    let device = |run: &Run| run.device.as_ref().map(|d| (d.target, d.name.clone()));
    (&a.model, a.parameters, device(a)) == (&b.model, b.parameters, device(b))
}

/// Whether a start is of a cell's engine, precision and round.
fn is_of(start: &Start, of: &Of) -> bool {
    (&start.engine, &start.dtype, start.round) == (&of.engine, &of.dtype, of.round)
}

/// A start takes the place of those of its engine that were for no other workloads; those for others stay.
fn started(list: &mut Vec<Start>, new: Start) {
    let covers = |old: &Start| {
        (&old.engine, &old.dtype, old.round) == (&new.engine, &new.dtype, new.round)
            && old.workloads.iter().all(|w| new.workloads.contains(w))
    };
    let at = list.iter().position(covers).unwrap_or(list.len());
    list.retain(|old| !covers(old));
    list.insert(at, new);
}

/// Where a start does not say for which workloads it is, it is for those of the cells that follow.
fn belongs(starts: &mut [Start], of: &Of) {
    let mut own = starts.iter_mut().rev().filter(|s| is_of(s, of));
    if let Some(last) = own.next().filter(|last| !last.workloads.contains(&of.workload))
        && own.all(|s| !s.workloads.contains(&of.workload))
    {
        last.workloads.push(of.workload.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::measured::Measured;

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

    fn start(workloads: &str, seconds: f64) -> String {
        format!(
            "{{\"kind\":\"start\",\"engine\":\"a\",\"dtype\":\"bf16\",\"round\":0{workloads},\"start_s\":{seconds},\"memory_bytes\":null,\"why\":null,\"fix\":null}}"
        )
    }

    /// For which workloads each start is, and how long it took.
    fn starts(runs: &Runs) -> Vec<(String, f64)> {
        runs.starts.iter().map(|s| (s.workloads.join(" "), s.start_s.unwrap())).collect()
    }

    #[test]
    fn an_engine_has_a_start_for_each_group_of_workloads() {
        let of = |names: &str| format!(",\"workloads\":[{names}]");
        let [off, on] = [start(&of("\"code\",\"batch-1\""), 1.0), start(&of("\"chat\""), 2.0)];
        let text = format!("{RUN}\n{off}\n{on}\n{CELL}\n");
        let runs = Runs::read(text.as_bytes()).unwrap();
        let both = [("code batch-1".to_string(), 1.0), ("chat".to_string(), 2.0)];
        assert_eq!(starts(&runs), both);
        assert_eq!(runs.start(&runs.cells[0].of).unwrap().start_s, Some(2.0), "the cell is of chat");
        // What a run that goes on begins with has them all.
        let lines: Vec<String> = runs.lines().iter().map(|l| serde_json::to_string(l).unwrap()).collect();
        assert_eq!(starts(&Runs::read(lines.join("\n").as_bytes()).unwrap()), both);
        // Started again for what was left, it has both; for all of it, the second.
        let left = start(&of("\"batch-1\""), 3.0);
        let runs = Runs::read(format!("{text}{left}\n").as_bytes()).unwrap();
        assert_eq!(starts(&runs), [&both[..], &[("batch-1".into(), 3.0)]].concat());
        let more = start(&of("\"batch-1\",\"code\",\"documents\""), 4.0);
        let runs = Runs::read(format!("{text}{left}\n{more}\n").as_bytes()).unwrap();
        assert_eq!(starts(&runs), [("batch-1 code documents".into(), 4.0), both[1].clone()]);
    }

    #[test]
    fn starts_that_do_not_say_are_for_the_cells_that_follow() {
        let code = CELL.replace("chat", "code");
        let text = format!("{RUN}\n{}\n{code}\n{}\n{CELL}\n", start("", 1.0), start("", 2.0));
        let both = [("code".to_string(), 1.0), ("chat".to_string(), 2.0)];
        assert_eq!(starts(&Runs::read(text.as_bytes()).unwrap()), both);
        // A start after which nothing was measured is replaced by the next.
        let text = format!("{RUN}\n{}\n{}\n{CELL}\n", start("", 1.0), start("", 2.0));
        assert_eq!(starts(&Runs::read(text.as_bytes()).unwrap()), [("chat".to_string(), 2.0)]);
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
