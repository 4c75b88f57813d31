//! OpenAI's HTTP API on top of an [`Engine`].
//!
//! A body is read to a job (`api.rs`): a request to the engine for each answer. What the engine says of them becomes pieces
//! of text (`running.rs`), and these one answer or a stream of chunks (`answer.rs`, `sse.rs`), of either API. The engine's
//! thread is the only one that takes steps; here is HTTP and nothing else. docs/serving.md says what clients may ask.

mod answer;
mod api;
mod fields;
mod http;
mod log;
mod metrics;
mod refusal;
mod running;
mod sse;
mod text;

use crate::engine::Engine;
use crate::tokenizer::Tokenizer;
use axum::Router;
use http::Shared;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// How often it is looked whether the server should stop.
const LOOK: Duration = Duration::from_millis(50);
/// Threads that speak HTTP: the engine has the cores.
const THREADS: usize = 4;
/// Bytes of a request's first line and headers.
const HEAD: usize = 64 << 10;
/// Files that the process keeps for all but connections; the spare ones are among these.
const OTHER_FILES: u64 = 128;
/// Connections beyond the most, on which nothing but `/health` and `/metrics` is answered.
const SPARE: usize = 16;
/// How long a client may take on one of them, and how long where another one waits for it.
const SPARE_PATIENCE: Duration = Duration::from_secs(5);
const SPARE_TURN: Duration = Duration::from_millis(100);
/// How long clients have to be told that their requests were ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why models cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address.
    #[error("cannot listen on {address}: {source}; {}", of_address(source))]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// Threads.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    /// The engine has ended.
    #[error("the engine has ended: {0}")]
    Engine(String),
    /// Requests were ended, since the time for them was over.
    #[error(
        "{requests} of the requests in hand were not answered {seconds} s after the server was told to stop, and were ended; \
         --drain-timeout gives them longer"
    )]
    CutOff {
        /// How many.
        requests: usize,
        /// What [`Options::drain`] gives them.
        seconds: u64,
    },
}

/// What helps where an address cannot be listened on.
fn of_address(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::AddrNotAvailable => "this machine has no such address; --host names one of its own",
        std::io::ErrorKind::PermissionDenied => "--port names one that needs no rights, from 1024 on",
        _ => "--port names another port, 0 any free one",
    }
}

/// A model as it is served.
pub struct Served {
    /// What clients call it.
    pub name: String,
    /// What runs it; its options say how many requests wait, and how long an answer may be.
    pub engine: Engine,
    /// Without one, prompts are lists of tokens, and answers too.
    pub tokenizer: Option<Tokenizer>,
    /// Tokens that end an answer.
    pub ends: Vec<i32>,
}

/// Limits, each with a default.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// What clients must send as `Authorization: Bearer KEY`, if anything.
    pub key: Option<String>,
    /// Most bytes of a body.
    pub body: usize,
    /// Most connections at a time, and no more than the process may have files. Beyond them only `/health` and `/metrics` are
    /// answered.
    pub connections: usize,
    /// How long a client may take for a request's head, for its body, and to read what it was sent.
    pub patience: Duration,
    /// How long requests in hand may still run when the server is told to stop.
    pub drain: Duration,
}

impl Default for Options {
    /// No key, 4 MiB, 4096 connections, 30 s, 30 s.
    fn default() -> Options {
        let patience = Duration::from_secs(30);
        Options { key: None, body: 4 << 20, connections: 4096, patience, drain: patience }
    }
}

/// An address that nobody else has, where nothing listens yet.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    socket: TcpSocket,
    address: SocketAddr,
}

impl Server {
    /// Takes the address. Port 0 is any free one.
    pub fn bind(address: SocketAddr) -> Result<Server, ServeError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(cores.min(THREADS))
            .thread_name("jitune-http")
            .enable_all()
            .build()?;
        let bound = || {
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // Connections of a process before this one may still be on their way out.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let address = socket.local_addr()?;
            Ok((socket, address))
        };
        let (socket, address) = bound().map_err(|source| ServeError::Listen { address, source })?;
        Ok(Server { runtime, socket, address })
    }

    /// Where it will listen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is set: then it takes no more requests (503), and returns when those that run have been answered, or
    /// were ended after [`Options::drain`] ([`ServeError::CutOff`]). `listening` hears when clients can connect.
    pub fn run(
        self,
        served: Served,
        options: Options,
        stop: &AtomicBool,
        listening: impl FnOnce(SocketAddr),
    ) -> Result<(), ServeError> {
        let Server { runtime, socket, address } = self;
        let (connections, patience, most) = (permitted(options.connections), options.patience, options.drain);
        let shared = Arc::new(Shared::new(served, options));
        let done = runtime.block_on(async {
            let listener = socket.listen(1024).map_err(|source| ServeError::Listen { address, source })?;
            let doors = Doors {
                router: http::router(Arc::clone(&shared)),
                spare_router: http::spare_router(Arc::clone(&shared)),
                stopping: shared.stopping.subscribe(),
                open: Arc::default(),
                places: Arc::new(Semaphore::new(connections)),
                spare: Arc::new(Semaphore::new(SPARE)),
                patience,
            };
            let open = Arc::clone(&doors.open);
            tokio::spawn(doors.accept(listener));
            tracing::info!(target: "jitune::serve", %address, connections, "started");
            listening(address);
            while !stop.load(Ordering::Relaxed) && shared.engine.failure().is_none() {
                tokio::time::sleep(LOOK).await;
            }
            let (begun, seconds) = (Instant::now(), most.as_secs());
            let in_hand = || shared.in_hand.count.load(Ordering::Relaxed);
            tracing::info!(target: "jitune::serve", requests = in_hand(), seconds, "drain begins");
            shared.stopping.send_replace(true);
            let none_left = async || {
                while open.load(Ordering::Relaxed) > 0 {
                    tokio::time::sleep(LOOK).await;
                }
            };
            let mut requests = 0;
            if timeout(most, none_left()).await.is_err() {
                requests = in_hand();
                shared.in_hand.cut_off.send_replace(true);
                let _ = timeout(LAST_WORDS, none_left()).await;
            }
            let total_ms = begun.elapsed().as_millis() as u64;
            tracing::info!(target: "jitune::serve", stopped = requests, total_ms, "drain ended");
            match shared.engine.failure() {
                Some(why) => Err(ServeError::Engine(why)),
                None if requests > 0 => Err(ServeError::CutOff { requests, seconds }),
                None => Ok(()),
            }
        });
        // Texts that are still on their way to tokens have nobody to wait for them.
        runtime.shutdown_timeout(LOOK);
        done
    }
}

