//! One measuring worker of one device: asks it, replaces it when it is lost, and makes sure that the replacement works.

use super::TuneError;
use crate::artifact::Artifact;
use crate::backend::session::{Runnable, Series, Setup, Tried};
use crate::device::{Ceilings, Device, DeviceId};
use crate::sync::lock;
use crate::verdict::{Judged, Standing, Verdict};
use crate::worker::{Answer, Duty, Failure, FailureKind, Lost, Request, Worker};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How long describing a device or measuring its ceilings may take.
const SLOW: Duration = Duration::from_secs(120);
/// Workers that may be lost in a row without a right candidate in between before the device is given up.
const LOST_IN_A_ROW: u32 = 24;

/// Where the time of a measuring worker went, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Spent {
    /// Making inputs and references.
    pub preparing: f64,
    /// Loading and checking candidates.
    pub verifying: f64,
    /// Timing them.
    pub measuring: f64,
    /// None of the others: waiting for the compilers, above all.
    pub waiting: f64,
    /// Replacing lost workers.
    pub recovering: f64,
}

impl Spent {
    /// All but waiting.
    pub(super) fn busy(&self) -> f64 {
        self.preparing + self.verifying + self.measuring + self.recovering
    }

    /// Adds another's times.
    pub fn add(&mut self, o: &Spent) {
        self.preparing += o.preparing;
        self.verifying += o.verifying;
        self.measuring += o.measuring;
        self.waiting += o.waiting;
        self.recovering += o.recovering;
    }
}

/// A device's measuring worker, whatever happens to the process behind it. The lanes of a device take turns at it.
pub struct Measurer {
    exe: PathBuf,
    id: DeviceId,
    worker: Option<Worker>,
    device: Device,
    setup: Option<Setup>,
    preparing: Duration,
    canary: Option<Runnable>,
    lost: u32,
    /// Set where everything is to end at once.
    halt: Arc<AtomicBool>,
    /// Where the time went.
    pub spent: Spent,
}

