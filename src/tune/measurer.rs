//! One measuring worker of one device: asks it, replaces it when it is lost, and makes sure that the replacement works.

use super::TuneError;
use crate::artifact::Artifact;
use crate::backend::session::{Element, Runnable, Setup, Timed, Tried};
use crate::device::{Ceilings, Device, DeviceId, Target};
use crate::problem::Problem;
use crate::sync::lock;
use crate::verdict::{Judged, Standing, Verdict};
use crate::worker::{Answer, Duty, Failure, FailureKind, Lost, MAIN, Request, Worker};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// How long describing a device or measuring its ceilings may take.
const SLOW: Duration = Duration::from_secs(120);
/// Workers that may be lost in a row without a right candidate in between before the problem is given up, and when that
/// happens to a second one in a row the device.
const LOST_IN_A_ROW: u32 = 24;
/// Candidates that are remembered for having been right.
const CANARIES: usize = 3;

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
    /// Where winners are verified. On a GPU nothing but winners runs there, one after the other: what a kernel did ends with
    /// its module, and the outputs come back. On a processor, whose kernels reach the whole process, each has its own.
    verifier: Option<Worker>,
    setup: Option<Setup>,
    /// How long it took to make each problem ready, at most: one that was put by is there again at once, and has to be made anew
    /// elsewhere.
    preparing: HashMap<Problem, Duration>,
    canaries: Vec<Runnable>,
    lost: u32,
    given_up: u32,
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
        let asked = worker.ask(&Request::Device, SLOW, &halt).map_err(|lost| match lost {
            Lost::Ended { .. } if !lost.from_outside() => {
                Lost::Start { why: format!("{} ended when it was to be one ({lost}); {MAIN}", exe.display()) }
            }
            lost => lost,
        });
        let device = match asked? {
            Answer::Device(d) => *d,
            Answer::Failed(f) => return Err(TuneError::Device(f)),
            _ => return Err(unexpected()),
        };
        Ok(Measurer {
            exe,
            id,
            worker: Some(worker),
            verifier: None,
            device,
            setup: None,
            preparing: HashMap::new(),
            canaries: Vec::new(),
            lost: 0,
            given_up: 0,
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
        self.setup.as_ref().and_then(|setup| self.preparing.get(&setup.problem)).copied().unwrap_or_default()
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
        if self.setup.as_ref() == Some(setup) {
            return self.alive();
        }
        self.let_come();
        let start = std::time::Instant::now();
        self.canaries.clear();
        self.setup = None;
        let request = Request::Prepare(Box::new(setup.clone()));
        let mut answer = self.ask(&request, SLOW);
        // What candidates of others did may show only now.
        if matches!(&answer, Err(TuneError::Lost(_)))
            || matches!(&answer, Ok(Answer::Failed(f)) if f.kind == FailureKind::Fault)
        {
            answer = self.ask(&request, SLOW);
        }
        let took = start.elapsed();
        let most = self.preparing.entry(setup.problem).or_default();
        *most = took.max(*most);
        self.spent.preparing += took.as_secs_f64();
        match answer {
            Ok(Answer::Done) => {
                self.setup = Some(setup.clone());
                Ok(())
            }
            Ok(Answer::Failed(f)) => Err(TuneError::Prepare(f)),
            Ok(_) => Err(unexpected()),
            Err(e) => Err(of_the_problem(e)),
        }
    }

    /// Checks a candidate and times it. What may be the machine's doing, or that of a candidate before it, is tried again, with twice the
    /// time, in another worker, where nothing ran before. An error means that the device itself no longer works. A GPU has the `next`
    /// candidate at hand when it is done with this one.
    pub(crate) fn attempt(
        &mut self,
        candidate: &Runnable,
        next: Option<&Runnable>,
        rounds: u32,
        deadline: Duration,
    ) -> Result<Judged, TuneError> {
        self.alive()?;
        // On a processor its arrival would disturb the measurement.
        let next = next.filter(|_| self.device.target == Target::Cuda);
        let once = |m: &mut Measurer, next, deadline| match m.once(candidate, next, rounds, deadline) {
            // It, or one before it, may have used up what the process has.
            Err(TuneError::Device(f)) => Ok(Judged::from(f)),
            other => other,
        };
        let first = once(self, next, deadline)?;
        if first.standing != Standing::Open {
            return Ok(first);
        }
        self.recover(Canary::None)?;
        let second = once(self, None, deadline * 2)?;
        if second.standing == Standing::Open {
            self.recover(Canary::First)?;
        }
        Ok(first.again(second))
    }

    fn once(
        &mut self,
        candidate: &Runnable,
        next: Option<&Runnable>,
        rounds: u32,
        deadline: Duration,
    ) -> Result<Judged, TuneError> {
        let request = |candidate: &Runnable| Request::Attempt { candidate: Box::new(candidate.clone()), rounds };
        match self.ask_both(&request(candidate), next.map(request).as_ref(), deadline) {
            Ok(Answer::Tried(tried)) => Ok(self.judge(candidate, *tried)),
            Ok(Answer::Failed(f)) if f.is_of_the_machine() => Err(TuneError::Device(f)),
            Ok(Answer::Failed(f)) => Ok(Judged::from(f)),
            Ok(_) => Err(unexpected()),
            Err(TuneError::Lost(lost)) => Ok(Judged::from(lost)),
            Err(e) => Err(e),
        }
    }

    fn judge(&mut self, candidate: &Runnable, tried: Tried) -> Judged {
        self.spent.verifying += tried.verifying_s;
        self.spent.measuring += tried.measuring_s;
        let judged = Judged::from(tried);
        if let Verdict::Measured { .. } = judged.verdict {
            (self.lost, self.given_up) = (0, 0);
            if self.canaries.len() < CANARIES {
                self.canaries.push(candidate.clone());
            }
        }
        judged
    }

    /// Times several candidates in turn; all were right. Where the worker does not come to an end of it, each by itself in a worker where
    /// nothing ran, which shows who it was.
    pub(crate) fn finals(
        &mut self,
        list: &[Runnable],
        rounds: u32,
        deadline: Duration,
    ) -> Result<Vec<Result<Timed, Judged>>, TuneError> {
        self.alive()?;
        let together = match self.timed(list, rounds, deadline)? {
            Ok(timed) => return Ok(timed.into_iter().map(Ok).collect()),
            Err(judged) => judged,
        };
        let mut found = Vec::new();
        for one in list {
            self.recover(Canary::None)?;
            found.push(match self.timed(std::slice::from_ref(one), rounds, deadline)? {
                Ok(mut timed) => timed.pop().ok_or_else(|| together.clone()),
                Err(alone) => Err(together.clone().again(alone)),
            });
        }
        if found.last().is_some_and(Result::is_err) {
            self.recover(Canary::First)?;
        }
        Ok(found)
    }

    fn timed(
        &mut self,
        list: &[Runnable],
        rounds: u32,
        deadline: Duration,
    ) -> Result<Result<Vec<Timed>, Judged>, TuneError> {
        let start = std::time::Instant::now();
        let answer = self.ask(&Request::Finals { candidates: list.to_vec(), rounds }, deadline);
        self.spent.measuring += start.elapsed().as_secs_f64();
        match answer {
            Ok(Answer::Timed(timed)) => {
                if timed.iter().any(|t| t.doubt.is_none()) {
                    (self.lost, self.given_up) = (0, 0);
                }
                Ok(Ok(timed))
            }
            Ok(Answer::Failed(f)) => Ok(Err(Judged::from(f))),
            Ok(_) => Err(unexpected()),
            Err(TuneError::Lost(lost)) => Ok(Err(Judged::from(lost))),
            Err(e) => Err(e),
        }
    }

    /// Checks a winner in a process where no candidate ran but winners, and gives what elements of its outputs hold there.
    pub(crate) fn verify(
        &mut self,
        setup: &Setup,
        winner: &Runnable,
        elements: &[Element],
        deadline: Duration,
    ) -> Result<(Judged, Vec<f64>), TuneError> {
        self.let_come();
        let start = std::time::Instant::now();
        let prepare = Request::Prepare(Box::new(setup.clone()));
        let verify = Request::Verify { candidate: Box::new(winner.clone()), elements: elements.to_vec() };
        let mut found = self.verified(&prepare, &verify, deadline)?;
        if found.0.standing == Standing::Open {
            let second = self.verified(&prepare, &verify, deadline * 2)?;
            found = (found.0.again(second.0), second.1);
        }
        self.spent.verifying += start.elapsed().as_secs_f64();
        Ok(found)
    }

    fn verified(
        &mut self,
        prepare: &Request,
        verify: &Request,
        deadline: Duration,
    ) -> Result<(Judged, Vec<f64>), TuneError> {
        self.goes_on()?;
        let fresh = |m: &Measurer| Worker::start(&m.exe, Duty::Measure(m.id)).map_err(TuneError::from);
        let mut worker = match self.verifier.take() {
            Some(worker) => worker,
            None => fresh(self).map_err(of_the_problem)?,
        };
        let mut prepared = worker.ask(prepare, SLOW, &self.halt);
        if !matches!(prepared, Ok(Answer::Done) | Err(Lost::Interrupted)) {
            // There may not be memory for two, and somebody may have ended the one that was there.
            (self.worker, worker) = (None, fresh(self).map_err(of_the_problem)?);
            prepared = worker.ask(prepare, SLOW, &self.halt);
        }
        match prepared {
            Ok(Answer::Failed(f)) => return Err(TuneError::Prepare(f)),
            Err(lost) => return Err(of_the_problem(lost.into())),
            Ok(_) => {}
        }
        match worker.ask(verify, deadline, &self.halt) {
            Ok(Answer::Verified { tried, bits }) => {
                let judged = Judged::from(*tried);
                if self.device.target == Target::Cuda && matches!(judged.verdict, Verdict::Measured { .. }) {
                    self.verifier = Some(worker);
                }
                Ok((judged, bits.into_iter().map(f64::from_bits).collect()))
            }
            Ok(Answer::Failed(f)) if f.is_of_the_machine() => Err(TuneError::Prepare(f)),
            Ok(Answer::Failed(f)) => Ok((Judged::from(f), Vec::new())),
            Ok(_) => Err(unexpected()),
            Err(Lost::Interrupted) => Err(TuneError::Interrupted),
            Err(lost) => Ok((Judged::from(lost), Vec::new())),
        }
    }

    /// Makes the problem ready in a new worker where the last one had to go.
    fn alive(&mut self) -> Result<(), TuneError> {
        if self.worker.is_none() && self.setup.is_some() { self.recover(Canary::First) } else { Ok(()) }
    }

    /// An error once everything is to end at once.
    fn goes_on(&self) -> Result<(), TuneError> {
        if self.halt.load(Ordering::Relaxed) { Err(TuneError::Interrupted) } else { Ok(()) }
    }

    /// Waits until the worker has nothing to do, so that it neither counts as somebody else's time nor runs beside another.
    fn let_come(&mut self) {
        if self.worker.as_mut().is_some_and(|worker| worker.let_come(&self.halt).is_err()) {
            self.worker = None;
        }
    }

    /// Asks; where there is no worker it starts one, with the ceilings that are known.
    fn ask(&mut self, request: &Request, deadline: Duration) -> Result<Answer, TuneError> {
        self.ask_both(request, None, deadline)
    }

    /// Asks, and has the worker know what is asked next.
    fn ask_both(&mut self, request: &Request, next: Option<&Request>, deadline: Duration) -> Result<Answer, TuneError> {
        // Of many lanes that wait for a turn each would start a worker to be told so.
        self.goes_on()?;
        if self.worker.is_none() {
            let mut worker = Worker::start(&self.exe, Duty::Measure(self.id))?;
            if let Answer::Failed(f) = worker.ask(&Request::Assume(self.device.ceilings), SLOW, &self.halt)? {
                return Err(TuneError::Device(f));
            }
            self.worker = Some(worker);
        }
        let Some(worker) = &mut self.worker else { return Err(unexpected()) };
        let answer = worker.ask_both(request, next, deadline, &self.halt);
        if answer.is_err() || matches!(&answer, Ok(Answer::Failed(f)) if f.kind == FailureKind::Fault) {
            self.worker = None;
        }
        Ok(answer?)
    }

    /// Starts a new worker, makes the problem ready again and runs a candidate that is known to be right, where one is to be. While
    /// that does not succeed the device may still be busy killing the old work, so it is tried a few times. One that was right and
    /// never is again was no measure.
    fn recover(&mut self, canary: Canary) -> Result<(), TuneError> {
        let start = std::time::Instant::now();
        self.lost += 1;
        if self.lost > LOST_IN_A_ROW {
            (self.lost, self.given_up) = (0, self.given_up + 1);
            let message = format!("{LOST_IN_A_ROW} workers in a row were lost");
            return Err(match self.given_up {
                1 => TuneError::Prepare(Failure { kind: FailureKind::Environment, message }),
                _ => TuneError::Sick(message),
            });
        }
        loop {
            let mut last = Ok(());
            for pause_ms in [0, 500, 1500, 3000] {
                std::thread::sleep(Duration::from_millis(pause_ms));
                if self.halt.load(Ordering::Relaxed) {
                    return Err(TuneError::Interrupted);
                }
                last = self.revive(canary);
                match &last {
                    Ok(()) => {
                        self.spent.recovering += start.elapsed().as_secs_f64();
                        return Ok(());
                    }
                    Err(TuneError::Interrupted) => return last,
                    Err(_) => self.worker = None,
                }
            }
            match last {
                Err(TuneError::Sick(_)) if !self.canaries.is_empty() => drop(self.canaries.remove(0)),
                other => return other.map_err(|e| TuneError::Sick(e.to_string())),
            }
        }
    }

    /// A new worker with the problem, where a canary is right; what speaks against the canary is [`TuneError::Sick`].
    fn revive(&mut self, canary: Canary) -> Result<(), TuneError> {
        self.worker = None;
        if let Some(setup) = self.setup.clone()
            && let Answer::Failed(f) = self.ask(&Request::Prepare(Box::new(setup)), SLOW)?
        {
            return Err(TuneError::Device(f));
        }
        if let Some(canary) = self.canaries.first().filter(|_| canary == Canary::First).cloned() {
            let request = Request::Attempt { candidate: Box::new(canary), rounds: 0 };
            match self.ask(&request, SLOW) {
                Ok(Answer::Tried(t)) => match Judged::from(*t).verdict {
                    Verdict::Measured { .. } => self.lost = 0,
                    other => return Err(TuneError::Sick(format!("a candidate that was right is {}", other.reason()))),
                },
                Ok(Answer::Failed(f)) => return Err(TuneError::Sick(f.to_string())),
                Ok(_) => return Err(unexpected()),
                Err(TuneError::Lost(lost)) => return Err(TuneError::Sick(lost.to_string())),
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// What a new worker runs before all else.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Canary {
    /// Nothing: whatever ran there could leave something behind.
    None,
    /// A candidate that was right, which shows that the device works.
    First,
}

/// A worker that is lost over one problem costs that problem alone.
fn of_the_problem(e: TuneError) -> TuneError {
    match e {
        TuneError::Lost(lost) => {
            TuneError::Prepare(Failure { kind: FailureKind::Environment, message: lost.to_string() })
        }
        other => other,
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
        let mut measurer = self.bare_turn();
        measurer.ready(setup)?;
        Ok(measurer)
    }

    /// A turn for what needs nothing ready.
    pub fn bare_turn(&self) -> MutexGuard<'_, Measurer> {
        lock(&self.measurer)
    }

    /// Measures the device's ceilings anew.
    pub fn ceilings(&self, support: Artifact) -> Result<(), TuneError> {
        let ceilings = self.bare_turn().ceilings(support)?;
        lock(&self.device).ceilings = ceilings;
        Ok(())
    }

    /// Where the worker's time went.
    pub fn spent(&self) -> Spent {
        self.bare_turn().spent
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
