//! What the server counts, in Prometheus' text form.

use crate::engine::Stats;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper ends of the buckets of every histogram, in seconds.
const BUCKETS: [f64; 20] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0,
    500.0, 1000.0,
];

/// Statuses of refusals that are counted each for itself.
const STATUSES: [u16; 8] = [400, 401, 404, 408, 413, 429, 500, 503];

/// Times by how long they are.
#[derive(Default)]
pub(super) struct Histogram {
    /// In each bucket alone; the last one has no end.
    counts: [AtomicU64; BUCKETS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    pub fn add(&self, time: Duration) {
        let bucket = BUCKETS.partition_point(|end| *end < time.as_secs_f64());
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.nanoseconds.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, what: &str, label: &str) {
        let _ = writeln!(text, "# HELP {name} {what}\n# TYPE {name} histogram");
        let mut all = 0;
        for (count, end) in self.counts.iter().zip(BUCKETS.iter().map(f64::to_string).chain(["+Inf".into()])) {
            all += count.load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}_bucket{{{label},le=\"{end}\"}} {all}");
        }
        let sum = self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(text, "{name}_sum{{{label}}} {sum}\n{name}_count{{{label}}} {all}");
    }
}

/// How an answer ended, as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// A token or a text that ends answers.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The client left, or the server did not wait any longer.
    Abort,
    /// The engine cannot go on.
    Error,
}

impl Reason {
    const ALL: [Reason; 4] = [Reason::Stop, Reason::Length, Reason::Abort, Reason::Error];

    pub fn name(self) -> &'static str {
        match self {
            Reason::Stop => "stop",
            Reason::Length => "length",
            Reason::Abort => "abort",
            Reason::Error => "error",
        }
    }
}

/// What is counted of answers; each of a request's answers counts.
#[derive(Default)]
pub(super) struct Metrics {
    pub first: Histogram,
    pub between: Histogram,
    pub whole: Histogram,
    pub waited: Histogram,
    ended: [AtomicU64; Reason::ALL.len()],
    /// Tokens that answers have, and so not those that the engine made before it heard that an answer had ended.
    told: AtomicU64,
    /// Requests that were refused, by the status that they were answered with.
    refused: [AtomicU64; STATUSES.len() + 1],
}

impl Metrics {
    /// Counts an answer that is none, by its status.
    pub fn refused(&self, status: u16) {
        let at = STATUSES.iter().position(|s| *s == status).unwrap_or(STATUSES.len());
        self.refused[at].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a token of an answer.
    pub fn told(&self) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }

