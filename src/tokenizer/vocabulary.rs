//! A tokenizer as GGUF files have it: of a folder's `tokenizer.json`, or of another such file.

use super::{TokenizerError, gguf};
use crate::backend::mapped::Mapped;
use crate::file;
use crate::gguf::Header;
use crate::limits::MAX_MODEL_TEXT_BYTES;
use serde_json::{Map, Value};
use std::path::Path;

/// Kinds of tokens as ggml numbers them.
const NORMAL: u32 = 1;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;
const UNUSED: u32 = 5;

/// A byte-level BPE: the pieces, and how texts are split first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// The text of each token.
    pub tokens: Vec<String>,
    /// The kind of each, as ggml numbers them.
    pub kinds: Vec<u32>,
    /// What is merged, first to last: two pieces with a space between.
    pub merges: Vec<String>,
    /// llama.cpp's name for how texts are split.
    pub split: String,
    /// Whether a token of its own begins each text.
    pub begins: bool,
}

impl Vocabulary {
    /// The vocabulary in a folder or a GGUF file, of as many tokens as a model has rows of its embedding: what is left over is named and
    /// unused. None where there is no tokenizer, or it is of another kind: then beside it why.
    pub fn open(path: &Path, count: usize) -> Result<Result<Vocabulary, String>, TokenizerError> {
        let bad = |path: &Path, why: String| TokenizerError::File { path: path.into(), why };
        let read = if path.is_dir() {
            let file = path.join("tokenizer.json");
            let text = match file::text(&file, MAX_MODEL_TEXT_BYTES) {
                Ok(text) => text,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    return Ok(Err("there is no tokenizer.json".into()));
                }
                Err(source) => return Err(TokenizerError::Io { path: file, source }),
            };
            of_json(&serde_json::from_str(&text).map_err(|e| bad(&file, e.to_string()))?)
        } else {
            let bytes = Mapped::open(path).map_err(|source| TokenizerError::Io { path: path.into(), source })?;
            of_gguf(&Header::read(&bytes).map_err(|e| bad(path, e.to_string()))?, &bytes)
        };
        Ok(read.and_then(|vocabulary| vocabulary.of_count(count)))
    }

    fn of_count(mut self, count: usize) -> Result<Vocabulary, String> {
        if self.tokens.len() > count {
            return Err(format!("the tokenizer has {} tokens, and the model {count}", self.tokens.len()));
        }
        for id in self.tokens.len()..count {
            self.tokens.push(format!("[PAD{id}]"));
            self.kinds.push(UNUSED);
        }
        Ok(self)
    }
}

fn of_gguf(header: &Header, bytes: &[u8]) -> Result<Vocabulary, String> {
    let texts = |key: &str| {
        let list = header.texts(bytes, key).ok_or_else(|| format!("{key} is missing"))?;
        Ok::<Vec<String>, String>(list.into_iter().map(String::from).collect())
    };
    match header.text("tokenizer.ggml.model")? {
        Some("gpt2") => {}
        other => {
            return Err(format!(
                "tokenizer.ggml.model is {}, and gpt2 (byte-level BPE) is written",
                other.unwrap_or("missing")
            ));
        }
    }
    let tokens = texts("tokenizer.ggml.tokens")?;
    let kinds = header.ints(bytes, "tokenizer.ggml.token_type").unwrap_or_default();
    let kinds = (0..tokens.len()).map(|id| kinds.get(id).map_or(NORMAL, |kind| kind.unsigned_abs())).collect();
    let split = header.text("tokenizer.ggml.pre")?.unwrap_or("default").into();
    let begins = header.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(false);
    Ok(Vocabulary { tokens, kinds, merges: texts("tokenizer.ggml.merges")?, split, begins })
}

