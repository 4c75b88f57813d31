//! The child's side: a loop that answers one request at a time.

use super::{Answer, Failure, FailureKind, Kind, Request, frame};
use crate::backend::cpu::{CpuSession, cc};
use crate::backend::cuda::{CudaSession, nvrtc};
use crate::backend::session::Session;
use crate::backend::{ArtifactInfo, BackendError};
use crate::template::{Language, Source};
use std::io;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};

/// Serves requests until the parent closes the pipe. Returns the process's exit code.
pub fn serve(kind: Kind) -> io::Result<u8> {
    if kind != Kind::Compile {
        // The kernel ends this process when the thread that started it ends, however that comes about. A compile worker
        // must not end so: its compilers would go on without it. It ends its group itself, below.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    }
    let (tell, requests) = channel();
    std::thread::spawn(move || read(&tell));
    let mut output = io::stdout().lock();
    let mut session: Option<Box<dyn Session>> = None;
    while let Ok(request) = requests.recv() {
        let Some(request) = request? else { break };
        let answer = match request {
            Request::Compile { source, folder } => compile(&source, &folder),
            request => measure(kind, &mut session, request),
        };
        let answer = answer.unwrap_or_else(|e| Answer::Failed(Failure::from(&e)));
        frame::send(&mut output, &answer)?;
        if matches!(&answer, Answer::Failed(f) if f.kind == FailureKind::Fault) {
            // The context is lost for good, and dropping the session would call into it.
            std::mem::forget(session);
            return Ok(3);
        }
    }
    Ok(0)
}

/// Reads requests as they come, also while one is worked on. The end of the pipe is the end of the parent, which nobody
/// outlives: not this process, and not the compilers that it started.
fn read(tell: &Sender<io::Result<Option<Request>>>) {
    let mut input = io::stdin().lock();
    loop {
        let request = frame::receive(&mut input);
        let last = !matches!(request, Ok(Some(_)));
        let own = rustix::process::getpid();
        if last && rustix::process::getpgrp() == own {
            // It only fails when there is no such group.
            let _ = rustix::process::kill_process_group(own, rustix::process::Signal::KILL);
        }
        if tell.send(request).is_err() || last {
            return;
        }
    }
}

fn open(kind: Kind) -> Result<Box<dyn Session>, BackendError> {
    Ok(match kind {
        Kind::Cuda(ordinal) => Box::new(CudaSession::open(ordinal)?),
        Kind::Cpu(0) => Box::new(CpuSession::open(None)?),
        Kind::Cpu(threads) => Box::new(CpuSession::open(Some(threads))?),
        Kind::Compile => return Err(BackendError::Measurement("a compile worker does not measure".into())),
    })
}

fn measure(kind: Kind, slot: &mut Option<Box<dyn Session>>, request: Request) -> Result<Answer, BackendError> {
    if slot.is_none() {
        *slot = Some(open(kind)?);
    }
    let Some(session) = slot else { return Ok(Answer::Done) };
    Ok(match request {
        Request::Device => Answer::Device(Box::new(session.device().clone())),
        Request::Ceilings { support } => Answer::Ceilings(session.ceilings(support)?),
        Request::Assume(ceilings) => {
            session.assume(ceilings);
            Answer::Done
        }
        Request::Prepare(setup) => {
            session.prepare(&setup)?;
            Answer::Done
        }
        Request::Attempt { candidate, rounds } => Answer::Tried(Box::new(session.attempt(&candidate, rounds)?)),
        Request::Finals { candidates, rounds } => Answer::Series(session.finals(&candidates, rounds)?),
        Request::Compile { .. } => Answer::Done,
    })
}

/// Compiles a source and leaves the artifact in `folder` under its hash.
fn compile(source: &Source, folder: &Path) -> Result<Answer, BackendError> {
    let (bytes, info): (Vec<u8>, ArtifactInfo) = match source.language {
        Language::Cuda => nvrtc::compile(source)?,
        Language::C => cc::compile(source, folder)?,
    };
    let hash = blake3::hash(&bytes).to_hex().to_string();
    let path = folder.join(&hash);
    let io = |source| BackendError::Io { path: path.clone(), source };
    // Another worker may write the same artifact: each writes a file of its own and moves it into place.
    let own = folder.join(format!("{hash}.{}", std::process::id()));
    std::fs::write(&own, &bytes).and_then(|()| std::fs::rename(&own, &path)).map_err(io)?;
    Ok(Answer::Compiled { path, hash, info })
}
