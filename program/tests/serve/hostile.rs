//! Bodies that nobody should send.

use crate::client::{Random, Server, alone, asked, request, send, send_all};
use crate::{COMPLETIONS, body, ids};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Most go where they can be answered.
const PATHS: [&str; 6] = [COMPLETIONS, COMPLETIONS, COMPLETIONS, "/v1/chat/completions", "/tokenize", "/detokenize"];
const NAMES: [&str; 28] = [
    "model",
    "prompt",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "logprobs",
    "top_logprobs",
    "n",
    "echo",
    "ignore_eos",
    "stream",
    "stream_options",
    "user",
    "tokens",
    "best_of",
    "logit_bias",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "add_special_tokens",
    "x",
];
/// What memory may differ by while bodies of up to 2 MB come by, some at a time.
const FLAT: u64 = 32 << 20;
const THREADS: u64 = 4;
/// Within which each is refused; a machine that is busy with other things has another try.
const SOON: Duration = Duration::from_secs(1);

/// A value that may be anything.
fn value(random: &mut Random, depth: u32) -> Value {
    let numbers = [
        "0",
        "-1",
        "1",
        "2.5",
        "1e300",
        "-1e300",
        "9223372036854775807",
        "18446744073709551615",
        "-9223372036854775808",
        "1e-300",
        "5.0",
        "97",
        "2147483648",
        "123456789012345678901234567890",
    ];
    match random.below(if depth == 0 { 7 } else { 10 }) {
        0 => Value::Null,
        1 => json!(random.below(2) == 0),
        2 | 3 => serde_json::from_str(random.of(&numbers)).unwrap(),
        4 => json!("x".repeat(random.below(40) as usize)),
        5 => json!("\u{0}\u{202e}\u{1f980}\"\\"),
        6 => json!([[1, 5], "a", ["a"], {}, [], [97], [-1]])[random.below(7) as usize].clone(),
        7 => (0..random.below(5)).map(|_| value(random, depth - 1)).collect(),
        8 => (0..random.below(300)).map(|_| json!(random.below(97))).collect(),
        _ => {
            let name = |random: &mut Random| random.of(&NAMES).to_string();
            Value::Object((0..random.below(4)).map(|_| (name(random), value(random, depth - 1))).collect())
        }
    }
}

/// Something that was once a request.
fn hostile(random: &mut Random) -> (Vec<u8>, &'static str) {
    let mut asked = match random.below(6) {
        0 => json!({ "messages": [{ "role": "user", "content": "a" }] }),
        1 => json!({ "tokens": [1, 2], "prompt": "a" }),
        _ => body(&[1, 5, 7], 3),
    };
    for _ in 0..random.below(3) {
        asked[random.of(&NAMES)] = value(random, 3);
    }
    let plain = asked.to_string().into_bytes();
    let cut = random.below(plain.len() as u64) as usize;
    match random.below(12) {
        0 => (plain[..cut].to_vec(), "cut off"),
        1 => {
            let mut bytes = plain;
            bytes[cut] = random.below(256) as u8;
            (bytes, "a byte changed")
        }
        2 => ([&plain[..cut], &[0xff, 0xc0, 0xaf], &plain[cut..]].concat(), "no UTF-8"),
        3 => {
            let depth = random.of(&[100, 127, 128, 1000, 100_000]);
            let open = random.of(&["[", "{\"a\":"]).repeat(depth);
            (format!("{{\"prompt\": {open}").into_bytes(), "deep")
        }
        4 => (
            format!(
                "{{\"prompt\": [1], \"temperature\": {}}}",
                random.of(&["NaN", "Infinity", "-", "1e999", "01", "+1"])
            )
            .into(),
            "no number",
        ),
        5 => (value(random, 3).to_string().into_bytes(), "any JSON"),
        6 if random.below(8) == 0 => {
            let (name, text) =
                (random.of(&["prompt", "model", "stop", "x"]), random.of(&["a", " ", "\\u0000", "é"]).repeat(1 << 20));
            (format!("{{\"{name}\": \"{text}\", \"max_tokens\": 2}}").into_bytes(), "a long text")
        }
        7 if random.below(8) == 0 => {
            let list = vec!["1"; 400_000].join(random.of(&[",", "],["]));
            (format!("{{\"prompt\": [[{list}]], \"max_tokens\": 2}}").into_bytes(), "a long list")
        }
        8 => {
            let twice =
                format!("{{\"prompt\": [2], \"n\": 99, {}", String::from_utf8(plain).unwrap().trim_start_matches('{'));
            (twice.into_bytes(), "names twice")
        }
        _ => (plain, "changed"),
    }
}

