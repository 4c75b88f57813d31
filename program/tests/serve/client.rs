//! A server of the program, and a client that says what it is told, right or wrong.

use crate::common::{Place, text};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How long anything may take on a machine that is busy with other things too.
const LONG: Duration = Duration::from_secs(60);

/// A folder with a random model of 97 tokens and 512 of context, as `m`, and a bundle of kernels for it, `m.jitune`. It stays in
/// the build folder, so that they are made once.
fn made() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("serve");
        std::fs::create_dir_all(&folder).unwrap();
        let place = Place::new();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models.json");
        let golden: Value = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
        let held = &golden["models"]["qwen3"];
        place.file("config/config.json", &held["config"].to_string());
        let (model, db) = (folder.join("m"), folder.join("db"));
        let run = |args: &[&str]| {
            let out = place.jitune(args).output().unwrap();
            assert!(out.status.success(), "{}", text(&out));
        };
        let (model, db, bundle) = (model.to_str().unwrap(), db.to_str().unwrap(), folder.join("m.jitune"));
        let _ = std::fs::remove_dir_all(model);
        run(&["model", "./config", "--init", "random:7", "--dtype", "f32", "-o", model]);
        run(&["run", "--target", "cpu", "--model", model, "--ids", "1", "--max-tokens", "1", "--db", db]);
        run(&["export", "--target", "cpu", "--db", db, "-o", bundle.to_str().unwrap()]);
        folder
    })
}

/// What serves the random model.
pub fn random() -> [String; 6] {
    let path = |name: &str| made().join(name).to_str().unwrap().to_string();
    ["--model".into(), path("m"), "--bundle".into(), path("m.jitune"), "--memory".into(), "1G".into()]
}

/// The database with portable kernels for every model.
pub fn database() -> String {
    made().join("db").to_str().unwrap().into()
}

/// A running server.
pub struct Server {
    child: Child,
    pub address: String,
    log: PathBuf,
    _place: Place,
}

impl Server {
    /// Serves the random model.
    pub fn start(more: &[&str]) -> Server {
        Server::changed(more, |_| ())
    }

    /// Serves the random model by a command that is changed before.
    pub fn changed(more: &[&str], change: impl FnOnce(&mut Command)) -> Server {
        let args = random();
        let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Server::begun(&args, change)
    }

    /// Serves what the arguments say, at any free port where they name none.
    pub fn of(args: &[&str]) -> Server {
        Server::begun(args, |_| ())
    }

    fn begun(args: &[&str], change: impl FnOnce(&mut Command)) -> Server {
        let place = Place::new();
        let log = place.path().join("log");
        let port: &[&str] = if args.contains(&"--port") { &[] } else { &["--port", "0"] };
        let mut command = place.jitune(&[&["serve", "--target", "cpu"], port, args].concat());
        let file = std::fs::File::create(&log).unwrap();
        command.env_remove("JITUNE_API_KEY");
        change(&mut command);
        command.stdout(Stdio::null()).stderr(file);
        let mut child = command.spawn().unwrap();
        let begun = Instant::now();
        loop {
            let said = std::fs::read_to_string(&log).unwrap();
            if let Some(line) = said.lines().find_map(|l| l.strip_prefix("listening on http://")) {
                return Server { child, address: line.into(), log, _place: place };
            }
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none() && begun.elapsed() < 3 * LONG, "{ended:?}: {said}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits for a line of the log that has these parts.
    pub fn line(&self, parts: &[&str]) -> String {
        let begun = Instant::now();
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| parts.iter().all(|part| line.contains(part))) {
                return line.into();
            }
            assert!(begun.elapsed() < LONG, "no line with {parts:?}: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn signal(&self, signal: &str) {
        let done = Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap();
        assert!(done.success());
    }

    /// Waits for it to end by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None => assert!(begun.elapsed() < LONG, "it goes on: {}", self.log()),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Bytes of memory that it has.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    pub fn get(&self, path: &str) -> Reply {
        send(&self.address, format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).unwrap()
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        send(&self.address, &request(path, body.to_string().as_bytes(), "")).unwrap()
    }

    /// The answer, which must be one.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        reply.json()
    }

