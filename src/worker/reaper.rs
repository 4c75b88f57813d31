//! The process between a parent and a worker. Processes that candidates or compilers leave behind become its children when
//! those that started them end, whatever session or group they moved to, and end with it.

use super::process::end_below;
use super::{Duty, WATCHED, WORD};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getpid, kill_process, pidfd_open, set_child_subreaper, setrlimit,
};
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};

/// Looks this often, in milliseconds, whether the worker has ended, where the system does not tell.
const LOOK_MS: i64 = 20;

/// Runs a worker, which speaks with the parent by itself; ends as it ends, and with it all that it left. When the parent
/// ends first, so does the worker. Returns the worker's exit code.
pub(super) fn watch_over(duty: Duty) -> io::Result<u8> {
    set_child_subreaper(Some(getpid()))?;
    let mut command = Command::new("/proc/self/exe");
    command.args([WORD, &duty.to_string(), WATCHED]);
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    let mut worker = command.spawn()?;
    let status = loop {
        if let Some(status) = worker.try_wait()? {
            break Some(status);
        }
        if !parent_is_there(worker.id()) {
            break None;
        }
    };
    // The worker too, where it still runs.
    end_below(getpid());
    let Some(status) = status else { return Ok(0) };
    Ok(status.code().map_or_else(|| end_as(status), |code| code as u8))
}

/// Waits until the worker ends or some time is over; says whether the parent still holds its end of the pipe.
fn parent_is_there(worker: u32) -> bool {
    let ended = Pid::from_raw(worker as i32).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let input = io::stdin();
    // Without events only the end of the other side is told. What is in the pipe is the worker's to read.
    let mut both = vec![PollFd::new(&input, PollFlags::empty())];
    both.extend(ended.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
    let soon = Timespec { tv_sec: 0, tv_nsec: LOOK_MS * 1_000_000 };
    // Interrupted, it is asked again.
    let told = poll(&mut both, if ended.is_some() { None } else { Some(&soon) });
    !(told.is_ok() && both[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL))
}

/// Ends this process by the signal that ended the worker, so that the parent sees it.
fn end_as(status: ExitStatus) -> u8 {
    // One core file of it is enough.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    // A first one may only put its usual effect back in place: the language's own handler looks for overflown stacks.
    for signal in [status.signal(); 2].into_iter().flatten().filter_map(Signal::from_named_raw) {
        let _ = kill_process(getpid(), signal);
    }
    4
}
