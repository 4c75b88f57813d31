//! How far an engine differs from itself, and what that makes a tie.

use super::entry::{Entry, Figures, Value, name_of};
use serde::Serialize;

/// What engines are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Tokens of answers a second.
    OutputThroughput,
    /// Answers a second within the workload's limits.
    Goodput,
    /// The median of the time to the first token.
    Ttft,
    /// The median of the time a token after it.
    Tpot,
    /// The median of the time to the end.
    E2el,
}

impl Metric {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Metric; 5] = [Metric::OutputThroughput, Metric::Goodput, Metric::Ttft, Metric::Tpot, Metric::E2el];

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Metric::OutputThroughput => "output tokens/s",
            Metric::Goodput => "answers/s within the limits",
            Metric::Ttft => "TTFT, ms",
            Metric::Tpot => "TPOT, ms",
            Metric::E2el => "time to the end, ms",
        }
    }

    /// Whether more is better.
    pub fn more(self) -> bool {
        matches!(self, Metric::OutputThroughput | Metric::Goodput)
    }

    /// The value of an entry.
    pub fn of(self, figures: &Figures) -> Option<Value> {
        match self {
            Metric::OutputThroughput => figures.output_throughput,
            Metric::Goodput => figures.goodput,
            Metric::Ttft => figures.ttft_ms,
            Metric::Tpot => figures.tpot_ms,
            Metric::E2el => figures.e2el_ms,
        }
    }

    /// How many times better the first is than the second; none where one of them is zero.
    pub fn gain(self, better: f64, worse: f64) -> Option<f64> {
        let (over, under) = if self.more() { (better, worse) } else { (worse, better) };
        (over > 0.0 && under > 0.0).then(|| over / under)
    }
}

/// The same engine twice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// The engine.
    pub engine: String,
    /// The workload.
    pub workload: String,
    /// The precision.
    pub dtype: String,
    /// The device.
    pub device: String,
    /// What was compared.
    pub metric: Metric,
    /// The second entry's value over the first's.
    pub ratio: f64,
}

impl Pair {
    /// By what share the greater is more.
    pub fn differs(&self) -> f64 {
        self.ratio.max(1.0 / self.ratio) - 1.0
    }
}

/// How far engines differ from themselves.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Noise {
    /// Each engine that was entered twice, by workload and metric.
    pub pairs: Vec<Pair>,
}

impl Noise {
    /// From the engines that were entered twice.
    pub fn of(entries: &[Entry]) -> Noise {
        let mut pairs = Vec::new();
        for second in entries.iter().filter(|e| e.twin()) {
            let first = entries.iter().find(|e| e.engine == name_of(&second.engine) && e.beside(second));
            let Some((a, b)) = first.and_then(|f| f.counted()).zip(second.counted()) else { continue };
            for metric in Metric::ALL {
                let Some((a, b)) = metric.of(a).zip(metric.of(b)) else { continue };
                if a.median > 0.0 && b.median > 0.0 {
                    pairs.push(Pair {
                        engine: name_of(&second.engine).into(),
                        workload: second.workload.clone(),
                        dtype: second.dtype.clone(),
                        device: second.device.clone(),
                        metric,
                        ratio: b.median / a.median,
                    });
                }
            }
        }
        Noise { pairs }
    }

    /// The most that an engine differed from itself in this metric: in this workload, precision and device, or where there is no
    /// such pair, in any workload on the device. None where nothing was entered twice.
    pub fn within(&self, metric: Metric, [workload, dtype, device]: [&str; 3]) -> Option<f64> {
        let on_device = |p: &&Pair| p.metric == metric && p.device == device;
        let most = |same: &dyn Fn(&&Pair) -> bool| {
            self.pairs.iter().filter(on_device).filter(same).map(Pair::differs).max_by(f64::total_cmp)
        };
        most(&|p| p.workload == workload && p.dtype == dtype).or_else(|| most(&|_| true))
    }
}

/// Whether two values cannot be told apart: their rounds overlap, or they differ by no more than the noise.
pub fn tie(a: Value, b: Value, noise: Option<f64>) -> bool {
    let overlap = a.rounds > 1 && b.rounds > 1 && a.low <= b.high && b.low <= a.high;
    let near = a.median > 0.0 && b.median > 0.0 && {
        let ratio = a.median / b.median;
        // A little more, so that a pair ties with itself however it was rounded.
        ratio.max(1.0 / ratio) - 1.0 <= noise.unwrap_or(0.0) + 1e-12
    };
    a.median == b.median || overlap || near
}
