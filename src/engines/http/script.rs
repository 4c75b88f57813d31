//! A server of a script, for tests: what it does with a request, a closure says.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// The head of a stream of events.
pub const HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n";

/// A request as it came.
pub struct Asked {
    pub path: String,
    pub head: String,
    pub body: Value,
}

/// Serves each connection in a thread of its own; `script` says whether to go on with the connection.
pub fn serve(owner: &'static str, script: impl Fn(&Asked, &mut TcpStream) -> bool + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let script = Arc::new(script);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, script) = (stream.unwrap(), Arc::clone(&script));
            std::thread::spawn(move || connection(owner, stream, &*script));
        }
    });
    format!("http://{address}/v1/")
}

fn connection(owner: &str, mut stream: TcpStream, script: &dyn Fn(&Asked, &mut TcpStream) -> bool) {
    let mut from = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if from.read_line(&mut head).unwrap_or(0) == 0 {
                return;
            }
        }
        let path = head.split(' ').nth(1).unwrap().to_owned();
        let head = head.to_lowercase();
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; length];
        from.read_exact(&mut body).unwrap();
        let asked = Asked { path, head, body: serde_json::from_slice(&body).unwrap_or_default() };
        let whole = match &asked.path[..] {
            "/health" => json!({}),
            "/version" => json!({ "version": "1.2.3" }),
            "/v1/models" => json!({ "data": [{ "id": "m", "owned_by": owner, "max_model_len": 512 }] }),
            _ => {
                if script(&asked, &mut stream) {
                    continue;
                }
                return;
            }
        };
        json_reply(&mut stream, "200 OK", &whole);
    }
}

pub fn json_reply(stream: &mut TcpStream, status: &str, body: &Value) {
    let body = body.to_string();
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    let _ = stream.write_all((head + &body).as_bytes());
}

/// One chunk of a body. False when nobody reads.
pub fn chunk(stream: &mut TcpStream, text: &[u8]) -> bool {
    let framed = [format!("{:x}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat();
    stream.write_all(&framed).is_ok()
}

pub fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

pub fn token(id: u32) -> String {
    event(&json!({ "choices": [{ "index": 0, "text": "é", "token_ids": [id], "finish_reason": null }], "usage": null }))
}

/// The end of an answer of so many tokens.
pub fn end(tokens: usize) -> String {
    let finish = json!({ "choices": [{ "text": "", "token_ids": [], "finish_reason": "length" }] });
    let usage = json!({ "choices": [], "usage": { "completion_tokens": tokens } });
    event(&finish) + &event(&usage) + "data: [DONE]\n\n"
}

/// A whole answer: the tokens 1 to the number that is asked for.
pub fn whole(asked: &Asked) -> String {
    let most = asked.body["max_tokens"].as_u64().unwrap() as u32;
    (1..most + 1).map(token).collect::<String>() + &end(most as usize)
}

pub fn answer(asked: &Asked, stream: &mut TcpStream) -> bool {
    stream.write_all(HEAD.as_bytes()).is_ok() && chunk(stream, whole(asked).as_bytes()) && chunk(stream, b"")
}
