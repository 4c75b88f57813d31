//! Hardware counters through Nsight Compute's command line, around a peer's process: the peer marks one call, ncu counts
//! its kernels, and the CSV that it leaves is read here.

use super::peers::{Conversation, Unanswered};
use super::task::Prepared;
use crate::report::rows::Counters;
use jitune_peer::{Answer, Ask, Device};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// What is asked of ncu. The last is a pattern: which tensor pipes there are differs between architectures.
const METRICS: &str = "gpu__time_duration.sum,sm__warps_active.avg.pct_of_peak_sustained_active,\
    dram__throughput.avg.pct_of_peak_sustained_elapsed,lts__throughput.avg.pct_of_peak_sustained_elapsed,\
    launch__registers_per_thread,launch__shared_mem_per_block,launch__waves_per_multiprocessor,launch__block_size,\
    launch__grid_size,sm__throughput.avg.pct_of_peak_sustained_elapsed,\
    regex:sm__pipe_tensor.*cycles_active.avg.pct_of_peak_sustained_elapsed";
/// The kernel that a peer launches between the marks ahead of the call, so that calls are told apart.
const MARKER: &str = "flush";
const STEP: Duration = Duration::from_secs(180);

/// Nsight Compute.
#[derive(Clone, Debug)]
pub struct Profiler {
    ncu: PathBuf,
}

/// One kernel as ncu counted it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Profiled {
    /// Its name.
    pub kernel: String,
    /// Every metric by name.
    pub metrics: BTreeMap<String, f64>,
}

impl Profiled {
    fn get(&self, name: &str) -> Option<f64> {
        self.metrics.get(name).copied()
    }

    /// The busiest tensor pipe's share of the time.
    pub fn tensor_pct(&self) -> Option<f64> {
        let pipes = self.metrics.iter().filter(|(name, _)| name.starts_with("sm__pipe_tensor"));
        pipes.map(|(_, v)| *v).reduce(f64::max)
    }
}

impl Profiler {
    /// Looks for `ncu` in PATH and in the toolkit's usual folder.
    pub fn find() -> Option<Profiler> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/local/cuda/bin", "/opt/nvidia/nsight-compute"].map(PathBuf::from);
        let ncu = std::env::split_paths(&path).chain(usual).map(|f| f.join("ncu")).find(|p| p.is_file())?;
        Some(Profiler { ncu })
    }

    /// Runs `peer` under ncu and counts one call of each of its ways on each problem: the kernels of every call, by
    /// problem and way. A way that fails is left out.
    pub fn count(
        &self,
        peer: &Command,
        on: Device,
        settings: BTreeMap<String, String>,
        problems: &mut dyn Iterator<Item = Result<Prepared, std::io::Error>>,
        scratch: &Path,
        stop: &Arc<AtomicBool>,
    ) -> Result<BTreeMap<(String, String), Vec<Profiled>>, Unanswered> {
        let csv = scratch.join("ncu.csv");
        let mut command = Command::new(&self.ncu);
        command
            .args(["--csv", "--page", "raw", "--print-units", "base", "--profile-from-start", "off"])
            .args(["--clock-control", "none", "--target-processes", "all", "--metrics", METRICS, "--log-file"])
            .arg(&csv)
            .arg(peer.get_program())
            .args(peer.get_args());
        let mut conversation = Conversation::start(command, scratch.join("ncu.log"), on, settings, stop)?;
        let mut calls = Vec::new();
        for prepared in problems {
            let Ok(prepared) = prepared else { continue };
            let Ok(Answer::Prepared { ways, .. }) =
                conversation.ask(&Ask::Prepare(Box::new(prepared.task.clone())), STEP)
            else {
                continue;
            };
            for way in ways {
                let done = conversation.ask(&Ask::Once { way: way.way.clone() }, STEP);
                if done == Ok(Answer::Done) {
                    calls.push((prepared.task.problem.clone(), way.way));
                }
            }
        }
        conversation.end();
        let text = std::fs::read_to_string(&csv).unwrap_or_default();
        let groups = read(&text);
        Ok(calls.into_iter().zip(groups).collect())
    }
}

