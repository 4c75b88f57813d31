//! What servers are asked, each in its own words.

use jitune_peer::engine::Submit;
use serde_json::{Value, json};
use std::str::FromStr;

/// Whose server it is: which parameters it has besides OpenAI's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// vLLM.
    Vllm,
    /// `jitune serve`.
    Jitune,
    /// SGLang.
    Sglang,
    /// `trtllm-serve`.
    Trtllm,
    /// llama-server of llama.cpp.
    Llama,
    /// `transformers serve`, which takes text alone.
    Transformers,
    /// Any other: it is asked what OpenAI's API has, and `ignore_eos`.
    #[default]
    Other,
}

impl Dialect {
    /// Its name, as it is given.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Vllm => "vllm",
            Dialect::Jitune => "jitune",
            Dialect::Sglang => "sglang",
            Dialect::Trtllm => "tensorrt-llm",
            Dialect::Llama => "llama.cpp",
            Dialect::Transformers => "transformers-serve",
            Dialect::Other => "openai",
        }
    }

    /// By the `owned_by` of `/v1/models`.
    pub(super) fn of(owner: &str) -> Dialect {
        match owner {
            "vllm" => Dialect::Vllm,
            "jitune" => Dialect::Jitune,
            "sglang" => Dialect::Sglang,
            "tensorrt_llm" => Dialect::Trtllm,
            "llamacpp" => Dialect::Llama,
            _ => Dialect::Other,
        }
    }

    /// Where its version is told, and under which name.
    pub(super) fn version(self) -> Option<(&'static str, &'static str)> {
        match self {
            Dialect::Vllm | Dialect::Trtllm => Some(("/version", "version")),
            Dialect::Sglang => Some(("/get_server_info", "version")),
            Dialect::Llama => Some(("/props", "build_info")),
            Dialect::Jitune | Dialect::Transformers | Dialect::Other => None,
        }
    }

    /// Where answers are asked for. llama-server says ids at a place of its own only.
    pub(super) fn path(self) -> &'static str {
        match self {
            Dialect::Llama => "/completion",
            _ => "/v1/completions",
        }
    }

    /// The body that asks for an answer, with a text in place of the prompt's ids where there is one. `ids` asks for token ids where it has
    /// them, `prefix` is for a server that is told so with each request.
    pub(super) fn submit(self, model: &str, request: &Submit, text: Option<String>, ids: bool, prefix: bool) -> Value {
        let sampling = &request.sampling;
        // Some read a signed number.
        let seed = sampling.seed & (u64::MAX >> 1);
        // f32 0.8 as it is written, and not as the nearest f64 to it.
        let number = |v: f32| v.to_string().parse::<f64>().unwrap_or(f64::from(v));
        let prompt = text.map_or_else(|| json!(request.prompt), |text| json!(text));
        if self == Dialect::Transformers {
            // It refuses names that it does not know. A configuration that is said is the whole of it: no token ends the answer.
            let rest = json!({
                "do_sample": sampling.temperature > 0.0, "top_k": sampling.top_k,
                "eos_token_id": if request.ignore_eos { json!(-1) } else { Value::Null },
            });
            return json!({
                "model": model, "prompt": prompt, "max_tokens": request.most, "temperature": number(sampling.temperature),
                "top_p": number(sampling.top_p), "seed": seed & u64::from(u32::MAX), "stream": true, "generation_config": rest.to_string(),
            });
        }
        let mut body = json!({
            "prompt": prompt, "temperature": number(sampling.temperature), "top_p": number(sampling.top_p),
            "seed": seed, "ignore_eos": request.ignore_eos, "stream": true,
        });
        let top_k = i64::from(sampling.top_k);
        // What a server takes from the model's generation_config.json where it is not said, is said.
        let all_k = if top_k == 0 { -1 } else { top_k };
        if self == Dialect::Llama {
            body["n_predict"] = json!(request.most);
            body["top_k"] = json!(top_k);
            body["min_p"] = json!(0.0);
            body["return_tokens"] = json!(ids);
            body["cache_prompt"] = json!(prefix);
            return body;
        }
        body["model"] = json!(model);
        body["max_tokens"] = json!(request.most);
        body["stream_options"] = json!({ "include_usage": true });
        match self {
            Dialect::Vllm | Dialect::Sglang => {
                body["top_k"] = json!(all_k);
                body["min_p"] = json!(0.0);
                body["repetition_penalty"] = json!(1.0);
                body["return_token_ids"] = json!(ids);
                body["stream_options"]["continuous_usage_stats"] = json!(true);
            }
            Dialect::Jitune => {
                body["top_k"] = json!(all_k);
                body["return_token_ids"] = json!(ids);
            }
            Dialect::Trtllm => {
                body["top_k"] = json!(top_k);
                body["detokenize"] = json!(!ids);
                body["stream_options"]["continuous_usage_stats"] = json!(true);
            }
            Dialect::Llama | Dialect::Transformers | Dialect::Other => {
                if top_k > 0 {
                    body["top_k"] = json!(top_k);
                }
            }
        }
        body
    }
}

