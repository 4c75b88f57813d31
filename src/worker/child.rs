//! The child's side: a loop that answers one request at a time.

use super::{Answer, Duty, Failure, FailureKind, Request, frame};
use crate::backend::BackendError;
use crate::backend::session::Session;
use crate::bench;
use std::io;
use std::sync::mpsc::{Sender, channel};

/// Serves requests until the parent closes the pipe. Returns the process's exit code.
pub(super) fn serve(duty: Duty) -> io::Result<u8> {
    if duty != Duty::Compile {
        // The kernel ends this process when the thread that started it ends, however that comes about. A compile worker
        // must not end so: its compilers would go on without it. It ends its group itself, below.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    }
    let (tell, requests) = channel();
    std::thread::Builder::new().spawn(move || read(&tell))?;
    let mut output = io::stdout().lock();
    let mut session: Option<Box<dyn Session>> = None;
    while let Ok(request) = requests.recv() {
        let Some(request) = request? else { break };
        let answer = match request {
            Request::Compile { source, folder } => {
                bench::compile(&source, &folder).map(|artifact| Answer::Compiled(Box::new(artifact)))
            }
            request => measure(duty, &mut session, request),
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

fn measure(duty: Duty, slot: &mut Option<Box<dyn Session>>, request: Request) -> Result<Answer, BackendError> {
    let session = match (slot.as_mut(), duty) {
        (Some(session), _) => session,
        (None, Duty::Measure(device)) => slot.insert(bench::session(device)?),
        (None, Duty::Compile) => return Err(BackendError::Measurement("a compile worker does not measure".into())),
    };
    Ok(match request {
        Request::Device => Answer::Device(Box::new(session.device().clone())),
        Request::Ceilings { support } => Answer::Ceilings(session.ceilings(&support)?),
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
