//! A model with text: SmolLM2, whose file is in JITUNE_SMOLLM2.

use crate::COMPLETIONS;
use crate::client::{Server, database};
use serde_json::{Value, json};
use std::process::Command;

const CHAT: &str = "/v1/chat/completions";

fn server(more: &[&str]) -> Option<Server> {
    let Ok(file) = std::env::var("JITUNE_SMOLLM2") else {
        eprintln!("skipped: JITUNE_SMOLLM2 names no file");
        return None;
    };
    let (db, args) = (database(), ["--model", &file, "--context", "1024", "--memory", "2G", "--name", "smol", "--db"]);
    Some(Server::of(&[&args[..], &[&db], more].concat()))
}

/// What the chunks of an answer say together.
fn said(chunks: &[Value], at: &str) -> String {
    chunks.iter().filter_map(|c| c.pointer(at)?.as_str()).collect()
}

#[test]
fn texts_become_tokens_and_tokens_text() {
    let Some(server) = server(&[]) else { return };
    let messages = json!([{ "role": "user", "content": [{ "type": "text", "text": "What is the " }, { "type": "text", "text": "capital of France?" }] }]);
    let asked = json!({ "model": "smol", "messages": messages, "max_completion_tokens": 12, "temperature": 0 });
    let whole = server.ask(CHAT, &asked);
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap().to_string();
    println!("{text}");
    assert!(text.contains("Paris"), "{whole}");
    assert_eq!(
        (&whole["object"], &whole["choices"][0]["message"]["role"]),
        (&json!("chat.completion"), &json!("assistant"))
    );
    let chunks = server.stream(CHAT, &asked);
    assert_eq!(said(&chunks, "/choices/0/delta/content"), text);
    // One that says who speaks, then one a token.
    assert_eq!(chunks.len() as u64, 1 + whole["usage"]["completion_tokens"].as_u64().unwrap());
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk"));
    let reason = &whole["choices"][0]["finish_reason"];
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], *reason);

    // Texts that end an answer, over the borders of tokens: the end of one and the beginning of the next, then most of it.
    let half = text.find(" France").unwrap();
    for (stop, streamed) in [(&text[half - 1..half + 3], true), (&text[3..], false)] {
        let mut stopped = asked.clone();
        stopped["stop"] = json!([stop, "never said"]);
        let (text, chunks) = match streamed {
            true => (None, server.stream(CHAT, &stopped)),
            false => (Some(server.ask(CHAT, &stopped)), Vec::new()),
        };
        let found = text.as_ref().map_or_else(
            || said(&chunks, "/choices/0/delta/content"),
            |answer| answer["choices"][0]["message"]["content"].as_str().unwrap().into(),
        );
        let last = text.as_ref().or(chunks.last()).unwrap();
        assert_eq!(last["choices"][0]["finish_reason"], "stop", "{last}");
        assert_eq!(
            Some(found.as_str()),
            whole["choices"][0]["message"]["content"].as_str().unwrap().split(stop).next()
        );
    }
    server.rests();

    // Tokens and back, and a prompt as either.
    let tokens = server.ask("/tokenize", &json!({ "prompt": "The capital of France is naïve 🦀" }));
    let ids = &tokens["tokens"];
    assert_eq!(tokens["count"].as_u64().unwrap() as usize, ids.as_array().unwrap().len());
    let text = server.ask("/detokenize", &json!({ "tokens": ids }));
    assert_eq!(text["prompt"], "The capital of France is naïve 🦀");
    let chat = server.ask("/tokenize", &json!({ "messages": messages }));
    assert_eq!(chat["count"], whole["usage"]["prompt_tokens"]);
    let asked = |prompt: Value| json!({ "prompt": prompt, "max_tokens": 4, "temperature": 0 });
    let by_text = server.ask(COMPLETIONS, &asked(json!(["The capital of France is naïve 🦀", "1 2 3"])));
    let by_ids = server.ask(COMPLETIONS, &asked(ids.clone()));
    assert_eq!(by_text["choices"][0]["text"], by_ids["choices"][0]["text"]);
    assert!(by_text["choices"][0].get("token_ids").is_none(), "{by_text}");
    let long = server.post(COMPLETIONS, &json!({ "prompt": "a ".repeat(1 << 20) })).refusal();
    assert!(long.0 == 400 && long.1.contains("2097152 bytes are more than 1024 tokens"), "{long:?}");
    let long = server.post(COMPLETIONS, &json!({ "prompt": "word ".repeat(1200) })).refusal();
    assert!(long.0 == 400 && long.1.contains("leave nothing of the context of 1024"), "{long:?}");
}

