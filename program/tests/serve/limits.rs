//! What a server does where something is over: its connections, or the time to end.

use crate::client::{Events, Server, connect, read, request, send};
use crate::{COMPLETIONS, body, ids};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// Many answers that have to wait for each other.
fn long() -> Value {
    json!({ "prompt": vec![[1, 5]; 8], "n": 16, "temperature": 0, "ignore_eos": true, "stream": true })
}

#[test]
fn what_still_runs_when_the_time_is_over_is_ended() {
    let mut server = Server::start(&["--sequences", "1", "--drain-timeout", "0"]);
    // A body that never comes, a stream, and an answer that is not streamed.
    let mut half = connect(&server.address).unwrap();
    let bytes = request(COMPLETIONS, body(&[1], 1).to_string().as_bytes(), "");
    half.write_all(&bytes[..bytes.len() - 5]).unwrap();
    let mut events = Events::begin(&server.address, COMPLETIONS, &long()).unwrap();
    assert!(events.next().is_some());
    let mut whole = long();
    whole["stream"] = false.into();
    let mut waits = connect(&server.address).unwrap();
    waits.write_all(&request(COMPLETIONS, whole.to_string().as_bytes(), "")).unwrap();
    while server.metric("num_requests_waiting") < 128.0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    server.signal("-TERM");
    let error = events.last().unwrap()["error"].clone();
    assert_eq!((error["code"].as_str(), error["type"].as_str()), (Some("stopped"), Some("server_error")), "{error}");
    for stream in [waits, half] {
        let reply = read(stream).unwrap();
        assert!(reply.headers.contains("retry-after: 1"), "{}", reply.headers);
        assert_eq!((reply.refusal().0, reply.json()["error"]["code"].as_str()), (503, Some("stopped")));
    }
    assert_eq!(server.ended().code(), Some(1), "{}", server.log());
    let log = server.log();
    assert!(log.contains("jitune: 3 of the requests in hand were not answered 0 s after"), "{log}");
    let stopped: Vec<&str> = log.lines().filter(|line| line.contains(" stopped method=POST")).collect();
    assert_eq!(stopped.len(), 3, "{log}");
    assert!(stopped.iter().any(|line| line.contains("status=200")), "{log}");
    let at = |part: &str| log.find(part).unwrap_or_else(|| panic!("{part}: {log}"));
    assert!(
        at("drain begins requests=3") < at(" stopped method") && at(" stopped method") < at("drain ended stopped=3")
    );
}

#[test]
fn bodies_that_do_not_come_are_no_reason_to_wait() {
    let mut server = Server::start(&[]);
    let mut half = connect(&server.address).unwrap();
    let bytes = request(COMPLETIONS, body(&[1], 1).to_string().as_bytes(), "");
    half.write_all(&bytes[..bytes.len() - 5]).unwrap();
    // Nor is a head.
    let mut less = connect(&server.address).unwrap();
    less.write_all(b"P").unwrap();
    let begun = Instant::now();
    while server.metric("num_requests_running") > 0.0 || begun.elapsed() < Duration::from_millis(200) {
        std::thread::sleep(Duration::from_millis(20));
    }
    server.signal("-TERM");
    let begun = Instant::now();
    let reply = read(half).unwrap();
    assert_eq!((reply.refusal().0, reply.json()["error"]["code"].as_str()), (503, Some("stopping")));
    assert_eq!(server.ended().code(), Some(0), "{}", server.log());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

/// The same command, begun by another one that is given it.
fn under(by: &str, command: &Command) -> Command {
    let mut under = Command::new(by);
    under.arg(command.get_program()).args(command.get_args());
    under.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    if let Some(folder) = command.get_current_dir() {
        under.current_dir(folder);
    }
    under
}

#[test]
fn a_terminal_that_closes_ends_it_unless_it_was_told_to_stay() {
    let mut server = Server::start(&[]);
    server.signal("-HUP");
    assert_eq!(server.ended().code(), Some(0), "{}", server.log());

    let mut server = Server::changed(&[], |command| *command = under("nohup", command));
    server.signal("-HUP");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(ids(&server.ask(COMPLETIONS, &body(&[1, 5], 5)), 0).len(), 5);
    server.signal("-TERM");
    assert_eq!(server.ended().code(), Some(0), "{}", server.log());
}

#[test]
fn nothing_in_hand_is_no_reason_to_wait() {
    let mut server = Server::start(&["--drain-timeout", "0"]);
    // One that has been answered and stays, and one that says nothing.
    let mut idle = connect(&server.address).unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    idle.read_exact(&mut [0; 20]).unwrap();
    let silent = connect(&server.address).unwrap();
    server.signal("-INT");
    assert_eq!(server.ended().code(), Some(0), "{}", server.log());
    assert!(server.log().contains("drain ended stopped=0"), "{}", server.log());
    drop((idle, silent));
}

#[test]
fn health_is_told_when_all_connections_are_in_use() {
    // As many files as leave some connections.
    let most = Rlimit { current: Some(128 + 12), maximum: Some(128 + 12) };
    let server = Server::changed(&[], |command| {
        // What runs there is one system call.
        unsafe { command.pre_exec(move || setrlimit(Resource::Nofile, most).map_err(Into::into)) };
    });
    server.line(&["started", "connections=12"]);
    let get = |path: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        send(&server.address, head.as_bytes()).unwrap()
    };
    // Connections that stay are in use as long as they are not closed, which takes a while; they ask again before.
    let stay = || -> TcpStream {
        let mut stream = connect(&server.address).unwrap();
        stream.write_all(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).unwrap();
        assert_eq!(&begin, b"HTTP/1.1 200");
        stream
    };
    let held: Vec<TcpStream> = (0..12).map(|_| stay()).collect();
    assert_eq!((get("/health").status, get("/metrics").status), (200, 200));
    let full = get("/v1/models");
    assert_eq!((full.status, full.json()["error"]["code"].as_str()), (503, Some("connections_full")));
    assert_eq!(server.post("/health", &json!({})).refusal().0, 405);
    assert!(full.headers.contains("retry-after: 1") && full.headers.contains("connection: close"), "{}", full.headers);
    // Whoever says nothing on a spare one makes room at once for whoever comes next: 16 of them in a tenth of a second.
    let silent: Vec<TcpStream> = (0..60).map(|_| connect(&server.address).unwrap()).collect();
    let begun = Instant::now();
    assert_eq!(get("/health").status, 200);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    drop(silent);
    // And what is free again is used again.
    drop(held);
    let begun = Instant::now();
    while get("/v1/models").status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(50));
    }
}