impl FromStr for Dialect {
    type Err = String;

    fn from_str(text: &str) -> Result<Dialect, String> {
        use Dialect::{Jitune, Llama, Other, Sglang, Transformers, Trtllm, Vllm};
        let all = [Vllm, Jitune, Sglang, Trtllm, Llama, Transformers, Other];
        let names = || all.map(Dialect::name).join(", ");
        all.into_iter().find(|d| d.name() == text).ok_or_else(|| format!("`{text}` is none of {}", names()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jitune_peer::engine::Sampling;

    #[test]
    fn each_server_is_asked_in_its_own_words() {
        let sampling = Sampling { temperature: 0.8, top_p: 0.95, top_k: 0, seed: u64::MAX };
        let request = Submit { prompt: vec![1, 5, 7], most: 9, sampling, ignore_eos: true };
        let body = |dialect: Dialect| dialect.submit("m", &request, None, true, false);
        for dialect in [Dialect::Vllm, Dialect::Jitune, Dialect::Sglang, Dialect::Trtllm, Dialect::Other] {
            let body = body(dialect);
            assert_eq!(
                (&body["model"], &body["prompt"], &body["max_tokens"]),
                (&json!("m"), &json!([1, 5, 7]), &json!(9))
            );
            assert_eq!(
                (&body["temperature"], &body["top_p"], &body["seed"]),
                (&json!(0.8), &json!(0.95), &json!(i64::MAX))
            );
            assert_eq!(body["stream_options"]["include_usage"], true);
        }
        assert_eq!(
            (&body(Dialect::Vllm)["top_k"], &body(Dialect::Vllm)["return_token_ids"]),
            (&json!(-1), &json!(true))
        );
        // One that does not know a name refuses it.
        assert_eq!((&body(Dialect::Trtllm)["top_k"], &body(Dialect::Trtllm)["detokenize"]), (&json!(0), &json!(false)));
        assert!(body(Dialect::Trtllm).get("return_token_ids").is_none());
        assert!(body(Dialect::Other).get("top_k").is_none());
        let own = body(Dialect::Llama);
        assert_eq!(
            (&own["n_predict"], &own["return_tokens"], &own["cache_prompt"]),
            (&json!(9), &json!(true), &json!(false))
        );
        let text = |dialect: Dialect| dialect.submit("m", &request, Some(" a b".into()), true, false);
        assert_eq!((&text(Dialect::Other)["prompt"], &text(Dialect::Vllm)["prompt"]), (&json!(" a b"), &json!(" a b")));
        let serve = text(Dialect::Transformers);
        let names: Vec<&String> = serve.as_object().unwrap().keys().collect();
        let known = ["model", "prompt", "max_tokens", "temperature", "top_p", "seed", "stream", "generation_config"];
        assert_eq!(names, known, "it refuses what it does not know");
        let config: Value = serde_json::from_str(serve["generation_config"].as_str().unwrap()).unwrap();
        assert_eq!(config, json!({ "do_sample": true, "top_k": 0, "eos_token_id": -1 }));
        assert!(
            Dialect::from_str("vllm").unwrap() == Dialect::Vllm
                && Dialect::from_str("x").unwrap_err().contains("sglang")
        );
    }
}