/// The engine may have begun with another token when a text that ends an answer is found in the one before.
#[test]
fn as_many_tokens_are_counted_as_are_told() {
    let Some(server) = server(&[]) else { return };
    let asked = json!({
        "prompt": "1 2 3 4 5 6 7 8 9 10 11", "max_tokens": 64, "temperature": 0, "n": 4, "stop": [" 14", "\n"],
    });
    let whole = server.ask(COMPLETIONS, &asked);
    assert_eq!(whole["choices"][3]["finish_reason"], "stop", "{whole}");
    let mut streamed = asked;
    streamed["stream_options"] = json!({ "include_usage": true });
    let mut chunks = server.stream(COMPLETIONS, &streamed);
    let last = chunks.pop().unwrap();
    assert_eq!(last["usage"]["completion_tokens"].as_u64().unwrap(), chunks.len() as u64, "a chunk a token");
    server.rests();
    let told: u64 = [&whole, &last].iter().map(|answer| answer["usage"]["completion_tokens"].as_u64().unwrap()).sum();
    assert_eq!(server.metric("generation_tokens_total") as u64, told);
}

/// Each byte of an answer is told with a token, parts of characters too, and where tokens begin depends on no text that might have ended it.
#[test]
fn tokens_are_told_with_their_bytes_and_places() {
    let Some(server) = server(&[]) else { return };
    let ask = |at: &str, more: Value| {
        let mut asked = json!({ "max_tokens": 48, "temperature": 0.9, "top_p": 0.95, "ignore_eos": true, "seed": 5 });
        asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.ask(at, &asked)["choices"][0].clone()
    };
    let messages = json!([{ "role": "user", "content": "Write ten different emojis: 🦀🐈" }]);
    let chat = ask(CHAT, json!({ "messages": messages, "logprobs": true, "top_logprobs": 3 }));
    let list = chat["logprobs"]["content"].as_array().unwrap();
    let bytes = |told: &Value| -> Vec<u8> {
        told["bytes"].as_array().unwrap().iter().map(|b| b.as_u64().unwrap() as u8).collect()
    };
    // Special tokens have a name, and no text.
    let special = |token: &Value| token.as_str().unwrap().starts_with("<|");
    let all: Vec<u8> = list.iter().filter(|told| !special(&told["token"])).flat_map(bytes).collect();
    let text = chat["message"]["content"].as_str().unwrap();
    println!("{text}");
    // What is not a whole character at the end is no part of the text.
    assert!(all.starts_with(text.as_bytes()) && all.len() < text.len() + 4, "{chat}");
    assert!(list.iter().all(|told| told["top_logprobs"].as_array().unwrap().len() == 3), "{chat}");

    let prompt = json!({ "prompt": "Crabs 🦀, cats 🐈 and", "logprobs": 2 });
    let plain = ask(COMPLETIONS, prompt.clone());
    let text = plain["text"].as_str().unwrap();
    let offsets = |choice: &Value| choice["logprobs"]["text_offset"].clone();
    let first = text.chars().next().unwrap();
    // It may begin at every place where the first character stands, and never goes on.
    let mut stopped = prompt;
    stopped["stop"] = json!([format!("{first}§§"), " §", "e§"]);
    assert_eq!(offsets(&ask(COMPLETIONS, stopped)), offsets(&plain));
    let (told, places) = (&plain["logprobs"]["tokens"], offsets(&plain));
    let places = told.as_array().unwrap().iter().zip(places.as_array().unwrap());
    for (token, at) in places.filter(|(token, _)| !special(token)) {
        let (token, at) = (token.as_str().unwrap(), at.as_u64().unwrap() as usize);
        let there: String = text.chars().skip(at).collect();
        assert!(token.contains('\u{fffd}') || there.starts_with(token), "{token:?} at {at} of {text:?}");
    }
}

/// The package that most clients are made of.
#[test]
fn the_package_openai_is_served() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    if !Command::new(&python).args(["-c", "import openai"]).output().is_ok_and(|out| out.status.success()) {
        eprintln!("SKIPPED: {python} has no package openai");
        return;
    }
    let Some(server) = server(&["--api-key", "sesame"]) else { return };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/openai_client.py");
    let out = Command::new(&python)
        .args([script, &format!("http://{}/v1", server.address), "--key", "sesame"])
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&out.stdout));
    assert!(out.status.success(), "{}\n{}", crate::common::text(&out), server.log());
}
