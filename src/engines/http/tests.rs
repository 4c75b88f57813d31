//! Servers that misbehave, as the first token of a prompt says.

use super::script::{HEAD, answer, chunk, end, event, json_reply, serve, token, whole};
use super::*;
use jitune_peer::RefusalKind;
use jitune_peer::engine::Sampling;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::Instant;

const LONG: Duration = Duration::from_secs(60);
fn options(url: String) -> Options {
    Options { url, silence: Duration::from_secs(20), ..Options::default() }
}

fn open(url: String) -> Server {
    Server::start(options(url), &Arc::default()).unwrap()
}

fn submit(case: u32, most: usize) -> Submit {
    Submit { prompt: vec![case, 5, 7], most, sampling: Sampling::default(), ignore_eos: true }
}

/// Pieces as (tokens, known), and the end.
type Said = (Vec<(Vec<u32>, bool)>, Option<End>);

/// Everything that is heard of requests until all have ended.
fn hear(server: &mut Server, ids: &[u64]) -> BTreeMap<u64, Said> {
    let mut all: BTreeMap<u64, Said> = ids.iter().map(|id| (*id, (Vec::new(), None))).collect();
    let until = server.now() + LONG;
    while all.values().any(|(_, end)| end.is_none()) {
        let heard = server.next(until).unwrap().expect("something is heard");
        let (pieces, end) = all.get_mut(&heard.id).unwrap();
        assert!(end.is_none(), "{} goes on after its end", heard.id);
        match heard.what {
            What::Tokens { ids, known } => pieces.push((ids, known)),
            What::End(told) => *end = Some(told),
        }
    }
    all
}

/// The ids of a whole answer.
fn ids(server: &mut Server, id: u64, request: Submit) -> Result<Vec<u32>, String> {
    server.submit(id, request).unwrap();
    let (pieces, end) = hear(server, &[id]).remove(&id).unwrap();
    let end = end.unwrap();
    match end.error {
        Some(why) => Err(why),
        None => {
            assert!(pieces.iter().all(|(_, known)| *known));
            Ok(pieces.into_iter().flat_map(|(ids, _)| ids).collect())
        }
    }
}

#[test]
fn who_misbehaves_fails_alone_and_says_why() {
    let url = serve("vllm", |asked, stream| {
        let begin =
            |stream: &mut TcpStream| stream.write_all(HEAD.as_bytes()).is_ok() && chunk(stream, token(1).as_bytes());
        let refuse = |stream: &mut TcpStream, status: &str, body: Value| {
            json_reply(stream, status, &body);
            true
        };
        match asked.body["prompt"][0].as_u64().unwrap() {
            1 => {
                refuse(stream, "429 Too Many Requests", json!({ "error": { "message": "so many wait", "code": 429 } }))
            }
            2 => refuse(stream, "500 Internal Server Error", json!({ "object": "error", "message": "no \u{1f980}" })),
            3 => refuse(stream, "400 Bad Request", json!({ "detail": [{ "loc": ["body", "top_k"] }] })),
            4 => stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").is_ok(),
            // Closed at once, before its end, in the middle of an event, and by a body that ends as if nothing were wrong.
            5 => false,
            6 => {
                begin(stream);
                false
            }
            7 => begin(stream) && chunk(stream, b"data: {\"choices\": [") && chunk(stream, b""),
            8 => begin(stream) && chunk(stream, b""),
            // Broken events.
            9 => begin(stream) && chunk(stream, b"data: {\"choices\": oh}\n\n"),
            10 => begin(stream) && chunk(stream, b"data: \xff\xfe\n\n"),
            11 => begin(stream) && chunk(stream, event(&json!({ "error": { "message": "out of room" } })).as_bytes()),
            // A line without end, then a stream without end.
            12 => {
                let part = [b'x'; 1 << 16];
                let _ = begin(stream) && chunk(stream, b"data: ");
                while chunk(stream, &part) {}
                false
            }
            13 => {
                let _ = begin(stream);
                while chunk(stream, token(1).as_bytes()) {}
                false
            }
            14 => begin(stream) && chunk(stream, end(9).as_bytes()) && chunk(stream, b""),
            15 => refuse(stream, "200 OK", json!({ "choices": [{ "text": "not a stream" }] })),
            16 => stream.write_all(b"HTTP/1.1 abc\r\n\r\n").is_ok(),
            _ => answer(asked, stream),
        }
    });
    let mut server = open(url);
    assert_eq!((&server.model[..], server.context, server.dialect), ("m", Some(512), Dialect::Vllm));
    assert_eq!((&server.about.engine[..], &server.about.version[..]), ("vllm", "1.2.3"));
    for (case, why) in [
        (1, "429 Too Many Requests: so many wait"),
        (2, "500 Internal Server Error: no \u{1f980}"),
        (3, "400 Bad Request: [{\"loc\":[\"body\",\"top_k\"]}]"),
        (4, "502 Bad Gateway"),
        (5, "connection closed before message completed"),
        (6, "it broke off: "),
        (7, "a broken event: EOF"),
        (8, "it ended early, after 1 of 2 tokens"),
        (9, "a broken event: expected value"),
        (10, "no UTF-8"),
        (11, "out of room"),
        (12, "an event of over 4194304 bytes"),
        (13, "2 tokens were asked for, and it goes on after 69"),
        (14, "the server counts 9 tokens, and sent 1"),
        (15, "no stream of events but application/json"),
        (16, "invalid HTTP status-code"),
    ] {
        let heard = ids(&mut server, u64::from(case), submit(case, 2)).expect_err("it misbehaves");
        assert!(heard.contains(why), "{case}: {heard}");
        assert_eq!(ids(&mut server, 100 + u64::from(case), submit(100, 3)).unwrap(), [1, 2, 3], "after {case}");
    }
}

