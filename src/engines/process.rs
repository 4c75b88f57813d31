//! An engine in a process of its own, which speaks the protocol of `docs/engines.md`.

use super::service::{Gone, Heard, Service, What};
use crate::worker::{Lost, Process, lines};
use jitune_peer::engine::{About, Ask, ENGINE_PROTOCOL, Load, Loaded, Logits, MAX_LINE, Stats, Submit, Tell};
use jitune_peer::{Device, Numbered, Refusal, RefusalKind};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long an engine may take to open its device: large frameworks load for many seconds.
const HELLO: Duration = Duration::from_secs(180);
/// How long it may take to load a model, compile and warm up.
const LOAD: Duration = Duration::from_secs(900);
/// How long the logits of one prompt may take.
const LOGITS: Duration = Duration::from_secs(300);
/// How long it may take to say what it has done, or to forget.
const STATS: Duration = Duration::from_secs(60);
/// Things that are read before they are heard.
const AHEAD: usize = 1 << 16;
/// How often it is looked whether waiting still makes sense.
const LOOK: Duration = Duration::from_millis(100);
/// Lines of an engine's standard error that are shown when it is lost.
const SHOWN_LINES: usize = 5;

/// Something that an engine said, and when it was read.
type Said = (Instant, Numbered<Tell>);

/// An engine that answered `hello`.
pub struct Engine {
    process: Process<Said>,
    begun: Instant,
    /// Numbers of requests are the caller's; those of everything else are above them.
    asked: u64,
    /// Requests that have not ended.
    open: BTreeSet<u64>,
    /// What was heard of requests while something else was waited for.
    early: VecDeque<Heard>,
    /// What it said it holds, unasked for by anybody who waits.
    samples: Vec<Stats>,
    stop: Arc<AtomicBool>,
    log: PathBuf,
    /// Who it is.
    pub about: About,
}

/// Numbers of questions that are no requests begin here.
const QUESTIONS: u64 = 1 << 60;

/// Why an engine did not do what it was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unanswered {
    /// It said no.
    #[error("{0}")]
    Refused(Refusal),
    /// It is gone.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// The run was interrupted.
    #[error("interrupted")]
    Interrupted,
}

