//! The configuration for nginx in a real nginx, where one is installed.

use jitune::engines::report::proxy::{Places, nginx};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

/// A server that answers its name after a while.
struct Server {
    at: SocketAddr,
    alive: Arc<AtomicBool>,
    /// Requests that it has read.
    taken: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn new(name: &'static str, takes: Duration) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let at = listener.local_addr().unwrap();
        let (alive, taken) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let (on, count) = (alive.clone(), taken.clone());
        let thread = std::thread::spawn(move || {
            while on.load(Ordering::SeqCst) {
                let Ok((stream, _)) = listener.accept() else {
                    sleep(Duration::from_micros(200));
                    continue;
                };
                let (on, count) = (on.clone(), count.clone());
                std::thread::spawn(move || drop(answer(stream, name, takes, &on, &count)));
            }
        });
        Server { at, alive, taken, thread: Some(thread) }
    }

    /// As the end of a process: nobody listens any more, and connections are closed in the midst of what they did.
    fn kill(&mut self) {
        self.alive.store(false, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn answer(
    mut stream: TcpStream,
    name: &str,
    takes: Duration,
    on: &AtomicBool,
    count: &AtomicUsize,
) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut request = Vec::new();
    let mut part = [0; 1024];
    // Every request of these tests ends so.
    while !request.ends_with(b"\"end\"}") {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            n => request.extend(&part[..n]),
        }
    }
    count.fetch_add(1, Ordering::SeqCst);
    let begun = Instant::now();
    while begun.elapsed() < takes {
        sleep(Duration::from_millis(1));
        if !on.load(Ordering::SeqCst) {
            return Ok(());
        }
    }
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}", name.len())
}

/// Who answered a request; or its status.
fn ask(at: SocketAddr) -> Result<String, String> {
    let body = "{\"prompt\": \"end\"}";
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(at)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = ask().map_err(|e| e.to_string())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no answer")?;
    if head.starts_with("HTTP/1.1 200") { Ok(body.into()) } else { Err(head.lines().next().unwrap_or("").into()) }
}

fn run(folder: &Path, args: &[&str]) -> std::io::Result<Output> {
    let conf = folder.join("nginx.conf");
    Command::new("nginx").args(["-p", folder.to_str().unwrap(), "-c", conf.to_str().unwrap()]).args(args).output()
}

/// Whether nginx takes the configuration in a folder; none where there is no nginx, or it may not be run.
fn accepts(folder: &Path) -> Option<bool> {
    let Ok(out) = run(folder, &["-t", "-g", &format!("pid {}/pid;", folder.display())]) else {
        eprintln!("SKIPPED: no nginx here; apt-get install -y nginx-light");
        return None;
    };
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    if text.contains("Permission denied") && !out.status.success() {
        eprintln!("SKIPPED: nginx cannot make its folders here: {text}");
        return None;
    }
    if !out.status.success() {
        eprintln!("{text}");
    }
    Some(out.status.success())
}

#[test]
fn nginx_takes_the_configuration_at_every_share() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nginx.conf");
    std::fs::write(&path, nginx(&Places::default())).unwrap();
    let Some(taken) = accepts(folder.path()) else { return };
    assert!(taken, "{}", nginx(&Places::default()));
    std::fs::write(&path, "events {} http { upstream gpu { servers x; } }").unwrap();
    assert_eq!(accepts(folder.path()), Some(false), "a wrong configuration is taken");
    std::fs::write(&path, nginx(&Places::default())).unwrap();
    // The commands of the recommendation, but for the reload of a server that does not run here.
    let report = crate::whole();
    let steps = report.recommendation.migration.iter().flat_map(|s| &s.commands);
    let edits: Vec<&str> = steps.filter(|c| c.starts_with("sed ")).map(|c| c.split_once(" && ").unwrap().0).collect();
    assert_eq!(edits.len(), 4);
    for (edit, share) in edits.iter().zip(["25%", "50%", "100%", "# 100%"]) {
        let out = Command::new("sh").args(["-c", edit]).current_dir(folder.path()).output().unwrap();
        assert!(out.status.success(), "{edit}: {}", String::from_utf8_lossy(&out.stderr));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(&format!("        {share} gpu;")), "{edit}: {text}");
        assert_eq!(accepts(folder.path()), Some(true), "{share}");
    }
    // What was taken back can be given again.
    let again = Command::new("sh").args(["-c", edits[0]]).current_dir(folder.path()).status().unwrap();
    assert!(again.success() && std::fs::read_to_string(&path).unwrap().contains("        25% gpu;"));
    std::fs::write(&path, nginx(&Places { share: 0, ..Places::default() })).unwrap();
    assert_eq!(accepts(folder.path()), Some(true));
}