    /// What is streamed, and the end of the stream.
    pub fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = true.into();
        let list: Vec<Value> = Events::begin(&self.address, path, &body).unwrap().collect();
        assert!(!list.is_empty(), "{body}");
        list
    }

    /// The value of a metric without labels of its own.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text();
        let line = text.lines().find(|l| l.starts_with(&format!("jitune:{name}{{")));
        line.unwrap_or_else(|| panic!("{name}: {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until the engine has nothing to do and holds nothing.
    pub fn rests(&self) {
        let begun = Instant::now();
        let names = ["num_requests_running", "num_requests_waiting", "kv_cache_pages_used"];
        while names.iter().any(|name| self.metric(name) != 0.0) {
            assert!(begun.elapsed() < LONG, "{}", self.get("/metrics").text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request with a body that is said to be JSON.
pub fn request(path: &str, body: &[u8], headers: &str) -> Vec<u8> {
    let kind = if headers.to_lowercase().contains("content-type") { "" } else { "Content-Type: application/json\r\n" };
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{kind}{headers}Content-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// What a server says to one request.
pub struct Reply {
    pub status: u16,
    pub headers: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The message of an error object, which must be one.
    pub fn refusal(&self) -> (u16, String) {
        let error = &self.json()["error"];
        assert!(error["type"].is_string() && error.get("param").is_some() && error.get("code").is_some(), "{error}");
        (self.status, error["message"].as_str().unwrap_or_else(|| panic!("{error}")).into())
    }
}

pub fn connect(address: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(LONG))?;
    stream.set_write_timeout(Some(LONG))?;
    Ok(stream)
}

/// Sends bytes, and reads what comes until the connection is closed.
pub fn send(address: &str, bytes: &[u8]) -> std::io::Result<Reply> {
    let mut stream = connect(address)?;
    stream.write_all(bytes)?;
    read(stream)
}

/// Sends bytes and says that there are no more.
pub fn send_all(address: &str, bytes: &[u8]) -> std::io::Result<Reply> {
    let mut stream = connect(address)?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    read(stream)
}

pub fn read(mut stream: TcpStream) -> std::io::Result<Reply> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let bad = || std::io::Error::other(format!("no reply: {:?}", String::from_utf8_lossy(&bytes)));
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(bad)?;
    let headers = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
    let status = headers.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(bad)?;
    let mut body = bytes[end + 4..].to_vec();
    if headers.contains("transfer-encoding: chunked") {
        let mut whole = Vec::new();
        BufReader::new(Chunked::new(&body[..])).read_to_end(&mut whole)?;
        body = whole;
    }
    Ok(Reply { status, headers, body })
}

/// The inside of a chunked body.
struct Chunked<R> {
    inner: BufReader<R>,
    left: usize,
    done: bool,
}

impl<R: Read> Chunked<R> {
    fn new(inner: R) -> Chunked<R> {
        Chunked { inner: BufReader::new(inner), left: 0, done: false }
    }
}

impl<R: Read> Read for Chunked<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 && !self.done {
            let mut line = String::new();
            self.inner.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16);
            self.left = size.map_err(|e| std::io::Error::other(format!("{line:?}: {e}")))?;
            self.done = self.left == 0;
        }
        if self.done {
            return Ok(0);
        }
        let most = self.left.min(into.len());
        let count = self.inner.read(&mut into[..most])?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count;
        if self.left == 0 {
            self.inner.read_line(&mut String::new())?;
        }
        Ok(count)
    }
}

/// The events of a stream, one by one, up to `[DONE]`. Dropping it leaves.
pub struct Events {
    lines: BufReader<Chunked<TcpStream>>,
    done: bool,
}

impl Events {
    pub fn begin(address: &str, path: &str, body: &Value) -> std::io::Result<Events> {
        let mut stream = connect(address)?;
        stream.write_all(&request(path, body.to_string().as_bytes(), ""))?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        if !head.starts_with("http/1.1 200") || !head.contains("content-type: text/event-stream") {
            return Err(std::io::Error::other(head));
        }
        Ok(Events { lines: BufReader::new(Chunked::new(stream)), done: false })
    }
}

impl Iterator for Events {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        while line.trim().is_empty() {
            if self.done || self.lines.read_line(&mut line).unwrap() == 0 {
                assert!(self.done, "the stream ends without [DONE]");
                return None;
            }
        }
        let event = line.trim().strip_prefix("data: ").unwrap_or_else(|| panic!("{line:?}"));
        if event == "[DONE]" {
            self.done = true;
            let mut rest = String::new();
            self.lines.read_to_string(&mut rest).unwrap();
            assert_eq!(rest.trim(), "", "nothing comes after [DONE]");
            return None;
        }
        Some(serde_json::from_str(event).unwrap())
    }
}

/// Numbers that a seed draws.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }

    pub fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }
}

/// A number that the environment says, or the usual one.
pub fn asked(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

/// One test after the other where they look at times or memory.
pub fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
