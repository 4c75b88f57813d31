//! Traces: requests at the moments that a file says.

use super::{MAX_SECONDS, MAX_TOKENS, WorkloadError};
use crate::limits::{MAX_TRACE_BYTES, MAX_TRACE_LINES};
use serde::Deserialize;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// A request of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    /// Seconds since the trace's first request.
    pub at_s: f64,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens of the answer.
    pub answer: usize,
}

#[derive(Deserialize)]
struct Row {
    timestamp: Option<f64>,
    timestamp_ms: Option<f64>,
    input_length: usize,
    output_length: usize,
}

/// Reads a trace, in the order of its times; empty lines and other keys are passed over. At least one request, or an error that names
/// the line.
pub fn read(file: &Path) -> Result<Vec<Arrival>, WorkloadError> {
    let wrong = |why: String| WorkloadError::Trace { file: file.into(), why };
    let mut text = String::new();
    let open = File::open(file).map_err(|e| wrong(e.to_string()))?;
    open.take(MAX_TRACE_BYTES + 1).read_to_string(&mut text).map_err(|e| wrong(e.to_string()))?;
    if text.len() as u64 > MAX_TRACE_BYTES {
        return Err(wrong(format!("a trace has {MAX_TRACE_BYTES} bytes at most; give a part of it")));
    }
    let mut all = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong_line = |why: String| WorkloadError::TraceLine { file: file.into(), line: index + 1, why };
        if index >= MAX_TRACE_LINES {
            return Err(wrong_line(format!("a trace has {MAX_TRACE_LINES} lines at most; give a part of it")));
        }
        all.push(arrival(line).map_err(wrong_line)?);
    }
    all.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    let Some(first) = all.first().map(|a| a.at_s) else { return Err(wrong("it has no request".into())) };
    all.iter_mut().for_each(|a| a.at_s -= first);
    match all.last() {
        Some(last) if last.at_s > MAX_SECONDS => {
            Err(wrong(format!("it lasts {:.0} s, and {MAX_SECONDS} is the most; is its time in ms?", last.at_s)))
        }
        _ => Ok(all),
    }
}

fn arrival(line: &str) -> Result<Arrival, String> {
    let row: Row = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let at_s = match (row.timestamp, row.timestamp_ms) {
        (Some(s), None) => s,
        (None, Some(ms)) => ms / 1e3,
        _ => return Err("it needs one of timestamp and timestamp_ms".into()),
    };
    if !(0.0..=1e12).contains(&at_s) {
        return Err(format!("its time is {at_s} s; give 0 or more"));
    }
    for (what, length) in [("input_length", row.input_length), ("output_length", row.output_length)] {
        if !(1..=MAX_TOKENS).contains(&length) {
            return Err(format!("{what} is {length}; give 1 to {MAX_TOKENS}"));
        }
    }
    Ok(Arrival { at_s, prompt: row.input_length, answer: row.output_length })
}

#[cfg(test)]
mod tests {
    use super::{Arrival, read};
    use crate::engines::workload::WorkloadError;

    fn of(text: &str) -> Result<Vec<Arrival>, WorkloadError> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("trace.jsonl");
        std::fs::write(&file, text).unwrap();
        read(&file)
    }

    #[test]
    fn seconds_and_milliseconds_in_order_of_time() {
        let found = of("{\"timestamp\": 12.5, \"input_length\": 7, \"output_length\": 3, \"hash_ids\": [1]}\n\n\
                        {\"timestamp_ms\": 12000, \"input_length\": 5, \"output_length\": 2}\n");
        let right = [Arrival { at_s: 0.0, prompt: 5, answer: 2 }, Arrival { at_s: 0.5, prompt: 7, answer: 3 }];
        assert_eq!(found.unwrap(), right);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let good = "{\"timestamp\": 1, \"input_length\": 7, \"output_length\": 3}\n";
        for bad in [
            "{\"timestamp\": 1, \"input_length\": 7}",
            "{\"input_length\": 7, \"output_length\": 3}",
            "{\"timestamp\": 1, \"timestamp_ms\": 1, \"input_length\": 7, \"output_length\": 3}",
            "{\"timestamp\": -1, \"input_length\": 7, \"output_length\": 3}",
            "{\"timestamp\": 1, \"input_length\": 0, \"output_length\": 3}",
            "{\"timestamp\": 1, \"input_length\": 7, \"output_length\": 99999999}",
            "{\"timestamp\": 1e999, \"input_length\": 7, \"output_length\": 3}",
            "nothing",
        ] {
            let found = of(&format!("{good}{good}{bad}\n{good}"));
            assert!(matches!(found, Err(WorkloadError::TraceLine { line: 3, .. })), "{bad}: {found:?}");
        }
    }

    #[test]
    fn no_request_no_file_too_long() {
        assert!(matches!(of("\n\n"), Err(WorkloadError::Trace { .. })));
        assert!(matches!(read("/no/such/trace".as_ref()), Err(WorkloadError::Trace { .. })));
        let row = |at: f64| format!("{{\"timestamp\": {at}, \"input_length\": 1, \"output_length\": 1}}\n");
        assert!(matches!(of(&format!("{}{}", row(0.0), row(1e9))), Err(WorkloadError::Trace { .. })));
        let many = row(1.0).repeat(crate::limits::MAX_TRACE_LINES + 1);
        let found = of(&many);
        assert!(matches!(found, Err(WorkloadError::TraceLine { .. } | WorkloadError::Trace { .. })), "{found:?}");
    }
}