impl Engine {
    /// Starts an engine on a device; its standard error goes to `log`. It is given up soon after `stop` has become true.
    pub fn start(
        mut command: Command,
        log: PathBuf,
        device: Device,
        options: BTreeMap<String, String>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Engine, Unanswered> {
        let failed = |why: String| Unanswered::Refused(Refusal::failed(why));
        let errors = File::create(&log).map_err(|e| failed(format!("{}: {e}", log.display())))?;
        command.stderr(Stdio::from(errors));
        let mut rest = Vec::new();
        let receive = move |out: &mut _| {
            let line: Option<Numbered<Tell>> = lines::next(out, &mut rest, MAX_LINE)?;
            Ok(line.map(|line| (Instant::now(), line)))
        };
        let process = Process::stream(command, receive, AHEAD)
            .map_err(|e| Unanswered::Refused(Refusal { kind: RefusalKind::Missing, why: e.to_string(), fix: None }))?;
        let (open, early, samples, stop) = (BTreeSet::new(), VecDeque::new(), Vec::new(), Arc::clone(stop));
        let (begun, about) = (Instant::now(), About::default());
        let mut this = Engine { process, begun, asked: QUESTIONS, open, early, samples, stop, log, about };
        match this.ask(&Ask::Hello { protocol: ENGINE_PROTOCOL, device, options }, HELLO)? {
            Tell::Hello(about) => {
                this.about = about;
                Ok(this)
            }
            other => Err(this.odd(&other, "hello")),
        }
    }

    /// Loads a model.
    pub fn load(&mut self, load: Load) -> Result<Loaded, Unanswered> {
        match self.ask(&Ask::Load(load), LOAD)? {
            Tell::Loaded(loaded) => Ok(loaded),
            other => Err(self.odd(&other, "load")),
        }
    }

    /// The logits of each position of a prompt, by way of a file that is taken away again.
    pub fn logits(&mut self, prompt: &[u32], file: &Path) -> Result<(Logits, Vec<f32>), Unanswered> {
        let refused = |why: String| Unanswered::Refused(Refusal::failed(why));
        // What an earlier answer left is no answer.
        let _ = std::fs::remove_file(file);
        let told = match self.ask(&Ask::Logits { prompt: prompt.to_vec(), file: file.into() }, LOGITS)? {
            Tell::Logits(told) => told,
            other => return Err(self.odd(&other, "logits")),
        };
        let length = std::fs::metadata(file).map_err(|e| refused(format!("{}: {e}", file.display())))?.len();
        let wanted = told.rows.saturating_mul(told.vocab).saturating_mul(4);
        if told.rows != prompt.len() as u64 || length != wanted {
            let why = format!("its logits are {length} bytes for {} rows of {}", told.rows, told.vocab);
            return Err(refused(format!("{why}, and {} rows were asked for", prompt.len())));
        }
        let bytes = std::fs::read(file).map_err(|e| refused(format!("{}: {e}", file.display())))?;
        let _ = std::fs::remove_file(file);
        Ok((told, bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()))
    }

    /// What it has done and holds.
    pub fn stats(&mut self) -> Result<Stats, Unanswered> {
        match self.ask(&Ask::Stats, STATS)? {
            Tell::Stats(stats) => Ok(stats),
            other => Err(self.odd(&other, "stats")),
        }
    }

    /// Asks what it holds without waiting for it: the answer is among [`Engine::take_samples`] later.
    pub fn sample(&mut self) -> Result<(), Gone> {
        self.asked += 1;
        self.send(self.asked, &Ask::Stats)
    }

    /// What was sampled since the last call.
    pub fn take_samples(&mut self) -> Vec<Stats> {
        std::mem::take(&mut self.samples)
    }

    /// Makes it forget what it keeps of earlier prompts.
    pub fn reset(&mut self) -> Result<(), Unanswered> {
        match self.ask(&Ask::Reset, STATS)? {
            Tell::Done => Ok(()),
            other => Err(self.odd(&other, "reset")),
        }
    }

    /// The number of its process.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Asks something that is answered once, and waits at most `deadline`. What is heard of requests meanwhile is kept.
    fn ask(&mut self, ask: &Ask, deadline: Duration) -> Result<Tell, Unanswered> {
        self.asked += 1;
        let id = self.asked;
        self.send(id, ask)?;
        let begun = Instant::now();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Unanswered::Interrupted);
            }
            if begun.elapsed() > deadline {
                let lost = self.process.lose(&format!("no answer within {:.0} s", deadline.as_secs_f64()));
                return Err(self.gone(&lost).into());
            }
            let Some((at, said)) = self.hear(LOOK)? else { continue };
            if said.id != id {
                let heard = self.request(at, said)?;
                self.early.extend(heard);
                continue;
            }
            return match said.message {
                Tell::Refused(why) => Err(Unanswered::Refused(why)),
                other => Ok(other),
            };
        }
    }

    fn send(&mut self, id: u64, ask: &Ask) -> Result<(), Gone> {
        let mut line = serde_json::to_vec(&Numbered { id, message: ask }).map_err(|e| Gone { why: e.to_string() })?;
        line.push(b'\n');
        self.process.send(line).map_err(|lost| self.gone(&lost))
    }

    fn hear(&mut self, wait: Duration) -> Result<Option<Said>, Gone> {
        self.process.heard(wait).map_err(|lost| self.gone(&lost))
    }

    /// What was heard, as that of a request; nothing of an answer that nobody waits for any more, such as that to `cancel`.
    fn request(&mut self, at: Instant, said: Numbered<Tell>) -> Result<Option<Heard>, Gone> {
        let Numbered { id, message } = said;
        let what = match message {
            Tell::Tokens { ids, .. } => What::Tokens { ids, known: true },
            Tell::End(end) => What::End(end),
            Tell::Done | Tell::Refused(_) if id > QUESTIONS => return Ok(None),
            Tell::Stats(stats) if id > QUESTIONS => {
                self.samples.push(stats);
                return Ok(None);
            }
            other => {
                let lost = self.process.lose(&format!("it told {} of request {id}", lines::short(&other)));
                return Err(self.gone(&lost));
            }
        };
        let known = match what {
            What::End(_) => self.open.remove(&id),
            What::Tokens { .. } => self.open.contains(&id),
        };
        if !known {
            let lost = self.process.lose(&format!("it told of request {id}, which is not on its way"));
            return Err(self.gone(&lost));
        }
        Ok(Some(Heard { id, at: at.saturating_duration_since(self.begun), what }))
    }

    fn odd(&mut self, answer: &Tell, ask: &str) -> Unanswered {
        let lost = self.process.lose(&format!("it told {} to {ask}", lines::short(answer)));
        Unanswered::Gone(self.gone(&lost))
    }

    /// How it was lost, and the last it said.
    fn gone(&self, lost: &Lost) -> Gone {
        Gone { why: lines::last_words(&lost.to_string().replace("the worker", "it"), &self.log, SHOWN_LINES) }
    }
}

impl Service for Engine {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn submit(&mut self, id: u64, request: Submit) -> Result<(), Gone> {
        self.open.insert(id);
        self.send(id, &Ask::Submit(request))
    }

    fn cancel(&mut self, id: u64) -> Result<(), Gone> {
        self.asked += 1;
        self.send(self.asked, &Ask::Cancel { request: id })
    }

    fn next(&mut self, until: Duration) -> Result<Option<Heard>, Gone> {
        if let Some(heard) = self.early.pop_front() {
            return Ok(Some(heard));
        }
        loop {
            let Some((at, said)) = self.hear(until.saturating_sub(self.now()))? else { return Ok(None) };
            if let Some(heard) = self.request(at, said)? {
                return Ok(Some(heard));
            }
        }
    }
}
