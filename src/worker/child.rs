//! The child's side: a loop that answers one request at a time.

use super::process::end_below;
use super::traces::Traces;
use super::{Answer, Duty, Failure, FailureKind, Numbered, Request, frame};
use crate::backend::BackendError;
use crate::backend::session::Session;
use crate::bench;
use crate::device::Target;
use crate::source::Language;
use rustix::process::{
    Signal, WaitId, WaitIdOptions, getpid, nice, set_child_subreaper, set_parent_process_death_signal, waitid,
};
use std::fs::File;
use std::io;
use std::sync::mpsc::{Sender, channel};

/// The first descriptor that the pipes to and from the parent may move to.
const BEYOND: i32 = 3;

/// How far a compiler of CUDA code steps back.
const NICE: i32 = 10;

/// Serves requests until the parent closes the pipe. Returns the process's exit code.
pub(super) fn serve(duty: Duty) -> io::Result<u8> {
    if duty != Duty::Compile {
        // The kernel ends this process when the thread that started it ends, however that comes about. A compile worker
        // must not end so: its compilers would go on without it. It ends them itself, below.
        set_parent_process_death_signal(Some(Signal::KILL))?;
    }
    // Processes that code or compilers start here and leave to others are then seen.
    set_child_subreaper(Some(getpid()))?;
    let (input, mut output) = pipes()?;
    let (tell, requests) = channel();
    std::thread::Builder::new().spawn(move || read(input, &tell))?;
    let (mut session, mut yields) = (None::<Box<dyn Session>>, false);
    while let Ok(request) = requests.recv() {
        let Some(Numbered { number, message }) = request? else { break };
        let answer = match message {
            Request::Compile { source, folder } => {
                if source.language == Language::Cuda && !std::mem::replace(&mut yields, true) {
                    // Who measures on a GPU beside this goes first: each candidate wakes some six threads in turn. That it is not allowed
                    // costs time alone.
                    let _ = nice(NICE);
                }
                let compiled = bench::compile(&source, &folder);
                end_left();
                compiled.map(|artifact| Answer::Compiled(Box::new(artifact)))
            }
            request => measure(duty, &mut session, request),
        };
        let answer = answer.unwrap_or_else(|e| Answer::Failed(Failure::from(&e)));
        let answer = Numbered { number, message: answer };
        frame::send(&mut output, &answer)?;
        if matches!(&answer.message, Answer::Failed(f) if f.kind == FailureKind::Fault) {
            // The context is lost for good, and dropping the session would call into it.
            std::mem::forget(session);
            return Ok(3);
        }
    }
    Ok(0)
}

/// Ends what a compiler left running, in whatever session or group it is.
fn end_left() {
    // Looking through all processes takes a while, and mostly there are none.
    let left = || waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT).is_ok();
    if !left() {
        return;
    }
    end_below(getpid());
    // Nobody else waits for children now: whatever ended is let go.
    while matches!(waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG), Ok(Some(_))) {}
}

/// The pipes from and to the parent, on descriptors of their own. In their place code that runs here finds nothing to
/// read, and writes where messages go.
fn pipes() -> io::Result<(File, File)> {
    let input = rustix::io::fcntl_dupfd_cloexec(io::stdin(), BEYOND)?;
    let output = rustix::io::fcntl_dupfd_cloexec(io::stdout(), BEYOND)?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    if rustix::stdio::dup2_stdout(io::stderr()).is_err() {
        rustix::stdio::dup2_stdout(&nothing)?;
    }
    Ok((input.into(), output.into()))
}

/// Reads requests as they come, also while one is worked on. The end of the pipe is the end of the parent, which nobody
/// outlives: not this process, and not the compilers that it started.
fn read(mut input: File, tell: &Sender<io::Result<Option<Numbered<Request>>>>) {
    loop {
        let request = frame::receive(&mut input);
        let last = !matches!(request, Ok(Some(_)));
        if last {
            end_below(getpid());
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
    let runs_code = matches!(request, Request::Attempt { .. } | Request::Finals { .. } | Request::Verify { .. });
    let host = matches!(duty, Duty::Measure(device) if device.target() == Target::Cpu);
    let before = (host && runs_code).then(Traces::now);
    let answer = match request {
        Request::Device => Ok(Answer::Device(Box::new(session.device().clone()))),
        Request::Ceilings { support } => session.ceilings(&support).map(Answer::Ceilings),
        Request::Assume(ceilings) => {
            session.assume(ceilings);
            Ok(Answer::Done)
        }
        Request::Prepare(setup) => session.prepare(&setup).map(|()| Answer::Done),
        Request::Attempt { candidate, rounds } => {
            session.attempt(&candidate, rounds).map(|tried| Answer::Tried(Box::new(tried)))
        }
        Request::Finals { candidates, rounds } => session.finals(&candidates, rounds).map(Answer::Timed),
        Request::Verify { candidate, elements } => session.verify(&candidate, &elements).map(|(tried, values)| {
            Answer::Verified { tried: Box::new(tried), bits: values.into_iter().map(f64::to_bits).collect() }
        }),
        Request::Compile { .. } => Ok(Answer::Done),
    };
    // The code is unloaded by now. What it left would meet those after it.
    before.map_or(Ok(()), |traces| traces.check())?;
    answer
}