fn of_json(json: &Value) -> Result<Vocabulary, String> {
    let model = &json["model"];
    let splits = steps(&json["pre_tokenizer"]);
    if model["type"] != "BPE" || !splits.iter().any(|step| step.starts_with("ByteLevel")) {
        return Err("the tokenizer is no byte-level BPE".into());
    }
    // The names are of descriptions that are made here too: one of those it has to be.
    let same = |name: &&str| {
        gguf::json(Map::new(), &[], &[], name).is_ok_and(|known| steps(&known["pre_tokenizer"]) == splits)
    };
    let split =
        gguf::SPLITS.into_iter().rev().find(same).ok_or("the tokenizer splits texts in a way that has no name here")?;
    let mut tokens: Vec<(String, u32)> = Vec::new();
    let mut put = |id: Option<u64>, text: &str, kind: u32| {
        let id = id.filter(|id| *id < 1 << 24).ok_or_else(|| format!("token {text:?} has no number"))? as usize;
        if id >= tokens.len() {
            tokens.resize_with(id + 1, || (String::new(), UNUSED));
        }
        tokens[id] = (text.into(), kind);
        Ok::<(), String>(())
    };
    for (text, id) in model["vocab"].as_object().ok_or("the tokenizer has no vocabulary")? {
        put(id.as_u64(), text, NORMAL)?;
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
        put(added["id"].as_u64(), added["content"].as_str().unwrap_or_default(), kind)?;
    }
    for (id, (text, _)) in tokens.iter_mut().enumerate().filter(|(_, (text, _))| text.is_empty()) {
        *text = format!("[PAD{id}]");
    }
    let merge = |v: &Value| match v {
        Value::String(text) => Some(text.clone()),
        other => Some(format!("{} {}", other[0].as_str()?, other[1].as_str()?)),
    };
    let merges: Option<Vec<String>> = model["merges"].as_array().into_iter().flatten().map(merge).collect();
    let (tokens, kinds) = tokens.into_iter().unzip();
    let merges = merges.ok_or("the tokenizer has merges that are no two pieces")?;
    Ok(Vocabulary { tokens, kinds, merges, split: split.into(), begins: begins(&json["post_processor"]) })
}

/// What a pre-tokenizer does, step by step, as far as it decides where texts are split.
fn steps(pre: &Value) -> Vec<String> {
    match pre["type"].as_str() {
        Some("Sequence") => pre["pretokenizers"].as_array().into_iter().flatten().flat_map(steps).collect(),
        Some("ByteLevel") => vec![format!("ByteLevel {}", pre["use_regex"] != false)],
        Some("Digits") => vec![format!("Digits {}", pre["individual_digits"])],
        Some("Split") => vec![format!("Split {} {} {}", pre["pattern"], pre["behavior"], pre["invert"])],
        Some(other) => vec![other.into()],
        None => Vec::new(),
    }
}

/// Whether a post-processor puts a token before a text.
fn begins(post: &Value) -> bool {
    match post["type"].as_str() {
        Some("Sequence") => post["processors"].as_array().into_iter().flatten().any(begins),
        Some("TemplateProcessing") => post["single"][0].get("SpecialToken").is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A `tokenizer.json` whose way to split is the one of that name.
    fn described(name: &str) -> Value {
        let vocab = [("a", 0), ("b", 1), ("ab", 3)].into_iter().map(|(t, id)| (t.to_string(), id.into())).collect();
        let mut json = gguf::json(vocab, &["a b"], &[(4, "<end>".into())], name).unwrap();
        json["post_processor"] = json!({"type": "Sequence", "processors": [
            {"type": "ByteLevel"}, {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<end>"}}]}]});
        json
    }

    #[test]
    fn a_description_is_told_by_how_it_splits() {
        for name in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
            let found = of_json(&described(name)).unwrap();
            assert_eq!((found.split.as_str(), found.begins), (name, true));
            // Number 2 is nobody's.
            assert_eq!(found.tokens, ["a", "b", "[PAD2]", "ab", "<end>"]);
            assert_eq!(found.kinds, [1, 1, 5, 1, 3]);
            assert_eq!(found.merges, ["a b"]);
            let padded = found.clone().of_count(6).unwrap();
            assert_eq!((padded.tokens[5].as_str(), padded.kinds[5]), ("[PAD5]", 5));
            assert!(found.of_count(4).unwrap_err().contains("has 5 tokens"));
        }
        let mut other = described("qwen2");
        other["pre_tokenizer"]["pretokenizers"][0]["pattern"] = json!({"Regex": "."});
        assert!(of_json(&other).unwrap_err().contains("no name"));
        other["model"]["type"] = "Unigram".into();
        assert!(of_json(&other).unwrap_err().contains("byte-level"));
    }
}