/// A running nginx, ended with the test.
struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGTERM, so that its workers end as well.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

/// nginx before two servers, listening; none where there is none.
fn proxy(folder: &Path, gpu: SocketAddr, cpu: SocketAddr, share: u32) -> Option<(Nginx, SocketAddr)> {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let places = Places { listen: free.to_string(), gpu: gpu.to_string(), cpu: cpu.to_string(), share };
    std::fs::write(folder.join("nginx.conf"), nginx(&places)).unwrap();
    if !accepts(folder)? {
        panic!("nginx does not take its configuration");
    }
    let global = format!("daemon off; pid {}/pid;", folder.display());
    let child = Command::new("nginx")
        .args(["-p", folder.to_str().unwrap(), "-c", folder.join("nginx.conf").to_str().unwrap(), "-g", &global])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let nginx = Nginx(child);
    let begun = Instant::now();
    while TcpStream::connect(free).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "nginx does not listen");
        sleep(Duration::from_millis(10));
    }
    Some((nginx, free))
}

#[test]
fn the_cpu_engine_takes_over_when_the_gpu_server_is_killed() {
    const CLIENTS: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    let (mut gpu, cpu) = (Server::new("gpu", Duration::from_millis(60)), Server::new("cpu", Duration::from_millis(5)));
    let Some((_nginx, at)) = proxy(folder.path(), gpu.at, cpu.at, 100) else { return };
    let begun = Instant::now();
    let until = Duration::from_millis(1500);
    // Each request: when it was sent, and who answered.
    let all: Mutex<Vec<(Duration, Result<String, String>)>> = Mutex::new(Vec::new());
    let mut killed = Duration::ZERO;
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while begun.elapsed() < until {
                    let sent = begun.elapsed();
                    let answer = ask(at);
                    all.lock().unwrap().push((sent, answer));
                }
            });
        }
        sleep(Duration::from_millis(500));
        gpu.kill();
        killed = begun.elapsed();
    });
    let all = all.into_inner().unwrap();
    let by = |name: &str| all.iter().filter(|(_, a)| a.as_deref() == Ok(name)).count();
    let lost: Vec<_> = all.iter().filter(|(_, a)| a.is_err()).collect();
    let (by_gpu, by_cpu) = (by("gpu"), by("cpu"));
    assert!(by_gpu >= 3 * CLIENTS && by_cpu > 20 * CLIENTS, "{by_gpu} {by_cpu}");
    assert_eq!(by_gpu + by_cpu + lost.len(), all.len());
    // Lost is at most what the GPU's server had in hand; nothing that was sent later, and nothing before.
    assert!(lost.len() <= CLIENTS, "{lost:?}");
    for (sent, answer) in &lost {
        let ago = killed.checked_sub(*sent).unwrap_or_else(|| panic!("sent at {sent:?}, lost: {answer:?}"));
        assert!(ago < Duration::from_millis(400), "sent {ago:?} before the end, lost: {answer:?}");
    }
    // What was in hand was not computed a second time.
    assert_eq!(cpu.taken.load(Ordering::SeqCst), by_cpu);
    assert!(gpu.taken.load(Ordering::SeqCst) - by_gpu <= lost.len(), "a request that it had read was sent on");
}

#[test]
fn requests_are_shared_as_the_configuration_says() {
    let folder = tempfile::tempdir().unwrap();
    let (gpu, cpu) = (Server::new("gpu", Duration::ZERO), Server::new("cpu", Duration::ZERO));
    let Some((_nginx, at)) = proxy(folder.path(), gpu.at, cpu.at, 25) else { return };
    let answers: Vec<_> = (0..800).map(|_| ask(at).unwrap()).collect();
    let share = answers.iter().filter(|a| *a == "gpu").count() as f64 / 800.0;
    // Four standard deviations about a quarter.
    assert!((share - 0.25).abs() < 0.0613, "{share}");
}
