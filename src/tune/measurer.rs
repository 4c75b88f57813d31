//! One measuring worker of one device: asks it, replaces it when it is lost, and makes sure that the replacement works.

use super::TuneError;
use crate::artifact::Artifact;
use crate::backend::session::{Runnable, Series, Setup, Tried};
use crate::device::{Ceilings, Device, DeviceId};
use crate::verdict::Verdict;
use crate::worker::{Answer, Duty, Failure, FailureKind, Lost, Request, Worker};
use std::path::PathBuf;
use std::time::Duration;

/// How long describing a device or measuring its ceilings may take.
const SLOW: Duration = Duration::from_secs(120);
/// Workers that may be lost in a row without a right candidate in between before the device is given up.
const LOST_IN_A_ROW: u32 = 12;

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
    /// Waiting for the compilers.
    pub waiting: f64,
    /// Replacing lost workers.
    pub recovering: f64,
}

impl Spent {
    /// Adds another's times.
    pub fn add(&mut self, o: &Spent) {
        self.preparing += o.preparing;
        self.verifying += o.verifying;
        self.measuring += o.measuring;
        self.waiting += o.waiting;
        self.recovering += o.recovering;
    }
}

/// A device's measuring worker, whatever happens to the process behind it. Lives on one thread.
pub struct Measurer {
    exe: PathBuf,
    id: DeviceId,
    worker: Option<Worker>,
    device: Device,
    setup: Option<Setup>,
    canary: Option<Runnable>,
    lost: u32,
    /// Where the time went.
    pub spent: Spent,
}

impl Measurer {
    /// Starts the worker and asks for the device.
    pub fn start(exe: PathBuf, id: DeviceId) -> Result<Measurer, TuneError> {
        let mut worker = Worker::start(&exe, Duty::Measure(id))?;
        let device = match worker.ask(&Request::Device, SLOW)? {
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
            canary: None,
            lost: 0,
            spent: Spent::default(),
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
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

    /// Makes a problem ready.
    pub fn prepare(&mut self, setup: Setup) -> Result<(), TuneError> {
        let start = std::time::Instant::now();
        let answer = self.ask(&Request::Prepare(Box::new(setup.clone())), SLOW);
        self.spent.preparing += start.elapsed().as_secs_f64();
        self.setup = Some(setup);
        self.canary = None;
        match answer? {
            Answer::Done => Ok(()),
            Answer::Failed(f) => Err(TuneError::Prepare(f)),
            _ => Err(unexpected()),
        }
    }

    /// Checks a candidate and times it. A candidate that costs the worker is answered with its verdict; an error means
    /// that the device itself no longer works.
    pub fn attempt(&mut self, candidate: &Runnable, rounds: u32, deadline: Duration) -> Result<Verdict, TuneError> {
        let request = Request::Attempt { candidate: Box::new(candidate.clone()), rounds };
        match self.ask(&request, deadline) {
            Ok(Answer::Tried(tried)) => Ok(self.judge(candidate, *tried)),
            Ok(Answer::Failed(f)) if f.kind == FailureKind::Fault => {
                let verdict = Verdict::from(f);
                self.recover()?;
                Ok(verdict)
            }
            Ok(Answer::Failed(f)) if f.is_of_the_machine() => Err(TuneError::Device(f)),
            Ok(Answer::Failed(f)) => Ok(Verdict::from(f)),
            Ok(_) => Err(unexpected()),
            Err(TuneError::Lost(lost)) => {
                self.recover()?;
                Ok(Verdict::from(lost))
            }
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
        let answer = worker.ask(request, deadline);
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
        for pause_ms in [0, 500, 1500, 3000] {
            std::thread::sleep(Duration::from_millis(pause_ms));
            match self.revive() {
                Ok(()) => {
                    self.spent.recovering += start.elapsed().as_secs_f64();
                    return Ok(());
                }
                Err(e) => last = e.to_string(),
            }
            self.worker = None;
        }
        Err(TuneError::Sick(last))
    }

    fn revive(&mut self) -> Result<(), TuneError> {
        self.worker = None;
        let done = |answer: Answer| match answer {
            Answer::Failed(f) => Err(TuneError::Device(f)),
            _ => Ok(()),
        };
        done(self.ask(&Request::Assume(self.device.ceilings), SLOW)?)?;
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

fn unexpected() -> TuneError {
    TuneError::Device(Failure { kind: FailureKind::Environment, message: "a worker answered something else".into() })
}

impl From<Lost> for TuneError {
    fn from(lost: Lost) -> TuneError {
        TuneError::Lost(lost)
    }
}