impl Measurer {
    /// Starts the worker and asks for the device. Once `halt` is set every question ends with
    /// [`TuneError::Interrupted`], and the worker with it.
    pub fn start(exe: PathBuf, id: DeviceId, halt: Arc<AtomicBool>) -> Result<Measurer, TuneError> {
        let mut worker = Worker::start(&exe, Duty::Measure(id))?;
        let device = match worker.ask(&Request::Device, SLOW, &halt)? {
            Answer::Device(d) => *d,
            Answer::Failed(f) => return Err(TuneError::Device(f)),
            _ => return Err(unexpected()),
        };
        Ok(Measurer {
            exe,
            id,
            worker: Some(worker),
            device,
            setup: None,
            preparing: Duration::ZERO,
            canary: None,
            lost: 0,
            halt,
            spent: Spent::default(),
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How long it took to make the problem ready.
    pub fn preparing(&self) -> Duration {
        self.preparing
    }

    /// Measures the device's ceilings.
    pub fn ceilings(&mut self, support: Artifact) -> Result<Ceilings, TuneError> {
        match self.ask(&Request::Ceilings { support }, SLOW)? {
            Answer::Ceilings(c) => {
                self.device.ceilings = c;
                Ok(c)
            }
            Answer::Failed(f) => Err(TuneError::Device(f)),
            _ => Err(unexpected()),
        }
    }

    /// Makes a problem ready, unless it is. A worker that is lost over it twice costs this problem alone.
    pub fn ready(&mut self, setup: &Setup) -> Result<(), TuneError> {
        if self.setup.as_ref() == Some(setup) && self.worker.is_some() {
            return Ok(());
        }
        let start = std::time::Instant::now();
        (self.canary, self.setup) = (None, None);
        if self.worker.is_none() {
            self.assume_again()?;
        }
        let request = Request::Prepare(Box::new(setup.clone()));
        let mut answer = self.ask(&request, SLOW);
        if let Err(TuneError::Lost(_)) = answer {
            answer = self.assume_again().and_then(|()| self.ask(&request, SLOW));
        }
        self.preparing = start.elapsed();
        self.spent.preparing += self.preparing.as_secs_f64();
        match answer {
            Ok(Answer::Done) => {
                self.setup = Some(setup.clone());
                Ok(())
            }
            Ok(Answer::Failed(f)) => Err(TuneError::Prepare(f)),
            Ok(_) => Err(unexpected()),
            Err(TuneError::Lost(lost)) => {
                Err(TuneError::Prepare(Failure { kind: FailureKind::Environment, message: lost.to_string() }))
            }
            Err(e) => Err(e),
        }
    }

    /// Starts a worker where there is none, with the ceilings that are known.
    fn assume_again(&mut self) -> Result<(), TuneError> {
        match self.ask(&Request::Assume(self.device.ceilings), SLOW)? {
            Answer::Failed(f) => Err(TuneError::Device(f)),
            _ => Ok(()),
        }
    }

    /// Checks a candidate and times it. What may be the machine's doing is tried again, with twice the time, in another
    /// worker, where a candidate that is known to be right has just run. An error means that the device itself no longer
    /// works.
    pub(crate) fn attempt(
        &mut self,
        candidate: &Runnable,
        rounds: u32,
        deadline: Duration,
    ) -> Result<Judged, TuneError> {
        let first = self.once(candidate, rounds, deadline)?;
        if first.standing != Standing::Open {
            return Ok(first);
        }
        self.recover()?;
        let second = self.once(candidate, rounds, deadline * 2)?;
        if second.standing == Standing::Open {
            self.recover()?;
        }
        Ok(first.again(second))
    }

    fn once(&mut self, candidate: &Runnable, rounds: u32, deadline: Duration) -> Result<Judged, TuneError> {
        let request = Request::Attempt { candidate: Box::new(candidate.clone()), rounds };
        match self.ask(&request, deadline) {
            Ok(Answer::Tried(tried)) => Ok(Judged { verdict: self.judge(candidate, *tried), standing: Standing::Own }),
            Ok(Answer::Failed(f)) if f.is_of_the_machine() => Err(TuneError::Device(f)),
            Ok(Answer::Failed(f)) => Ok(Judged::from(f)),
            Ok(_) => Err(unexpected()),
            Err(TuneError::Lost(lost)) => Ok(Judged::from(lost)),
            Err(e) => Err(e),
        }
    }

    fn judge(&mut self, candidate: &Runnable, tried: Tried) -> Verdict {
        self.spent.verifying += tried.verifying_s;
        self.spent.measuring += tried.measuring_s;
        if let Some(why) = tried.check.wrong {
            return Verdict::Wrong { why };
        }
        let check = tried.check;
        self.lost = 0;
        self.canary.get_or_insert_with(|| candidate.clone());
        let series = tried.series.unwrap_or_default();
        Verdict::measured(&series, &check)
    }

    /// Times several candidates in turn; all are known to be right.
    pub fn finals(&mut self, list: &[Runnable], rounds: u32, deadline: Duration) -> Result<Vec<Series>, TuneError> {
        let start = std::time::Instant::now();
        let answer = self.ask(&Request::Finals { candidates: list.to_vec(), rounds }, deadline);
        self.spent.measuring += start.elapsed().as_secs_f64();
        match answer {
            Ok(Answer::Series(s)) if s.len() == list.len() => Ok(s),
            Ok(Answer::Failed(f)) => {
                if f.kind == FailureKind::Fault {
                    self.recover()?;
                }
                Err(TuneError::Finals(f.message))
            }
            Ok(_) => Err(unexpected()),
            Err(TuneError::Lost(lost)) => {
                self.recover()?;
                Err(TuneError::Finals(lost.to_string()))
            }
            Err(e) => Err(e),
        }
    }

    fn ask(&mut self, request: &Request, deadline: Duration) -> Result<Answer, TuneError> {
        if self.worker.is_none() {
            self.worker = Some(Worker::start(&self.exe, Duty::Measure(self.id))?);
        }
        let Some(worker) = &mut self.worker else { return Err(unexpected()) };
        let answer = worker.ask(request, deadline, &self.halt);
        if answer.is_err() || matches!(&answer, Ok(Answer::Failed(f)) if f.kind == FailureKind::Fault) {
            self.worker = None;
        }
        Ok(answer?)
    }

    /// Starts a new worker, makes the problem ready again and runs a candidate that is known to be right. While that does
    /// not succeed the device may still be busy killing the old work, so it is tried a few times.
    fn recover(&mut self) -> Result<(), TuneError> {
        let start = std::time::Instant::now();
        self.lost += 1;
        if self.lost > LOST_IN_A_ROW {
            return Err(TuneError::Sick(format!("{LOST_IN_A_ROW} workers in a row were lost")));
        }
        let mut last = String::new();
        let halt = self.halt.clone();
        for pause_ms in [0, 500, 1500, 3000] {
            std::thread::sleep(Duration::from_millis(pause_ms));
            match self.revive() {
                Ok(()) => {
                    self.spent.recovering += start.elapsed().as_secs_f64();
                    return Ok(());
                }
                Err(TuneError::Interrupted) => return Err(TuneError::Interrupted),
                Err(e) => last = e.to_string(),
            }
            self.worker = None;
            if halt.load(Ordering::Relaxed) {
                return Err(TuneError::Interrupted);
            }
        }
        Err(TuneError::Sick(last))
    }

    fn revive(&mut self) -> Result<(), TuneError> {
        self.worker = None;
        let done = |answer: Answer| match answer {
            Answer::Failed(f) => Err(TuneError::Device(f)),
            _ => Ok(()),
        };
        self.assume_again()?;
        if let Some(setup) = self.setup.clone() {
            done(self.ask(&Request::Prepare(Box::new(setup)), SLOW)?)?;
        }
        if let Some(canary) = self.canary.clone() {
            let request = Request::Attempt { candidate: Box::new(canary), rounds: 0 };
            match self.ask(&request, SLOW)? {
                Answer::Tried(t) if t.check.wrong.is_none() => {}
                Answer::Tried(t) => return Err(TuneError::Sick(t.check.wrong.unwrap_or_default())),
                other => done(other)?,
            }
        }
        Ok(())
    }
}

/// A device where lanes take turns at its measuring worker.
pub(super) struct Place {
    measurer: Mutex<Measurer>,
    /// Kept beside it, so that whoever asks need not wait for a turn.
    device: Mutex<Device>,
}

impl Place {
    pub fn new(measurer: Measurer) -> Place {
        Place { device: Mutex::new(measurer.device().clone()), measurer: Mutex::new(measurer) }
    }

    /// The device as it is known by now.
    pub fn device(&self) -> Device {
        lock(&self.device).clone()
    }

    /// A turn, with a problem made ready.
    pub fn turn(&self, setup: &Setup) -> Result<MutexGuard<'_, Measurer>, TuneError> {
        let mut measurer = lock(&self.measurer);
        measurer.ready(setup)?;
        Ok(measurer)
    }

    /// Measures the device's ceilings anew.
    pub fn ceilings(&self, support: Artifact) -> Result<(), TuneError> {
        let ceilings = lock(&self.measurer).ceilings(support)?;
        lock(&self.device).ceilings = ceilings;
        Ok(())
    }

    /// Where the worker's time went.
    pub fn spent(&self) -> Spent {
        lock(&self.measurer).spent
    }
}

fn unexpected() -> TuneError {
    TuneError::Device(Failure { kind: FailureKind::Environment, message: "a worker answered something else".into() })
}

impl From<Lost> for TuneError {
    fn from(lost: Lost) -> TuneError {
        match lost {
            Lost::Interrupted => TuneError::Interrupted,
            lost => TuneError::Lost(lost),
        }
    }
}
