//! `jitune serve`, driven as clients drive it: every endpoint, what they may not ask, leaving, draining, dying.
#![cfg(target_os = "linux")]

mod client;
#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod limits;
mod lines;
mod load;
mod real;

use client::{Events, Server, request, send};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const COMPLETIONS: &str = "/v1/completions";

fn body(prompt: &[i32], most: usize) -> Value {
    json!({ "model": "m", "prompt": prompt, "max_tokens": most, "temperature": 0, "ignore_eos": true })
}

/// The ids of an answer.
fn ids(answer: &Value, index: usize) -> Vec<i64> {
    let list = answer["choices"][index]["token_ids"].as_array().unwrap_or_else(|| panic!("{answer}"));
    list.iter().map(|v| v.as_i64().unwrap()).collect()
}

#[test]
fn every_endpoint_answers() {
    let server = Server::start(&[]);
    assert_eq!((server.get("/health").status, server.get("/health").json()), (200, json!({ "status": "ok" })));
    let models = server.get("/v1/models").json();
    let model = &models["data"][0];
    assert_eq!((models["object"].as_str(), model["id"].as_str()), (Some("list"), Some("m")));
    assert_eq!(model["max_model_len"], 512);
    assert_eq!(&server.get("/v1/models/m").json(), model);
    assert_eq!(server.get("/v1/models/some/other").refusal().0, 404);

    // A stream says what an answer says at once, one chunk a token.
    let asked = body(&[1, 5, 7], 9);
    let whole = server.ask(COMPLETIONS, &asked);
    assert_eq!((whole["object"].as_str(), whole["model"].as_str()), (Some("text_completion"), Some("m")));
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let usage = json!({
        "prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12, "prompt_tokens_details": { "cached_tokens": 0 },
    });
    assert_eq!(whole["usage"], usage);
    let mut streamed = asked.clone();
    streamed["stream_options"] = json!({ "include_usage": true });
    let mut chunks = server.stream(COMPLETIONS, &streamed);
    let last = chunks.pop().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &usage));
    assert_eq!(chunks.len(), 9);
    assert!(chunks.iter().all(|c| c["usage"].is_null() && c["id"] == chunks[0]["id"] && c["choices"][0]["text"] == ""));
    assert_eq!(chunks.iter().flat_map(|c| ids(c, 0)).collect::<Vec<_>>(), ids(&whole, 0));
    let finished: Vec<bool> = chunks.iter().map(|c| c["choices"][0]["finish_reason"] == "length").collect();
    assert_eq!(finished, [vec![false; 8], vec![true]].concat());
    // Without being asked for there is no usage.
    let chunks = server.stream(COMPLETIONS, &asked);
    assert!(chunks.len() == 9 && chunks.iter().all(|c| c.get("usage").is_none()));

    // Lists of prompts, and many answers to one.
    let mut many = asked.clone();
    (many["prompt"], many["n"]) = (json!([[9, 8, 7, 6], [1, 5, 7]]), json!(3));
    let answers = server.ask(COMPLETIONS, &many);
    assert_eq!(answers["choices"].as_array().unwrap().len(), 6);
    assert!((0..6).all(|i| answers["choices"][i]["index"] == i));
    assert!((3..6).all(|i| ids(&answers, i) == ids(&whole, 0)), "{answers}\n{whole}");
    assert_eq!((&answers["usage"]["prompt_tokens"], &answers["usage"]["completion_tokens"]), (&json!(7), &json!(54)));
    let mut one_by_one = vec![Vec::new(); 6];
    for chunk in server.stream(COMPLETIONS, &many) {
        one_by_one[chunk["choices"][0]["index"].as_u64().unwrap() as usize].extend(ids(&chunk, 0));
    }
    assert!((0..6).all(|i| one_by_one[i] == ids(&answers, i)), "{one_by_one:?}\n{answers}");

    // A token that ends an answer is its last.
    let third = ids(&whole, 0)[2];
    let first = ids(&whole, 0).iter().position(|id| *id == third).unwrap();
    let mut stopped = asked.clone();
    stopped["stop_token_ids"] = json!([third]);
    let answer = server.ask(COMPLETIONS, &stopped);
    assert_eq!((&answer["choices"][0]["finish_reason"], ids(&answer, 0).len()), (&json!("stop"), first + 1));

    // What the cache holds of a prompt is said. Prompts that nobody has seen before have none.
    let long: Vec<i32> = (0..300).map(|i| (i * 31 + 7) % 97).collect();
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let (before, again) = (server.ask(COMPLETIONS, &body(&long, 4)), server.ask(COMPLETIONS, &body(&long, 4)));
    assert_eq!((cached(&before), ids(&before, 0)), (0, ids(&again, 0)));
    assert!(cached(&again) >= 128 && cached(&again) < 300, "{again}");

    server.rests();
    let metrics = server.get("/metrics").text();
    for name in [
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "num_preemptions_total",
        "prompt_tokens_total",
        "generation_tokens_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_sum",
        "e2e_request_latency_seconds_count",
    ] {
        assert!(metrics.contains(&format!("\njitune:{name}{{model_name=\"m\"")), "{name}: {metrics}");
    }
    assert_eq!(server.metric("prefix_cache_hits_total") as u64, cached(&again));
    let ended = |reason: &str| {
        let start = format!("jitune:request_success_total{{model_name=\"m\",finished_reason=\"{reason}\"}} ");
        metrics.lines().find_map(|l| l.strip_prefix(&start)).unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(["stop", "length", "abort", "error"].map(ended), [1, 3 + 6 + 6 + 2, 0, 0]);
}

