//! The tokenizer in a GGUF file's metadata, as the description that the crate `tokenizers` reads.

use crate::gguf::Header;
use serde_json::{Map, Value, json};

/// Kinds of tokens as ggml numbers them.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// The tokenizer of a file.
pub(super) fn tokenizer(header: &Header, bytes: &[u8]) -> Result<tokenizers::Tokenizer, String> {
    match header.text("tokenizer.ggml.model") {
        Some("gpt2") => {}
        Some(other) => {
            return Err(format!("tokenizer.ggml.model = '{other}' is not supported; gpt2 is (byte-level BPE)"));
        }
        None => return Err("it has no tokenizer (tokenizer.ggml.model is missing); --ids takes token ids".into()),
    }
    let list = |key: &str| header.texts(bytes, key).ok_or_else(|| format!("{key} is missing"));
    let tokens = list("tokenizer.ggml.tokens")?;
    let merges = list("tokenizer.ggml.merges")?;
    let kinds = header.ints(bytes, "tokenizer.ggml.token_type").unwrap_or_default();
    let special = |(id, text): (usize, &&str)| match kinds.get(id) {
        Some(&(CONTROL | USER_DEFINED)) => Some((id, (*text).to_string())),
        _ => None,
    };
    let added: Vec<(usize, String)> = tokens.iter().enumerate().filter_map(special).collect();
    let vocab: Map<String, Value> = tokens.iter().enumerate().map(|(id, t)| ((*t).to_string(), id.into())).collect();
    let pre = header.text("tokenizer.ggml.pre").unwrap_or("default");
    let text = json(vocab, &merges, &added, pre)?.to_string();
    tokenizers::Tokenizer::from_bytes(text).map_err(|e| e.to_string())
}

/// The description: byte-level BPE, whose texts are split first as the model's name for it says.
pub(super) fn json(
    vocab: Map<String, Value>,
    merges: &[&str],
    added: &[(usize, String)],
    pre: &str,
) -> Result<Value, String> {
    let added: Vec<Value> = added
        .iter()
        .map(|(id, text)| {
            json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                   "special": true})
        })
        .collect();
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
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": pre, "post_processor": null, "decoder": bytes(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
                  "vocab": vocab, "merges": merges},
    }))
}

/// The character that stands for each byte in byte-level vocabularies: itself where it is printable, else one from U+0100 on.
#[cfg(test)]
pub(super) fn byte_names() -> Vec<char> {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let name = |b: u8| {
        if printable(b) {
            return char::from(b);
        }
        let name = char::from_u32(next).unwrap();
        next += 1;
        name
    };
    (0..=255).map(name).collect()
}