/// A call's kernels as one row's counters: shares of the time are weighted by it.
pub fn summary(kernels: &[Profiled]) -> Counters {
    let time = |k: &Profiled| k.get("gpu__time_duration.sum").unwrap_or(1.0);
    let total: f64 = kernels.iter().map(time).sum();
    let weighted = |value: &dyn Fn(&Profiled) -> Option<f64>| -> Option<f64> {
        let parts: Option<Vec<f64>> = kernels.iter().map(|k| Some(value(k)? * time(k))).collect();
        parts.filter(|p| !p.is_empty()).map(|p| p.iter().sum::<f64>() / total)
    };
    let longest = kernels.iter().max_by(|a, b| time(a).total_cmp(&time(b)));
    let of_longest = |name: &str| longest.and_then(|k| k.get(name));
    Counters {
        source: "ncu".into(),
        tensor_pct: weighted(&Profiled::tensor_pct),
        occupancy_pct: weighted(&|k| k.get("sm__warps_active.avg.pct_of_peak_sustained_active")),
        dram_pct: weighted(&|k| k.get("dram__throughput.avg.pct_of_peak_sustained_elapsed")),
        l2_pct: weighted(&|k| k.get("lts__throughput.avg.pct_of_peak_sustained_elapsed")),
        kernels: Some(kernels.len() as u32),
        registers: of_longest("launch__registers_per_thread").map(|v| v as u32),
        shared_bytes: of_longest("launch__shared_mem_per_block").map(|v| v as u64),
    }
}

/// ncu's raw CSV: lines of its own first, then a header, a line of units, and a line a kernel. Kernels behind a marker
/// belong to one call.
fn read(text: &str) -> Vec<Vec<Profiled>> {
    let mut lines = text.lines().skip_while(|l| !l.starts_with("\"ID\""));
    let Some(header) = lines.next().map(fields) else { return Vec::new() };
    let Some(name) = header.iter().position(|h| h == "Kernel Name") else { return Vec::new() };
    let mut calls: Vec<Vec<Profiled>> = Vec::new();
    for line in lines {
        let cells = fields(line);
        let Some(kernel) = cells.get(name).filter(|k| !k.is_empty()) else { continue };
        if kernel.split(['(', '<']).next() == Some(MARKER) {
            calls.push(Vec::new());
            continue;
        }
        let metric = |(h, c): (&String, &String)| Some((h.clone(), c.replace(',', "").parse().ok()?));
        let metrics = header.iter().zip(&cells).filter(|(h, _)| h.contains("__")).filter_map(metric).collect();
        if let Some(call) = calls.last_mut() {
            call.push(Profiled { kernel: kernel.clone(), metrics });
        }
    }
    calls
}

/// The cells of a line of CSV whose every cell is quoted.
fn fields(line: &str) -> Vec<String> {
    let (mut cells, mut cell, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                cell.push('"');
                chars.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(std::mem::take(&mut cell)),
            c => cell.push(c),
        }
    }
    cells.push(cell);
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_apart_and_weighted_by_time() {
        let text = "==PROF== Connected\n\"ID\",\"Kernel Name\",\"gpu__time_duration.sum\",\"sm__pipe_tensor_a_cycles_active.x\",\"launch__registers_per_thread\"\n\
                    \"\",\"\",\"ns\",\"%\",\"\"\n\
                    \"0\",\"flush\",\"900\",\"0\",\"16\"\n\
                    \"1\",\"gemm<a, \"\"b\"\">(int)\",\"3,000\",\"80\",\"168\"\n\
                    \"2\",\"tail\",\"1000\",\"0\",\"32\"\n\
                    \"3\",\"flush\",\"900\",\"0\",\"16\"\n\
                    \"4\",\"other\",\"10\",\"5\",\"64\"\n";
        let calls = read(text);
        assert_eq!(calls.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(calls[0][0].kernel, "gemm<a, \"b\">(int)");
        let c = summary(&calls[0]);
        assert_eq!((c.tensor_pct, c.registers, c.kernels), (Some(60.0), Some(168), Some(2)));
        assert_eq!(read("nothing"), Vec::<Vec<Profiled>>::new());
    }
}
