//! Many clients at a time, some of whom leave at any moment.

use crate::client::{Events, Random, Server, alone, asked, connect, read, request};
use crate::{COMPLETIONS, body, ids};
use serde_json::Value;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CLIENTS: u64 = 64;
/// Tokens of the longest answer.
const MOST: usize = 48;
/// What memory may differ from once to another: allocators give nothing back at once.
const FLAT: u64 = 24 << 20;

#[derive(Default)]
struct Counts {
    whole: AtomicU64,
    left: AtomicU64,
    tokens: AtomicU64,
}

/// JITUNE_SERVE_SECONDS says for how long.
#[test]
fn many_clients_hear_their_own_answers_and_leave_nothing_behind() {
    let _alone = alone();
    let server = Server::start(&[]);
    let seconds = asked("JITUNE_SERVE_SECONDS", 8);
    // Some begin alike, so that pages are shared.
    let prompts: Vec<Vec<i32>> = (0..24i32)
        .map(|n| {
            (0..[1, 7, 40, 64, 65, 130, 200, 300][n as usize % 8]).map(|i| (i * 7 + n / 3 * 13 + 1) % 97).collect()
        })
        .collect();
    let known: Vec<Vec<i64>> = prompts.iter().map(|p| ids(&server.ask(COMPLETIONS, &body(p, MOST)), 0)).collect();
    let different = known.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(different >= 8, "answers say whose they are: {different}");
    let (counts, begun) = (Counts::default(), Instant::now());
    let until = begun + Duration::from_secs(seconds);
    let mut warm = 0;
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (address, counts, prompts, known) = (&server.address, &counts, &prompts, &known);
            scope.spawn(move || {
                let mut random = Random(client * 7919 + 17);
                while Instant::now() < until {
                    ask(address, &mut random, prompts, known, counts);
                }
            });
        }
        std::thread::sleep(Duration::from_secs(seconds) / 3);
        warm = server.memory();
    });
    server.rests();
    let end = server.memory();
    let [whole, left, tokens] = [&counts.whole, &counts.left, &counts.tokens].map(|c| c.load(Ordering::Relaxed));
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{CLIENTS} clients, {seconds} s: {whole} whole answers of {tokens} tokens, {left} left before theirs; memory {} MiB, \
         then {} MiB",
        mib(warm),
        mib(end)
    );
    assert!(whole > CLIENTS && left > CLIENTS / 4, "{whole} and {left}");
    assert!(end < warm + FLAT, "memory grows from {} to {} MiB", mib(warm), mib(end));
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
    // And it goes on answering.
    assert_eq!(ids(&server.ask(COMPLETIONS, &body(&prompts[5], MOST)), 0), known[5]);
}

/// One request of one of the prompts, which is heard to its end or left at some moment.
fn ask(address: &str, random: &mut Random, prompts: &[Vec<i32>], known: &[Vec<i64>], counts: &Counts) {
    let which = random.below(prompts.len() as u64) as usize;
    let most = 1 + random.below(MOST as u64) as usize;
    let (streamed, leaves) = (random.below(2) == 0, random.below(3) == 0);
    let mut asked = body(&prompts[which], most);
    let wanted = &known[which][..most];
    if streamed {
        asked["stream"] = true.into();
        let mut events = Events::begin(address, COMPLETIONS, &asked).unwrap();
        let mut heard = Vec::new();
        if leaves {
            for event in events.by_ref().take(random.below(most as u64) as usize) {
                heard.extend(ids(&event, 0));
            }
            assert!(wanted.starts_with(&heard), "another's: {heard:?}, not {wanted:?}");
            counts.left.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut ends = 0;
        for event in events {
            heard.extend(ids(&event, 0));
            ends += u32::from(event["choices"][0]["finish_reason"] == "length");
        }
        assert!(heard == wanted && ends == 1, "prompt {which}: {heard:?}, not {wanted:?}, {ends} ends");
    } else {
        let mut stream = connect(address).unwrap();
        stream.write_all(&request(COMPLETIONS, asked.to_string().as_bytes(), "")).unwrap();
        if leaves {
            std::thread::sleep(Duration::from_micros(random.below(20_000)));
            counts.left.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let reply = read(stream).unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
        let answer: Value = reply.json();
        assert_eq!(ids(&answer, 0), wanted, "prompt {which}");
        assert_eq!(answer["usage"]["completion_tokens"], most);
    }
    counts.whole.fetch_add(1, Ordering::Relaxed);
    counts.tokens.fetch_add(most as u64, Ordering::Relaxed);
}
