//! The tokenizer in a GGUF file's metadata, as the description that the crate `tokenizers` reads.

use crate::gguf::Header;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Kinds of tokens as ggml numbers them.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// What stands for a space in the pieces of SentencePiece.
const SPACE: &str = "▁";
/// Longer pieces are not put together of others: SentencePiece makes none of more than some tens of bytes, and a list of all ways
/// to part one is as long as it is.
const MOST_PIECE: usize = 256;

/// The tokenizer of a file.
pub(super) fn tokenizer(header: &Header, bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    let list = |key: &str| header.texts(bytes, key).ok_or_else(|| format!("{key} is missing"));
    let kinds = header.ints(bytes, "tokenizer.ggml.token_type").unwrap_or_default();
    let is = |id: usize, those: &[i32]| kinds.get(id).is_some_and(|kind| those.contains(kind));
    let text = match header.text("tokenizer.ggml.model")? {
        Some("gpt2") => {
            let (tokens, merges) = (list("tokenizer.ggml.tokens")?, list("tokenizer.ggml.merges")?);
            let pre = header.text("tokenizer.ggml.pre")?.unwrap_or("default");
            let special = added(&tokens, |id| is(id, &[CONTROL, USER_DEFINED]));
            json(vocabulary(&tokens), &merges, &special, pre)?.to_string()
        }
        Some("llama") => {
            let tokens = list("tokenizer.ggml.tokens")?;
            let key = "tokenizer.ggml.scores";
            let scores = header.floats(bytes, key).ok_or_else(|| format!("{key} is missing"))?;
            let special = added(&tokens, |id| is(id, &[UNKNOWN, CONTROL, USER_DEFINED]));
            let normal = |id: usize| kinds.is_empty() || is(id, &[NORMAL]);
            let unknown = (0..tokens.len()).find(|id| is(*id, &[UNKNOWN])).map(|id| tokens[id]);
            let space = header.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
            pieces(&tokens, &scores, normal, unknown, &special, space).to_string()
        }
        Some(other) => {
            return Err(format!(
                "tokenizer.ggml.model = '{other}' is not supported; gpt2 (byte-level BPE) and llama (SentencePiece) are"
            ));
        }
        None => return Err("it has no tokenizer (tokenizer.ggml.model is missing); --ids takes token ids".into()),
    };
    tokenizers::Tokenizer::from_bytes(text).map_err(|e| e.to_string())
}

fn vocabulary(tokens: &[&str]) -> Map<String, Value> {
    tokens.iter().enumerate().map(|(id, t)| ((*t).to_string(), id.into())).collect()
}

/// Tokens that are read as such wherever they stand in a text.
fn added(tokens: &[&str], special: impl Fn(usize) -> bool) -> Vec<(usize, String)> {
    let list = tokens.iter().enumerate().filter(|(id, _)| special(*id));
    list.map(|(id, text)| (id, (*text).to_string())).collect()
}

fn listed(added: &[(usize, String)]) -> Vec<Value> {
    let one = |(id, text): &(usize, String)| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
               "special": true})
    };
    added.iter().map(one).collect()
}

/// The description of SentencePiece's BPE, which merges the pair whose piece has the highest score: the pairs of each piece, the best
/// piece first.
fn pieces(
    tokens: &[&str],
    scores: &[f32],
    normal: impl Fn(usize) -> bool,
    unknown: Option<&str>,
    special: &[(usize, String)],
    space: bool,
) -> Value {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (*t, id)).collect();
    let mut order: Vec<usize> = (0..tokens.len()).filter(|id| normal(*id) && tokens[*id].len() <= MOST_PIECE).collect();
    let score = |id: &usize| scores.get(*id).copied().unwrap_or(f32::NEG_INFINITY);
    order.sort_by(|a, b| score(b).total_cmp(&score(a)));
    let mut merges = Vec::new();
    for piece in order.iter().map(|id| tokens[*id]) {
        let parts = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let mut known: Vec<(usize, usize)> =
            parts.filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?))).collect();
        known.sort_unstable();
        merges.extend(known.into_iter().map(|(left, right)| json!([tokens[left], tokens[right]])));
    }
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let normalizer = match space {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces]}),
        false => spaces,
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": listed(special), "normalizer": normalizer,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocabulary(tokens), "merges": merges},
    })
}