#[test]
fn what_cannot_be_answered_is_refused_in_openais_form() {
    let server = Server::start(&["--name", "org/model"]);
    let refused = |change: Value| {
        let mut asked = body(&[1], 1);
        asked["model"] = "org/model".into();
        change.as_object().unwrap().iter().for_each(|(key, value)| asked[key] = value.clone());
        server.post(COMPLETIONS, &asked).refusal()
    };
    for (change, status, part) in [
        (json!({ "model": "gpt-4" }), 404, "there is no model \"gpt-4\"; this server has \"org/model\""),
        (json!({ "prompt": vec![1; 512] }), 400, "512 tokens leave nothing of the context of 512"),
        (
            json!({ "prompt": vec![1; 500], "max_tokens": 13 }),
            400,
            "500 tokens and 13 more are over the context of 512",
        ),
        (json!({ "prompt": [97] }), 400, "97 is no token; the model's go from 0 to 96"),
        (json!({ "prompt": "text" }), 400, "has no tokenizer"),
        (json!({ "temperature": -1 }), 400, "temperature: it must be a number from 0 to 2"),
        (json!({ "n": 0 }), 400, "n: it must be a whole number from 1 to 16"),
        (json!({ "stop": "x" }), 400, "has no tokenizer"),
        (json!({ "echo": true }), 400, "echo: it is not supported"),
    ] {
        let (found, message) = refused(change.clone());
        assert!(found == status && message.contains(part), "{change}: {found} {message}");
    }
    let chat = json!({ "messages": [{ "role": "user", "content": "a" }] });
    assert_eq!(server.post("/v1/chat/completions", &chat).refusal().0, 400);
    assert_eq!(server.get("/v1/models/org/model").status, 200);
    assert_eq!(server.get("/v1/models/org%2Fmodel").status, 200);
    assert_eq!(server.get("/v1/model").refusal().0, 404);
    let wrong = server.get(COMPLETIONS);
    assert_eq!((wrong.refusal().0, wrong.headers.contains("\r\nallow: post")), (405, true));
    assert_eq!(server.post("/health", &json!({})).refusal().0, 405);
    let raw =
        |bytes: &[u8], headers: &str| send(&server.address, &request(COMPLETIONS, bytes, headers)).unwrap().refusal();
    assert_eq!(raw(b"{", "").0, 400);
    assert_eq!(raw(b"{\"prompt\": [1]}", "Content-Type: text/plain\r\n").0, 415);
    let (status, message) = raw(&[b' '].repeat(5 << 20), "");
    assert!(status == 413 && message.contains("the limit of 4194304 bytes"), "{status} {message}");
    // A head that is none.
    assert_eq!(send(&server.address, b"NONSENSE\r\n\r\n").unwrap().status, 400);
    let many = format!("GET /health HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "b".repeat(300 << 10));
    assert_eq!(send(&server.address, many.as_bytes()).unwrap().status, 431);
}

#[test]
fn whoever_has_the_key_may_ask() {
    let server = Server::start(&["--api-key", "sesame"]);
    let with = |headers: &str| {
        let bytes = request(COMPLETIONS, body(&[1], 1).to_string().as_bytes(), headers);
        send(&server.address, &bytes).unwrap()
    };
    assert_eq!(with("Authorization: Bearer sesame\r\n").status, 200);
    assert_eq!(with("authorization: bearer sesame\r\n").status, 200);
    for wrong in ["", "Authorization: Bearer sesam\r\n", "Authorization: sesame\r\n", "Authorization: Bearer \r\n"] {
        let reply = with(wrong);
        assert_eq!(reply.refusal().0, 401, "{wrong}");
        assert!(reply.headers.contains("www-authenticate: bearer"));
    }
    assert_eq!(["/health", "/metrics", "/v1/models", "/x"].map(|path| server.get(path).status), [200, 401, 401, 401]);
}

#[test]
fn what_waits_has_a_limit() {
    let server = Server::start(&["--sequences", "1", "--queue", "2"]);
    // Answers of 510 tokens, the first of which has begun.
    let long = json!({ "prompt": [1, 5], "temperature": 0, "ignore_eos": true, "stream": true });
    let mut held = vec![Events::begin(&server.address, COMPLETIONS, &long).unwrap()];
    assert!(held[0].next().is_some());
    let mut refused = 0;
    for _ in 0..12 {
        match Events::begin(&server.address, COMPLETIONS, &long) {
            Ok(events) => held.push(events),
            Err(head) => {
                let head = head.to_string();
                assert!(head.starts_with("http/1.1 429") && head.contains("\r\nretry-after: 1\r\n"), "{head}");
                refused += 1;
            }
        }
    }
    // How many end meanwhile is a matter of time.
    assert!(held.len() >= 3 && refused >= 1, "{} and {refused}", held.len());
    // Those that leave make room; whoever waits has its answer.
    let stays = held.pop().unwrap();
    drop(held);
    assert_eq!(stays.count(), 510);
    server.rests();
    assert_eq!(server.ask(COMPLETIONS, &body(&[1, 5], 3))["usage"]["completion_tokens"], 3);
    // Nobody is told anything else, however many come at once; and more answers than can wait are never told to come again.
    let told: Vec<u16> = std::thread::scope(|scope| {
        let one = || (0..20).map(|_| server.post(COMPLETIONS, &body(&[1, 5], 3)).status).collect::<Vec<_>>();
        let all: Vec<_> = (0..16).map(|_| scope.spawn(one)).collect();
        all.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(told.contains(&200) && told.contains(&429) && told.iter().all(|s| matches!(s, 200 | 429)), "{told:?}");
    let mut many = body(&[1, 5], 3);
    many["n"] = 3.into();
    assert!(server.post(COMPLETIONS, &many).refusal().1.contains("3 answers, and 2 are the most"));
    server.rests();
}

#[test]
fn a_client_that_leaves_makes_room_at_once() {
    let server = Server::start(&[]);
    let long = json!({ "prompt": [[1, 5], [2, 6, 7]], "temperature": 0, "ignore_eos": true, "n": 3, "stream": true });
    // All of them together take more than 500 steps.
    let steps = || server.metric("engine_steps_total");
    for _ in 0..3 {
        let before = steps();
        let mut events = Events::begin(&server.address, COMPLETIONS, &long).unwrap();
        assert!(events.next().is_some());
        drop(events);
        server.rests();
        assert!(steps() - before < 500.0, "all was computed for nobody");
    }
    // The same of an answer that is not streamed.
    let mut whole = long.clone();
    whole["stream"] = false.into();
    let before = steps();
    let mut stream = client::connect(&server.address).unwrap();
    std::io::Write::write_all(&mut stream, &request(COMPLETIONS, whole.to_string().as_bytes(), "")).unwrap();
    let begun = Instant::now();
    while server.metric("num_requests_running") == 0.0 {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
    drop(stream);
    server.rests();
    assert!(steps() - before < 500.0, "all was computed for nobody");
    let text = server.get("/metrics").text();
    assert!(text.contains("finished_reason=\"abort\"} 24\n"), "{text}");
}

#[test]
fn what_cannot_be_served_is_said_before_anything_is_loaded() {
    let place = common::Place::new();
    let args = client::random();
    for (more, part) in [
        (&["--sequences", "100000"][..], "sequences: 100000 is no size; 1 is the least, and 65536 the most"),
        (&["--host", "192.0.2.1"], "this machine has no such address; --host names one of its own"),
        (&["--name", ""], "a value is required for '--name <NAME>'"),
    ] {
        let args =
            args.iter().map(String::as_str).chain(["--target", "cpu", "--port", "0"]).chain(more.iter().copied());
        let out = place.jitune(&[&["serve"], &args.collect::<Vec<_>>()[..]].concat()).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{more:?}: {}", common::text(&out));
        assert!(common::text(&out).contains(part), "{more:?}: {}", common::text(&out));
    }
}

#[test]
fn what_nobody_tuned_is_said_at_the_start() {
    let server = Server::start(&[]);
    let log = server.log();
    let note =
        log.lines().find(|line| line.starts_with("jitune: note: ") && line.contains("kernels are portable ones"));
    assert!(note.is_some_and(|note| note.contains("; `jitune tune --model ")), "{log}");
    // The steps that it knows before anybody asks, and not those alone that somebody waited for.
    assert!(server.metric("kernels_portable") > 0.0 && server.metric("steps_bound_late_total") == 0.0);
    drop(server);

    // Where a single sequence was tuned, kernels for it answer up to 16 of them.
    let ([_, model, ..], place) = (client::random(), common::Place::new());
    let db = place.path().join("db").to_str().unwrap().to_string();
    let tuned = ["tune", "--target", "cpu", "--model", &model, "--db", &db, "--batch", "1", "--prefill", "64,512"];
    let out = place.jitune(&[&tuned[..], &["--context", "512", "--trials", "1"]].concat()).output().unwrap();
    assert!(out.status.success(), "{}", common::text(&out));
    let first = |sequences: &str| {
        let server =
            Server::of(&["--model", &model, "--db", &db, "--memory", "1G", "--tokens", "64", "--sequences", sequences]);
        let log = server.log();
        let note = log.split("some of them in each decode of ").nth(1).map(str::to_string);
        assert!(note.is_some() || !log.contains("portable ones"), "{log}");
        let note = note?;
        assert!(note.contains(&format!(" --batch {sequences}` finds better")), "{note}");
        Some(note.split(' ').next().unwrap().parse::<i64>().unwrap())
    };
    let from = first("64").unwrap();
    assert!((2..=64).contains(&from));
    assert_eq!(first(&(from / 2).to_string()), None);
}

#[test]
fn a_server_that_is_told_to_stop_ends_what_it_began() {
    let mut server = Server::start(&[]);
    let long = json!({ "prompt": [1, 5], "temperature": 0, "ignore_eos": true, "stream": true });
    let mut streams: Vec<Events> =
        (0..4).map(|_| Events::begin(&server.address, COMPLETIONS, &long).unwrap()).collect();
    assert!(streams.iter_mut().all(|s| s.next().is_some()));
    server.signal("-TERM");
    // It looks some times a second.
    let begun = Instant::now();
    let mut stopped = 0;
    while stopped == 0 && begun.elapsed() < Duration::from_secs(30) {
        let bytes = request(COMPLETIONS, body(&[1], 1).to_string().as_bytes(), "");
        // When all that ran has ended nobody listens any more.
        let Ok(reply) = send(&server.address, &bytes) else { break };
        assert!(matches!(reply.status, 200 | 503), "{}", reply.text());
        if reply.status == 503 {
            assert!(reply.refusal().1.contains("stopping") && reply.headers.contains("retry-after: 1"));
            let health = send(&server.address, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
            assert!(health.is_err() || health.is_ok_and(|health| health.status == 503));
            stopped += 1;
        }
    }
    assert!(stopped > 0, "none was refused before the end");
    for events in streams {
        assert_eq!(events.count(), 509);
    }
    assert_eq!(server.ended().code(), Some(0), "{}", server.log());
}

#[test]
fn a_second_signal_ends_at_once_and_a_killed_server_starts_again() {
    let mut server = Server::start(&["--sequences", "1"]);
    let long = json!({ "prompt": [1, 5], "temperature": 0, "ignore_eos": true, "stream": true });
    let held: Vec<Events> = (0..40).map(|_| Events::begin(&server.address, COMPLETIONS, &long).unwrap()).collect();
    server.signal("-INT");
    std::thread::sleep(Duration::from_millis(20));
    server.signal("-INT");
    assert_eq!(server.ended().code(), Some(130), "{}", server.log());
    drop(held);

    let mut server = Server::start(&[]);
    let (whole, port) =
        (server.ask(COMPLETIONS, &body(&[1, 5], 5)), server.address.rsplit(':').next().unwrap().to_string());
    let held: Vec<Events> = (0..9).map(|_| Events::begin(&server.address, COMPLETIONS, &long).unwrap()).collect();
    // The port is taken as long as it lives.
    let place = common::Place::new();
    let second = place.jitune(&["serve", "--model", "./none", "--port", &port]).output().unwrap();
    assert_eq!(second.status.code(), Some(2));
    assert!(common::text(&second).contains("cannot listen on 127.0.0.1"), "{}", common::text(&second));
    server.signal("-KILL");
    assert_eq!(server.ended().code(), None);
    let again = Server::start(&["--port", &port]);
    drop(held);
    assert_eq!(ids(&again.ask(COMPLETIONS, &body(&[1, 5], 5)), 0), ids(&whole, 0));
}

#[test]
fn nobody_is_let_in_without_being_asked() {
    let own = Server::start(&[]);
    assert!(own.address.starts_with("127.0.0.1:") && !own.log().contains("warning"), "{}", own.log());
    let open = Server::start(&["--host", "0.0.0.0"]);
    assert!(open.log().contains("warning: whoever reaches 0.0.0.0 can use the model"), "{}", open.log());
    let log = Server::start(&["--host", "0.0.0.0", "--api-key", "x"]).log();
    assert!(!log.contains("warning") && log.contains("memory: weights"), "{log}");
    // A secret that nobody filled in, and one that no header carries.
    let place = common::Place::new();
    for key in ["", "abc\n", "a b", "é"] {
        for option in [true, false] {
            let args = ["serve", "--model", "./none", "--port", "0"];
            let given = ["--api-key", key];
            let mut command = place.jitune(&[&args[..], if option { &given } else { &[] }].concat());
            let out = command.env("JITUNE_API_KEY", key).output().unwrap();
            let name = if option { "--api-key" } else { "JITUNE_API_KEY" };
            let said = common::text(&out);
            assert!(out.status.code() == Some(2) && said.contains(name) && !said.contains("./none"), "{key:?}: {said}");
        }
    }
}
