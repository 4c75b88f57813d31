//! What servers count, from Prometheus' text form.

use jitune_peer::engine::Stats;
use std::collections::BTreeMap;

/// Labels of processes that hold the same requests: each says what all of them do.
const RANKS: [&str; 4] = ["tp_rank", "pp_rank", "moe_ep_rank", "pid"];

/// Labels of a value, by name.
type Labels<'t> = Vec<(&'t str, &'t str)>;

/// The values of a text: by name, with the labels of each.
struct Metrics<'t>(BTreeMap<&'t str, Vec<(Labels<'t>, f64)>>);

impl<'t> Metrics<'t> {
    fn of(text: &'t str) -> Metrics<'t> {
        let mut all: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            if let Some((name, labels, value)) = sample(line) {
                all.entry(name).or_default().push((labels, value));
            }
        }
        Metrics(all)
    }

    /// The first of some names that is there: the sum over engines.
    fn get(&self, names: &[&str]) -> Option<f64> {
        let series = names.iter().find_map(|name| self.0.get(name))?;
        let mut each: BTreeMap<Vec<&(&str, &str)>, f64> = BTreeMap::new();
        for (labels, value) in series {
            let of = labels.iter().filter(|(name, _)| !RANKS.contains(name)).collect();
            let most = each.entry(of).or_insert(*value);
            *most = most.max(*value);
        }
        Some(each.values().sum())
    }

    fn count(&self, names: &[&str]) -> Option<u64> {
        self.get(names).filter(|v| v.is_finite() && *v >= 0.0).map(|v| v.round() as u64)
    }

    /// A number that is a label of something, summed over engines.
    fn label(&self, name: &str, label: &str) -> Option<u64> {
        let series = self.0.get(name)?;
        let numbers =
            series.iter().filter_map(|(labels, _)| labels.iter().find(|(n, _)| *n == label)?.1.parse::<u64>().ok());
        Some(numbers.sum()).filter(|sum| *sum > 0)
    }
}

/// What a server's metrics say, by the names of vLLM, `jitune serve`, SGLang and llama-server.
pub(super) fn stats(text: &str) -> Stats {
    let metrics = Metrics::of(text);
    let count = |names: &[&str]| metrics.count(names);
    let engines = metrics.0.get("vllm:cache_config_info").map_or(1, Vec::len).max(1);
    let cached = count(&[
        "vllm:prefix_cache_hits_total",
        "vllm:gpu_prefix_cache_hits_total",
        "jitune:prefix_cache_hits_total",
        "sglang:cached_tokens_total",
    ]);
    let pages = count(&["jitune:kv_cache_pages", "sglang:max_total_num_tokens"])
        .or_else(|| metrics.label("vllm:cache_config_info", "num_gpu_blocks"));
    // The share is each engine's own.
    let share = metrics.get(&["vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"]).map(|sum| sum / engines as f64);
    let used = count(&["jitune:kv_cache_pages_used", "sglang:num_used_tokens"])
        .or_else(|| Some((share?.clamp(0.0, 1.0) * pages? as f64).round() as u64));
    // Those say prompts with what the cache held of them.
    let whole = count(&["vllm:prompt_tokens_total", "jitune:prompt_tokens_total", "sglang:prompt_tokens_total"]);
    let computed = whole.map(|all| all.saturating_sub(cached.unwrap_or(0)));
    Stats {
        running: count(&[
            "vllm:num_requests_running",
            "jitune:num_requests_running",
            "sglang:num_running_reqs",
            "llamacpp:requests_processing",
        ]),
        waiting: count(&[
            "vllm:num_requests_waiting",
            "jitune:num_requests_waiting",
            "sglang:num_queue_reqs",
            "llamacpp:requests_deferred",
        ]),
        pages,
        used_pages: used,
        page_tokens: metrics.label("vllm:cache_config_info", "block_size").map(|sum| sum / engines as u64),
        steps: count(&["jitune:engine_steps_total", "vllm:iteration_tokens_total_count", "llamacpp:n_decode_total"]),
        prompt_tokens: computed.or_else(|| count(&["llamacpp:prompt_tokens_total"])),
        cached_tokens: cached,
        answer_tokens: count(&[
            "vllm:generation_tokens_total",
            "jitune:generation_tokens_total",
            "sglang:generation_tokens_total",
            "llamacpp:tokens_predicted_total",
        ]),
        preempted: count(&["vllm:num_preemptions_total", "jitune:num_preemptions_total"]),
        ..Stats::default()
    }
}

/// The name, labels and value of a line.
fn sample(line: &str) -> Option<(&str, Labels<'_>, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = (&line[..end], &line[end..]);
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, value) = rest.split_once("=\"")?;
            let mut escaped = false;
            let end = value.find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            })?;
            labels.push((label, &value[..end]));
            rest = &value[end + 1..];
        }
    }
    // A time may stand behind it.
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some((name, labels, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_vllm_says_is_read() {
        let text = r#"# HELP vllm:num_requests_running x
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a\"} 9,{b"} 3.0
vllm:num_requests_running{engine="1",model_name="a\"} 9,{b"} 2.0
vllm:num_requests_waiting{engine="0"} 1.0 1700000000000
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000",x="None"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="1000"} 1.0
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.25
vllm:prompt_tokens_total{engine="0"} 1e3
vllm:prefix_cache_hits_total{engine="0"} 400.0
vllm:generation_tokens_total{engine="0"} 77.0
vllm:iteration_tokens_total_count{engine="0"} 12.0
vllm:num_preemptions_total{engine="0"} NaN
rubbish{ "#;
        let found = stats(text);
        let wanted = Stats {
            running: Some(5),
            waiting: Some(1),
            pages: Some(2000),
            used_pages: Some(750),
            page_tokens: Some(16),
            steps: Some(12),
            prompt_tokens: Some(600),
            cached_tokens: Some(400),
            answer_tokens: Some(77),
            ..Stats::default()
        };
        assert_eq!(found, wanted);
        // Without the number of its blocks a share says nothing of pages.
        assert_eq!(stats("vllm:gpu_cache_usage_perc 0.5"), Stats::default());
    }

    #[test]
    fn other_servers_are_read_by_their_names() {
        let text = "sglang:num_running_reqs{tp_rank=\"0\"} 3\nsglang:num_running_reqs{tp_rank=\"1\"} 3\nsglang:num_queue_reqs 1\n\
                    sglang:num_used_tokens 120\nsglang:max_total_num_tokens 160\n";
        let found = stats(text);
        assert_eq!(
            (found.running, found.waiting, found.used_pages, found.pages),
            (Some(3), Some(1), Some(120), Some(160))
        );
        let text = "llamacpp:prompt_tokens_total 16185\nllamacpp:tokens_predicted_total 394\nllamacpp:n_decode_total 125\n\
                    llamacpp:requests_processing 1\nllamacpp:requests_deferred 3\n";
        let found = stats(text);
        assert_eq!((found.prompt_tokens, found.answer_tokens, found.steps), (Some(16185), Some(394), Some(125)));
        assert_eq!((found.running, found.waiting, found.cached_tokens), (Some(1), Some(3), None));
        assert_eq!(stats("<html>\n{\"a\": [1]}"), Stats::default());
    }
}