/// So many connections, as far as the process may have as many files.
fn permitted(most: usize) -> usize {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    let files = usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX);
    most.min(files).clamp(1, Semaphore::MAX_PERMITS)
}

/// Where clients come in.
struct Doors {
    router: Router,
    spare_router: Router,
    stopping: watch::Receiver<bool>,
    /// Connections from before it began to stop.
    open: Arc<AtomicUsize>,
    places: Arc<Semaphore>,
    spare: Arc<Semaphore>,
    patience: Duration,
}

/// What a connection takes.
enum Place {
    /// One of the most.
    Whole(#[expect(dead_code)] OwnedSemaphorePermit),
    /// One beyond them.
    Spare(#[expect(dead_code)] OwnedSemaphorePermit),
}

/// A connection that is waited for.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Doors {
    async fn accept(self, listener: TcpListener) {
        let mut on_spare = VecDeque::with_capacity(SPARE);
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let Some(place) = self.place(&mut on_spare).await else { return };
                    let is_spare = matches!(place, Place::Spare(_));
                    let task = self.connection(stream, place);
                    if is_spare {
                        on_spare.push_back((Instant::now(), task));
                    }
                }
                // No more files, say. It passes, and there is nobody to tell.
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// One of the most, or a spare one: that of the client that has had it longest, where none is free. None when the server has ended.
    async fn place(&self, on_spare: &mut VecDeque<(Instant, AbortHandle)>) -> Option<Place> {
        let whole = || Arc::clone(&self.places).try_acquire_owned().ok().map(Place::Whole);
        if let Some(place) = whole() {
            return Some(place);
        }
        loop {
            on_spare.retain(|(_, task)| !task.is_finished());
            let left = on_spare.front().map_or(Duration::MAX, |(since, _)| SPARE_TURN.saturating_sub(since.elapsed()));
            if let Ok(spare) = timeout(left, Arc::clone(&self.spare).acquire_owned()).await {
                return Some(whole().unwrap_or(Place::Spare(spare.ok()?)));
            }
            if let Some((_, task)) = on_spare.pop_front() {
                task.abort();
            }
        }
    }

    /// Serves a connection, which ends with its answer when the server stops.
    fn connection(&self, stream: TcpStream, place: Place) -> AbortHandle {
        let mut stopping = self.stopping.clone();
        // One that comes later hears that it is too late, and nobody waits for it.
        let open = (!*stopping.borrow()).then(|| {
            self.open.fetch_add(1, Ordering::Relaxed);
            Open(Arc::clone(&self.open))
        });
        // Each token is sent when it is there.
        let _ = stream.set_nodelay(true);
        // A client that reads nothing is left after a while; the system looks after that.
        #[cfg(target_os = "linux")]
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, self.patience.as_millis() as u32);
        let (router, patience, stays) = match place {
            Place::Whole(_) => (&self.router, self.patience, true),
            Place::Spare(_) => (&self.spare_router, self.patience.min(SPARE_PATIENCE), false),
        };
        let (answers, asked) = (TowerToHyperService::new(router.clone()), Arc::new(AtomicBool::new(false)));
        let heard = Arc::clone(&asked);
        let service = service_fn(move |request| {
            heard.store(true, Ordering::Relaxed);
            answers.call(request)
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(patience).max_buf_size(HEAD).keep_alive(stays);
        let task = tokio::spawn(async move {
            let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
            if open.is_some() {
                let mut silent = stopping.clone();
                let mut stop = pin!(stopping.wait_for(|stopping| *stopping));
                let mut told = false;
                // Of a first request whose head does not come there is nothing to end.
                let too_late = async {
                    let _ = silent.wait_for(|stopping| *stopping).await;
                    tokio::time::sleep(http::LAST_BODIES).await;
                    if asked.load(Ordering::Relaxed) {
                        std::future::pending::<()>().await;
                    }
                };
                let served = std::future::poll_fn(|cx| {
                    if !told && stop.as_mut().poll(cx).is_ready() {
                        told = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    connection.as_mut().poll(cx)
                });
                // What a client does wrong is its own matter, and it was told where it can be.
                let _ = http::before(served, too_late).await;
            } else {
                let _ = connection.await;
            }
            drop((open, place));
        });
        task.abort_handle()
    }
}
