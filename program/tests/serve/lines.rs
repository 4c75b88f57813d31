//! What a server writes of its requests.

use crate::client::{Events, Server, random, request, send};
use crate::common::Place;
use crate::{COMPLETIONS, body};
use serde_json::json;
use std::fs::File;
use std::time::{Duration, Instant};

/// The parts of a line that are names and values.
fn value<'l>(line: &'l str, name: &str) -> Option<&'l str> {
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

#[test]
fn each_request_that_ended_has_a_line() {
    let server = Server::start(&["--api-key", "sesame"]);
    server.line(&[" INFO ", "started", &format!("address={}", server.address)]);
    let key = "Authorization: Bearer sesame\r\n";
    let post = |asked: &serde_json::Value, headers: &str| {
        send(&server.address, &request(COMPLETIONS, asked.to_string().as_bytes(), headers)).unwrap()
    };
    assert_eq!(post(&body(&[1, 5, 7], 9), key).status, 200);
    let line = server.line(&["done", "status=200"]);
    let expected =
        [("method", "POST"), ("path", "\"/v1/completions\""), ("prompt_tokens", "3"), ("generated_tokens", "9")];
    for (name, text) in expected {
        assert_eq!(value(&line, name), Some(text), "{line}");
    }
    let ms = |name: &str| value(&line, name).unwrap().parse::<u64>().unwrap();
    assert!(ms("first_token_ms") <= ms("total_ms"), "{line}");

    // Why one is refused is said, and nothing that the client wrote: neither what it asked, nor its key, nor a query.
    let mut wrong = body(&[1], 1);
    wrong["model"] = json!("another-model");
    assert_eq!(post(&wrong, key).status, 404);
    let line = server.line(&["refused", "status=404"]);
    assert!(value(&line, "reason") == Some("\"model_not_found\"") && value(&line, "prompt_tokens").is_none(), "{line}");
    assert_eq!(post(&json!({ "prompt": ["a-prompt"] }), key).status, 400);
    server.line(&["refused", "status=400", "reason=\"prompt\""]);
    assert_eq!(post(&body(&[1], 1), "Authorization: Bearer guessed-key\r\n").status, 401);
    server.line(&["refused", "status=401", "reason=\"invalid_api_key\""]);
    let get = |path: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{key}\r\n");
        send(&server.address, head.as_bytes()).unwrap().status
    };
    assert_eq!(get("/v1/models?a-query=secret"), 200);
    server.line(&["done", "path=\"/v1/models\""]);
    let head = format!("HEAD /v1/models/m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{key}\r\n");
    assert_eq!(send(&server.address, head.as_bytes()).unwrap().status, 200);
    server.line(&["done method=HEAD", "status=200"]);
    // Control characters that HTTP lets pass, and a mark that turns what follows.
    assert_eq!(get("/a\u{9b}31m\u{202e}b"), 404);
    server.line(&["refused", "path=\"/a\\u{9b}31m\\u{202e}b\""]);
    // What watches the server is not written.
    assert_eq!((get("/health"), get("/metrics")), (200, 200));

    // One that leaves.
    let long = json!({ "prompt": [1, 5], "n": 16, "temperature": 0, "ignore_eos": true, "stream": true });
    let mut stream = std::net::TcpStream::connect(&server.address).unwrap();
    std::io::Write::write_all(&mut stream, &request(COMPLETIONS, long.to_string().as_bytes(), key)).unwrap();
    std::io::Read::read_exact(&mut stream, &mut [0; 400]).unwrap();
    drop(stream);
    let line = server.line(&["cancelled", "prompt_tokens=2"]);
    assert!(value(&line, "generated_tokens").unwrap().parse::<u64>().unwrap() < 16 * 510, "{line}");
    let log = server.log();
    for never in
        ["another-model", "a-prompt", "sesame", "guessed-key", "secret", "/health", "/metrics", "\u{1b}", "\u{9b}"]
    {
        assert!(!log.contains(never), "{never:?}: {log}");
    }
}

#[test]
fn the_environment_says_which_lines_are_written() {
    let quiet = Server::changed(&[], |command| _ = command.env("JITUNE_LOG", "warn"));
    assert_eq!(quiet.ask(COMPLETIONS, &body(&[1], 1))["usage"]["completion_tokens"], 1);
    assert!(!quiet.log().contains("INFO"), "{}", quiet.log());
    let all = Server::changed(&[], |command| _ = command.env("JITUNE_LOG", "jitune::serve=debug"));
    assert_eq!(all.get("/health").status, 200);
    all.line(&["DEBUG", "done", "path=\"/health\""]);
}

#[test]
fn lines_that_cannot_be_written_change_nothing() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (place, address) = (Place::new(), format!("127.0.0.1:{port}"));
    let args = random();
    let mut command = place.jitune(&["serve", "--target", "cpu", "--port", &port.to_string()]);
    let mut server =
        command.args(&args).stderr(File::options().write(true).open("/dev/full").unwrap()).spawn().unwrap();
    let begun = Instant::now();
    let health = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    while send(&address, health).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(180) && server.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut asked = body(&[1, 5], 4);
    asked["stream"] = true.into();
    for _ in 0..3 {
        assert_eq!(Events::begin(&address, COMPLETIONS, &asked).unwrap().count(), 4);
    }
    server.kill().unwrap();
    server.wait().unwrap();
}