    pub fn ended(&self, reason: Reason) {
        self.ended[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// All of it, with what the engine counts itself.
    pub fn text(&self, model: &str, stats: &Stats) -> String {
        let quoted = model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let label = format!("model_name=\"{quoted}\"");
        let mut text = String::with_capacity(8 << 10);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let used = if stats.pages == 0 { 0.0 } else { stats.used as f64 / stats.pages as f64 };
        let told = self.told.load(Ordering::Relaxed);
        // Tokens that were computed again after a preemption count again.
        let prompts = stats.prompt_tokens + stats.cached_tokens;
        for (name, kind, what, value) in [
            ("num_requests_running", "gauge", "Requests that steps work on.", stats.running as f64),
            ("num_requests_waiting", "gauge", "Requests that have no pages yet.", stats.waiting as f64),
            ("kv_cache_usage_perc", "gauge", "Share of the cache's pages in use; 1 is all of them.", used),
            ("kv_cache_pages", "gauge", "Pages of the cache.", stats.pages as f64),
            ("kv_cache_pages_used", "gauge", "Pages of the cache in use.", stats.used as f64),
            ("num_preemptions_total", "counter", "Times that a request gave up its pages.", stats.preempted as f64),
            ("prompt_tokens_total", "counter", "Tokens of prompts, computed or found in the cache.", prompts as f64),
            ("generation_tokens_total", "counter", "Tokens of answers.", told as f64),
            ("prefix_cache_queries_total", "counter", "Tokens looked for in the cache.", prompts as f64),
            ("prefix_cache_hits_total", "counter", "Tokens found in the cache.", stats.cached_tokens as f64),
            ("kernels", "gauge", "Kernels of the steps that are bound.", stats.kernels as f64),
            ("kernels_portable", "gauge", "Those of them that nobody tuned.", stats.portable as f64),
            ("engine_steps_total", "counter", "Steps of the engine.", stats.steps as f64),
            ("steps_bound_total", "counter", "Steps that were bound to memory.", stats.bound as f64),
            ("steps_bound_late_total", "counter", "Those that a request waited for.", stats.bound_late as f64),
            ("steps_bound_ms_total", "counter", "Milliseconds that binding took.", ms(stats.binding)),
            ("steps_bound_late_ms_total", "counter", "Milliseconds that requests waited.", ms(stats.binding_late)),
        ] {
            let _ = writeln!(text, "# HELP jitune:{name} {what}\n# TYPE jitune:{name} {kind}");
            let _ = writeln!(text, "jitune:{name}{{{label}}} {value}");
        }
        let name = "jitune:request_success_total";
        let _ = writeln!(text, "# HELP {name} Answers that ended, by how they did.\n# TYPE {name} counter");
        for reason in Reason::ALL {
            let count = self.ended[reason as usize].load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}{{{label},finished_reason=\"{}\"}} {count}", reason.name());
        }
        let name = "jitune:request_refused_total";
        let _ = writeln!(text, "# HELP {name} Requests that were refused, by status.\n# TYPE {name} counter");
        for (count, status) in
            self.refused.iter().zip(STATUSES.map(|s| s.to_string()).into_iter().chain(["other".into()]))
        {
            let _ = writeln!(text, "{name}{{{label},status=\"{status}\"}} {}", count.load(Ordering::Relaxed));
        }
        for (histogram, name, what) in [
            (&self.first, "time_to_first_token_seconds", "From a request to its first token."),
            (&self.between, "inter_token_latency_seconds", "From each token of an answer to the next."),
            (&self.whole, "e2e_request_latency_seconds", "From a request to its last token."),
            (&self.waited, "request_queue_time_seconds", "From a request to its first step."),
        ] {
            histogram.write(&mut text, &format!("jitune:{name}"), what, &label);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_their_buckets() {
        let metrics = Metrics::default();
        for milliseconds in [0, 1, 2, 3, 5_000_000] {
            metrics.first.add(Duration::from_millis(milliseconds));
        }
        metrics.ended(Reason::Abort);
        metrics.told();
        // What the engine made of answers that had ended is no part of them.
        let stats =
            Stats { pages: 8, used: 2, prompt_tokens: 5, cached_tokens: 4, answer_tokens: 3, ..Stats::default() };
        let text = metrics.text("a\"b", &stats);
        let name = "jitune:time_to_first_token_seconds";
        for line in [
            format!("{name}_bucket{{model_name=\"a\\\"b\",le=\"0.0005\"}} 1"),
            format!("{name}_bucket{{model_name=\"a\\\"b\",le=\"0.001\"}} 2"),
            format!("{name}_bucket{{model_name=\"a\\\"b\",le=\"0.005\"}} 4"),
            format!("{name}_bucket{{model_name=\"a\\\"b\",le=\"1000\"}} 4"),
            format!("{name}_bucket{{model_name=\"a\\\"b\",le=\"+Inf\"}} 5"),
            format!("{name}_sum{{model_name=\"a\\\"b\"}} 5000.006"),
            format!("{name}_count{{model_name=\"a\\\"b\"}} 5"),
            "jitune:kv_cache_usage_perc{model_name=\"a\\\"b\"} 0.25".into(),
            "jitune:prompt_tokens_total{model_name=\"a\\\"b\"} 9".into(),
            "jitune:generation_tokens_total{model_name=\"a\\\"b\"} 1".into(),
            "jitune:request_success_total{model_name=\"a\\\"b\",finished_reason=\"abort\"} 1".into(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        // Every family has its type, and every line is one of a family's.
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let name = line.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|e| name.strip_suffix(e)).unwrap_or(name);
            assert!(text.contains(&format!("# TYPE {family} ")), "{line}");
        }
    }
}