/// The names of the ways to split texts that [`json`] knows.
pub(super) const SPLITS: [&str; 5] = ["default", "gpt-2", "smollm", "llama-bpe", "qwen2"];

/// The description: byte-level BPE, whose texts are split first as the model's name for it says.
pub(super) fn json(
    vocab: Map<String, Value>,
    merges: &[&str],
    added: &[(usize, String)],
    pre: &str,
) -> Result<Value, String> {
    let bytes =
        |split: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": split});
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let words = |digits: &str| {
        let pattern = format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        json!({"type": "Sequence", "pretokenizers": [split(&pattern), bytes(false)]})
    };
    // As the tokenizer.json of the models that llama.cpp names so has it.
    let (pre, ignore_merges) = match pre {
        "default" | "gpt-2" => (bytes(true), false),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            (json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}), false)
        }
        "llama-bpe" => (words(r"\p{N}{1,3}"), true),
        "qwen2" => (words(r"\p{N}"), false),
        other => {
            return Err(format!(
                "tokenizer.ggml.pre = '{other}' is not supported; default, gpt-2, smollm, llama-bpe and qwen2 are"
            ));
        }
    };
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": listed(added), "normalizer": null,
        "pre_tokenizer": pre, "post_processor": null, "decoder": bytes(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
                  "vocab": vocab, "merges": merges},
    }))
}

/// The character that stands for each byte in byte-level vocabularies: itself where it is printable, else one from U+0100 on.
pub(super) fn byte_names() -> Vec<char> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let name = |b: u8| {
        if printable(b) {
            return char::from(b);
        }
        let name = char::from_u32(next).unwrap_or_default();
        next += 1;
        name
    };
    (0..=255).map(name).collect()
}

/// The bytes that a token of a part of a character is named after: of a byte-level tokenizer one a character, of SentencePiece's `<0xE2>`.
pub(super) fn bytes_of(name: &str) -> Option<Vec<u8>> {
    let one = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
    if let Some(byte) = one.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        return Some(vec![byte]);
    }
    let names = byte_names();
    name.chars().map(|c| names.iter().position(|name| *name == c).map(|byte| byte as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;
    use crate::gguf::Writer;
    use serde_json::Value;

    #[test]
    fn pieces_are_those_of_sentencepiece() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/sentencepiece.json");
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
        let numbers =
            |list: &Value| -> Vec<f64> { list.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
        let pieces: Vec<&str> = golden["pieces"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
        let scores: Vec<u32> = numbers(&golden["scores"]).iter().map(|v| (*v as f32).to_bits()).collect();
        let kinds: Vec<u32> = numbers(&golden["kinds"]).iter().map(|v| *v as u32).collect();
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.gguf");
        let mut file = Writer::default();
        file.text("tokenizer.ggml.model", "llama").texts("tokenizer.ggml.tokens", &pieces);
        file.words("tokenizer.ggml.scores", 6, &scores).words("tokenizer.ggml.token_type", 5, &kinds);
        std::fs::write(&path, file.u32("tokenizer.ggml.bos_token_id", 1).file()).unwrap();
        let tokenizer = std::sync::Arc::new(Tokenizer::open(&path).unwrap());
        let mut compared = 0;
        for held in golden["texts"].as_array().unwrap() {
            let (text, decoded) = (held["text"].as_str().unwrap(), held["decoded"].as_str().unwrap());
            let ids: Vec<i32> = numbers(&held["ids"]).iter().map(|v| *v as i32).collect();
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{text:?}");
            // Such a vocabulary begins a text with its token, unless the file says otherwise.
            assert_eq!(tokenizer.encode(text, true).unwrap(), [&[1], &ids[..]].concat());
            assert_eq!(tokenizer.decode(&ids).unwrap(), decoded);
            let mut stream = super::super::Stream::new(&tokenizer);
            assert_eq!(ids.iter().map(|id| stream.push(*id).unwrap()).collect::<String>(), decoded, "{text:?}");
            compared += ids.len();
        }
        assert!(compared > 100);
        // A control token in a text is that token.
        assert_eq!(tokenizer.encode("</s>", false).unwrap(), [2]);
    }
}