/// Sends it in one of some ways, not all of which are HTTP.
fn sent(random: &mut Random, address: &str, path: &str, bytes: &[u8]) -> std::io::Result<crate::client::Reply> {
    let head = |more: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n{more}\r\n")
    };
    match random.below(12) {
        0 => {
            let kind = random.of(&[
                "text/plain",
                "application/xml",
                "",
                "application/jsonx",
                "\u{e9}",
                "multipart/form-data; boundary=x",
            ]);
            send(address, &request(path, bytes, &format!("Content-Type: {kind}\r\n")))
        }
        1 => {
            let chunks: Vec<u8> = bytes
                .chunks(1 + random.below(bytes.len() as u64 + 1) as usize)
                .flat_map(|c| [format!("{:x}\r\n", c.len()).as_bytes(), c, b"\r\n"].concat())
                .collect();
            send(address, &[head("Transfer-Encoding: chunked\r\n").as_bytes(), &chunks, b"0\r\n\r\n"].concat())
        }
        2 => {
            let nonsense =
                random.of(&["zz\r\nabc\r\n", "-1\r\n", "ffffffffffffffffff\r\n", "5\r\nabc", "3\r\nabcdef\r\n"]);
            send_all(address, &[head("Transfer-Encoding: chunked\r\n").as_bytes(), nonsense.as_bytes()].concat())
        }
        // Less than was said.
        3 => {
            send_all(address, &[head(&format!("Content-Length: {}\r\n", bytes.len() + 10)).as_bytes(), bytes].concat())
        }
        _ => send(address, &request(path, bytes, "")),
    }
}

/// JITUNE_HOSTILE_BODIES says how many.
#[test]
fn hostile_bodies_are_refused_and_nothing_else_happens() {
    let _alone = alone();
    let server = Server::start(&[]);
    let whole = ids(&server.ask(COMPLETIONS, &body(&[1, 5, 7], 9)), 0);
    let all = asked("JITUNE_HOSTILE_BODIES", 1500);
    let (refused, answered, most) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let one = |number: u64| {
        let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let (bytes, kind) = hostile(&mut random);
        let path = random.of(&PATHS);
        let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
        let mut took = SOON;
        for _ in 0..3 {
            let (begun, mut again) = (Instant::now(), Random(random.0));
            let reply = sent(&mut again, &server.address, path, &bytes);
            took = begun.elapsed();
            let reply = reply.unwrap_or_else(|e| panic!("{number} ({kind}), {path}: {e}: {}", shown()));
            match reply.status {
                // It takes as long as its tokens take.
                200 => {
                    answered.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                400..500 => {
                    let (_, message) = reply.refusal();
                    assert!(message.len() < 1000, "{number} ({kind}): {} bytes of message", message.len());
                    refused.fetch_add(1, Ordering::Relaxed);
                }
                _ => panic!("{number} ({kind}), {path}: {}: {}", reply.text(), shown()),
            }
            if took < SOON {
                break;
            }
        }
        most.fetch_max(took.as_millis() as u64, Ordering::Relaxed);
        assert!(took < SOON, "{number} ({kind}), {path}: {took:?}: {}", shown());
    };
    let round = |from: u64, to: u64| {
        let next = AtomicU64::new(from);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while let Some(number) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < to) {
                        one(number);
                    }
                });
            }
        });
    };
    round(0, all / 3);
    let warm = server.memory();
    round(all / 3, all);
    server.rests();
    let end = server.memory();
    let [refused, answered, most] = [refused, answered, most].map(AtomicU64::into_inner);
    println!(
        "{all} bodies: {refused} refused, {answered} answered, refusals after {most} ms at most; memory {} MiB, then {} MiB",
        warm >> 20,
        end >> 20
    );
    assert!(refused > all / 3 && answered > all / 50, "{refused} and {answered} of {all}");
    assert!(end < warm + FLAT, "memory grows from {warm} to {end}");
    assert!(!server.log().contains("panicked"), "{}", server.log());
    assert_eq!(ids(&server.ask(COMPLETIONS, &body(&[1, 5, 7], 9)), 0), whole);
}