#[test]
fn who_says_nothing_has_failed_after_a_while() {
    let url = serve("vllm", |asked, stream| {
        match asked.body["prompt"][0].as_u64().unwrap() {
            // No head; half of one; nothing after it; comments without end; events without tokens; no end after the last token.
            1 => (),
            2 => drop(stream.write_all(&HEAD.as_bytes()[..30])),
            3 => drop(stream.write_all(HEAD.as_bytes())),
            4 | 5 => {
                let _ = stream.write_all(HEAD.as_bytes());
                let keep =
                    if asked.body["prompt"][0] == 4 { ": keep\n\n".into() } else { event(&json!({ "choices": [] })) };
                while chunk(stream, keep.as_bytes()) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            _ => drop(stream.write_all(HEAD.as_bytes()).is_ok() && chunk(stream, token(1).as_bytes())),
        }
        // It waits until the other side has gone.
        let _ = stream.read(&mut [0]);
        false
    });
    let silence = Duration::from_millis(300);
    let mut server = Server::start(Options { silence, ..options(url) }, &Arc::default()).unwrap();
    let begun = Instant::now();
    (1..7).for_each(|case| server.submit(u64::from(case), submit(case, 2)).unwrap());
    for (id, (pieces, end)) in hear(&mut server, &[1, 2, 3, 4, 5, 6]) {
        assert_eq!(end.unwrap().error.unwrap(), "nothing was heard of it for 0.3 s", "{id}");
        assert_eq!(pieces.len(), usize::from(id == 6));
    }
    assert!(begun.elapsed() >= silence && begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
}

#[test]
fn an_answer_is_the_same_wherever_it_is_cut_and_is_stamped_as_it_comes() {
    let url = serve("jitune", |asked, stream| {
        assert!(asked.body.get("min_tokens").is_none() && asked.body["return_token_ids"] == true, "{}", asked.body);
        let size = asked.body["prompt"][0].as_u64().unwrap() as usize;
        let text = whole(asked).replace('\n', if size.is_multiple_of(2) { "\r\n" } else { "\n" });
        let _ = stream.write_all(HEAD.as_bytes());
        assert!(text.as_bytes().chunks(size).all(|part| chunk(stream, part)));
        chunk(stream, b"")
    });
    let mut server = open(url);
    for size in (1..40).chain([1000]) {
        assert_eq!(ids(&mut server, size, submit(size as u32, 4)).unwrap(), [1, 2, 3, 4], "{size}");
    }
    // Pieces that come 50 ms apart are 50 ms apart, however late they are asked for.
    let url = serve("jitune", |_, stream| {
        let _ = stream.write_all(HEAD.as_bytes());
        for id in 1..5 {
            let _ = chunk(stream, token(id).as_bytes());
            std::thread::sleep(Duration::from_millis(50));
        }
        chunk(stream, end(4).as_bytes()) && chunk(stream, b"")
    });
    let mut server = open(url);
    server.submit(1, submit(1, 4)).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    let mut times = Vec::new();
    while let Some(heard) = server.next(server.now()).unwrap() {
        times.push(heard.at);
    }
    assert_eq!(times.len(), 5, "{times:?}");
    // Under load one may come late, but not all at the time of the listening.
    assert!(times[4] - times[0] > Duration::from_millis(100), "{times:?}");
}

#[test]
fn tokens_without_ids_add_up_to_the_usage() {
    let url = serve("somebody", |asked, stream| {
        assert!(asked.body.get("return_token_ids").is_none() && asked.body["stream_options"]["include_usage"] == true);
        let text = |text: &str| event(&json!({ "choices": [{ "text": text, "finish_reason": null }] }));
        let _ = stream.write_all(HEAD.as_bytes());
        // Two chunks in one piece of the stream, and three tokens in the last.
        let _ = chunk(stream, (text("a") + &text("b")).as_bytes());
        let _ = chunk(stream, text("c d e").as_bytes());
        let finish = event(&json!({ "choices": [{ "text": "", "finish_reason": "length" }] }));
        let tokens = asked.body["prompt"][0].as_u64().unwrap();
        let usage = event(&json!({ "choices": [], "usage": { "completion_tokens": tokens } }));
        chunk(stream, (finish + &usage + "data: [DONE]\n\n").as_bytes()) && chunk(stream, b"")
    });
    let mut server = open(url);
    for (tokens, counts) in [(5, &[1, 1, 3][..]), (3, &[1, 1, 1]), (2, &[1, 1])] {
        server.submit(tokens, submit(tokens as u32, 5)).unwrap();
        let (pieces, end) = hear(&mut server, &[tokens]).remove(&tokens).unwrap();
        assert_eq!(end.unwrap().error, None);
        let found: Vec<usize> = pieces.iter().map(|(ids, known)| if *known { 0 } else { ids.len() }).collect();
        assert_eq!(found, counts);
    }
    server.submit(1, submit(1, 5)).unwrap();
    let (_, end) = hear(&mut server, &[1]).remove(&1).unwrap();
    assert_eq!(end.unwrap().error.unwrap(), "the server counts 1 tokens, and sent 3");
}

#[test]
fn connections_that_are_closed_between_requests_lose_none() {
    let url = serve("vllm", |asked, stream| {
        // Closed without a word, when the answer is out or a moment later.
        answer(asked, stream);
        std::thread::sleep(Duration::from_millis(asked.body["prompt"][0].as_u64().unwrap() % 5));
        false
    });
    let mut server = open(url);
    for id in 0..60 {
        let asked = submit(id as u32, 2);
        assert_eq!(ids(&mut server, id, asked).unwrap(), [1, 2], "{id}");
    }
    // Many at a time.
    (1000..1300).for_each(|id| server.submit(id, submit(id as u32, 5)).unwrap());
    let all = hear(&mut server, &(1000..1300).collect::<Vec<_>>());
    for (id, (pieces, end)) in all {
        assert_eq!((pieces.len(), end.unwrap().error), (5, None), "{id}");
    }
}

#[test]
fn a_request_that_is_cancelled_is_left_and_is_heard_no_more() {
    let (left, leaves) = channel();
    let left = Mutex::new(left);
    let url = serve("vllm", move |asked, stream| {
        if asked.body["prompt"][0] == 9 {
            return answer(asked, stream);
        }
        let _ = stream.write_all(HEAD.as_bytes());
        let mut sent = 0;
        while sent < 1000 && chunk(stream, token(1).as_bytes()) {
            sent += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = left.lock().unwrap().send(sent);
        false
    });
    let mut server = open(url);
    server.submit(1, submit(1, 1000)).unwrap();
    let first = server.next(server.now() + LONG).unwrap().unwrap();
    assert!(matches!(first.what, What::Tokens { .. }), "{first:?}");
    // It says some more before anybody listens again.
    std::thread::sleep(Duration::from_millis(50));
    server.cancel(1).unwrap();
    let (pieces, end) = hear(&mut server, &[1]).remove(&1).unwrap();
    assert!(pieces.len() < 900, "{}", pieces.len());
    assert_eq!(end.unwrap(), End { why: Finish::Cancelled, error: None, cached: None });
    assert!(leaves.recv_timeout(LONG).unwrap() < 1000, "its connection stays open");
    assert_eq!(server.next(server.now() + Duration::from_millis(50)).unwrap(), None);
    // What has ended is not cancelled, and the number of nothing neither.
    assert_eq!(ids(&mut server, 2, submit(9, 2)).unwrap(), [1, 2]);
    server.cancel(2).unwrap();
    server.cancel(77).unwrap();
    assert_eq!(server.next(server.now() + Duration::from_millis(50)).unwrap(), None);
}

#[test]
fn metrics_and_log_probabilities_are_asked_for_or_refused() {
    let url = serve("somebody", |asked, stream| {
        if asked.path == "/metrics" {
            let text = "jitune:num_requests_running{model_name=\"m\"} 4\n";
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", text.len());
            return stream.write_all((head + text).as_bytes()).is_ok();
        }
        assert!(asked.head.contains("authorization: bearer secret"), "{}", asked.head);
        let top = json!([null, { "a": -1.0 }, { "b": -2.0, "c": -0.5 }, { "d": -0.25 }]);
        match (asked.body["echo"] == true, asked.body["logprobs"].as_u64()) {
            (_, Some(21)) => {
                json_reply(stream, "400 Bad Request", &json!({ "error": { "message": "logprobs: at most 20" } }))
            }
            (true, Some(20)) => json_reply(stream, "400 Bad Request", &json!({ "error": { "message": "no echo" } })),
            (true, _) => json_reply(stream, "200 OK", &json!({ "choices": [{ "logprobs": { "top_logprobs": top } }] })),
            _ => json_reply(stream, "200 OK", &json!({ "choices": [{ "logprobs": { "top_logprobs": [top[3]] } }] })),
        }
        true
    });
    let mut server = Server::start(Options { key: Some("secret".into()), ..options(url) }, &Arc::default()).unwrap();
    assert_eq!(server.stats().unwrap(), Stats { running: Some(4), ..Stats::default() });
    let told = server.logprobs(&[1, 5, 7], 3).unwrap();
    assert_eq!(told.iter().map(|p| (p.at, p.top.len())).collect::<Vec<_>>(), [(0, 1), (1, 2), (2, 1)]);
    assert_eq!((&told[1].top[0].token[..], told[1].top[0].logprob), ("c", -0.5));
    let told = server.logprobs(&[1, 5, 7], 20).unwrap();
    assert_eq!(told.iter().map(|p| p.at).collect::<Vec<_>>(), [2]);
    let Err(Unanswered::Refused(refusal)) = server.logprobs(&[1, 5, 7], 21) else { panic!("it is refused") };
    assert_eq!((refusal.kind, &refusal.why[..]), (RefusalKind::Unsupported, "400 Bad Request: logprobs: at most 20"));
    assert!(matches!(server.reset(), Err(Unanswered::Refused(r)) if r.kind == RefusalKind::Unsupported));
}

#[test]
fn a_server_that_does_not_start_says_why() {
    let place = tempfile::tempdir().unwrap();
    let log = place.path().join("log");
    let of = |command: &str, start: Duration| Options {
        url: "http://127.0.0.1:{port}".into(),
        command: Some(command.into()),
        log: log.clone(),
        start,
        ..Options::default()
    };
    let refused = |options: Options| match Server::start(options, &Arc::default()) {
        Err(Unanswered::Refused(refusal)) => refusal,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it starts"),
    };
    let why = refused(of("echo no such model >&2; echo at port {port}; exit 3", LONG)).why;
    assert!(why.starts_with("the server ended: exit code 3; it said: no such model / at port "), "{why}");
    assert!(!why.contains("{port}"), "{why}");
    // One that never is ready ends with all that it started, and so does one that nobody waits for any more.
    let pid = |path: &str| std::fs::read_to_string(place.path().join(path)).ok()?.trim().parse::<u32>().ok();
    // Neither gone nor a zombie, though it was killed.
    let runs = |pid: u32| {
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
        };
        let begun = Instant::now();
        while state() && begun.elapsed() < LONG / 6 {
            std::thread::sleep(Duration::from_millis(5));
        }
        state()
    };
    let line = |name: &str| {
        let file = place.path().join(name);
        format!("setsid sh -c 'trap \"\" TERM; echo $$ >{}; sleep 1000' & echo ready; wait", file.display())
    };
    let why = refused(of(&line("a"), Duration::from_millis(700))).why;
    assert!(why.starts_with("it is not ready after 1 s: ") && why.ends_with("it said: ready"), "{why}");
    assert!(!runs(pid("a").unwrap()), "what it started still runs");
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| Server::start(of(&line("b"), LONG), &stop));
        while pid("b").is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(matches!(waits.join().unwrap(), Err(Unanswered::Interrupted)));
    });
    assert!(!runs(pid("b").unwrap()), "what it started still runs");
    // Nothing is there.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = refused(options(format!("http://{free}")));
    assert_eq!((nobody.kind, nobody.fix.is_some()), (RefusalKind::Missing, true), "{nobody:?}");
    assert!(refused(options("https://a.example".into())).why.contains("http://HOST:PORT"));
    let url = serve("vllm", |_, _| false);
    let other = refused(Options { model: Some("x".into()), ..options(url) });
    assert_eq!(other.why, "there is no model `x` but m");
}

#[test]
fn a_server_that_ends_while_it_runs_is_gone() {
    // Somebody else answers at its port, so that it is found ready.
    let url = serve("vllm", |_, stream| {
        let _ = stream.read(&mut [0]);
        false
    });
    let place = tempfile::tempdir().unwrap();
    let log = place.path().join("log");
    let command = Some("echo out of memory; sleep 2; exit 9".into());
    let mut server = Server::start(Options { command, log, ..options(url) }, &Arc::default()).unwrap();
    assert!(server.process_id().is_some());
    server.submit(1, submit(1, 2)).unwrap();
    let gone = server.next(server.now() + LONG).unwrap_err();
    assert_eq!(gone.why, "the server ended: exit code 9; it said: out of memory");
    assert_eq!(server.next(server.now() + LONG).unwrap_err(), gone);
}
