//! `jitune tune --serving`: the limits of the engine's steps that serve a workload best on this machine.

use super::opened::{ModelArgs, Opened, failed};
use super::progress::{Live, left};
use super::tune::{Args, ServingArgs, on_signals};
use super::{CliError, table};
use jitune::backend::BackendError;
use jitune::bundle::Bundle;
use jitune::db::Db;
use jitune::device::Target;
use jitune::engine::{Engine, EngineError, Event, Options};
use jitune::engines::service::{Gone, Heard, Service, What};
use jitune::engines::serving::{self, Client, Doing, Evaluate, Found, Observer, SHARE, Space, Unmeasured, Wanted};
use jitune::engines::workload::Workload;
use jitune::problem::MAX_DIM;
use jitune::setting::{Asked, Best, Figures, Row, Serving, Setting};
use jitune::{journal, key};
use jitune_peer::engine::{End, Finish, Submit};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Seconds of a search where none are given.
const BUDGET: u64 = 300;

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let Args { serving: ours, which, device, store, templates, budget, again, json, .. } = args;
    let (again, json, budget) = (*again, *json, Duration::from_secs(budget.unwrap_or(BUDGET)));
    let stop = on_signals()?;
    let buckets = &which.buckets;
    let model = ModelArgs::of(which, device, store, templates)?;
    let opened = model.open()?;
    let context = buckets.context.filter(|c| (1..=MAX_DIM).contains(c));
    if context != buckets.context {
        return Err(CliError::Usage("--context: it is a number of tokens from 1 on".into()));
    }
    let longest = context.unwrap_or(opened.model.max_position_embeddings);
    let wanted = wanted(ours, longest).map_err(|e| CliError::Usage(format!("--workload: {e}")))?;
    let default = Setting::usual(opened.target == Target::Cuda);
    let bundle = opened.bundle(&opened.options(longest))?;
    let mut measuring = Measuring {
        opened: &opened,
        bundle,
        options: opened.options(longest),
        client: Client::new(&wanted),
        engine: None,
        untuned: None,
        begun: Instant::now(),
        stop: Arc::clone(&stop),
    };
    (measuring.options.memory, measuring.options.waiting) = (ours.memory, usize::MAX >> 1);
    // What the default has room for is the context of all.
    let of = |context| {
        let mut options = with(&measuring.options, default);
        options.context = context;
        options
    };
    let engine = opened.longest(context, of, |options| measuring.open(options))?;
    let context = engine.options().context;
    if wanted.workload().most_context() as i64 > context {
        let needs = wanted.workload().most_context();
        return Err(CliError::Usage(format!(
            "{} needs a context of {needs}, and there is memory for {context}",
            wanted.workload().name
        )));
    }
    measuring.options.context = context;
    measuring.hold(default, engine);

    let device = device.describe()?;
    let key = key::serving(&device, &opened.model, &opened.precision, context, &wanted.workload().asked());
    let rows_key = key::serving_rows(&key, measuring.bundle.as_bytes());
    let db = store.open()?;
    let stored = if again { Vec::new() } else { db.trials(&rows_key)? };
    let known = stored.iter().filter(|record| !record.merged).filter_map(journal::row).collect();
    let (load, whole) = wanted.load();
    let options =
        serving::Options { whole, grid: ours.grid, ..serving::Options::new(Space::around(default), load, budget) };
    let unit = if whole { "clients" } else { "/s" };
    let mut teller = Teller { db: &db, key: rows_key, json, unit, live: Live::new("{elapsed_precise}  {wide_msg}") };
    let begun = Instant::now();
    let found = serving::search(&options, known, &mut measuring, &mut teller);
    teller.live.finish_and_clear();
    let found = found.map_err(|e| CliError::Partly(e.to_string()))?;
    if let Some((_, note)) = measuring.untuned.take() {
        err!("jitune: note: {note}");
    }
    drop(measuring);
    let other = if found.chosen == default { None } else { found.grid.filter(|g| g.setting == found.chosen) };
    let [ttft_ms, tpot_ms] = wanted.limits();
    let serving = Serving {
        model: model.model.clone(),
        device: device.name.clone(),
        workload: wanted.workload().name.clone(),
        ttft_ms,
        tpot_ms,
        context,
        setting: found.chosen,
        default: found.default,
        found: other.or(found.searched).unwrap_or(found.default),
        why: found.why.clone(),
        rows: found.rows.len() as u64,
        seconds: begun.elapsed().as_secs_f64(),
        cut_off: found.cut_off,
    };
    if found.decided {
        let record = journal::of_serving(key, &serving).map_err(|e| CliError::Usage(e.to_string()))?;
        db.put_winner(&record)?;
    }
    db.close()?;
    if json {
        let best = |b: &Option<Best>| serde_json::json!(b);
        let line = serde_json::json!({
            "event": "serving", "stored": found.decided, "serving": serving, "searched": best(&found.searched), "grid": best(&found.grid),
        });
        out!("{line}");
    } else {
        show(&found, &serving, unit);
    }
    match () {
        _ if stop.load(Ordering::Relaxed) => Err(CliError::Interrupted),
        _ if !found.decided => Err(CliError::Partly(format!(
            "no setting was chosen within {} s; the {} rows are kept, and the same command goes on from there; --budget SECONDS gives it longer",
            budget.as_secs(),
            found.rows.len()
        ))),
        _ => Ok(()),
    }
}

/// The workload with the limits that were given.
fn wanted(args: &ServingArgs, context: i64) -> Result<Wanted, jitune::engines::WorkloadError> {
    let name = args.workload.as_deref().unwrap_or("chat");
    let mut workload = Workload::parse(name, args.quick, usize::try_from(context).unwrap_or(usize::MAX))?;
    workload.limits.ttft_ms = args.ttft.or(workload.limits.ttft_ms);
    workload.limits.tpot_ms = args.tpot.or(workload.limits.tpot_ms);
    Wanted::new(workload)
}

/// Options with a setting.
fn with(options: &Options, setting: Setting) -> Options {
    let mut options = options.clone();
    (options.tokens, options.sequences, options.chunk) = (setting.tokens, setting.sequences, Some(setting.chunk));
    options
}

/// Opens the engine once for each setting in a row, and asks it.
struct Measuring<'a> {
    opened: &'a Opened<'a>,
    bundle: Bundle<'static>,
    options: Options,
    client: Client<'a>,
    /// The engine, its setting, and whether it has answered nothing yet.
    engine: Option<(Setting, Inside, bool)>,
    /// What nobody tuned of the steps of the most sequences that were measured.
    untuned: Option<(i64, String)>,
    begun: Instant,
    stop: Arc<AtomicBool>,
}

impl Measuring<'_> {
    fn open(&self, options: Options) -> Result<Result<Engine, EngineError>, CliError> {
        let runtime = self.opened.on(&self.bundle)?;
        Ok(Engine::open(runtime, &self.opened.model, &self.opened.weights, options, |_, _| ()))
    }

    fn hold(&mut self, setting: Setting, engine: Engine) {
        if self.untuned.as_ref().is_none_or(|(sequences, _)| *sequences < setting.sequences) {
            let note = self.opened.args.portable(&engine).map(|note| (setting.sequences, note));
            self.untuned = note.or(self.untuned.take());
        }
        self.engine = Some((setting, Inside::new(engine), true));
    }
}

impl Evaluate for Measuring<'_> {
    fn evaluate(&mut self, asked: &Asked) -> Result<Figures, Unmeasured> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Unmeasured::Stopped);
        }
        if self.engine.as_ref().is_none_or(|(setting, ..)| *setting != asked.setting) {
            // The room of the one is that of the next.
            self.engine = None;
            let engine = self.open(with(&self.options, asked.setting)).map_err(|e| Unmeasured::Lost(e.to_string()))?;
            let engine = engine.map_err(|e| match e {
                EngineError::Memory { .. } | EngineError::Backend(BackendError::OutOfMemory { .. }) => {
                    Unmeasured::Unfit(e.to_string())
                }
                other => Unmeasured::Lost(failed(other).to_string()),
            })?;
            self.hold(asked.setting, engine);
        }
        let Some((_, inside, fresh)) = &mut self.engine else {
            return Err(Unmeasured::Lost("there is no engine".into()));
        };
        let vocab = inside.engine.vocab().unsigned_abs();
        let figures = self.client.figures(inside, vocab, asked, std::mem::take(fresh), &self.stop, &mut |_| ());
        match inside.engine.failure() {
            Some(why) => Err(Unmeasured::Lost(why)),
            None => figures,
        }
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// An engine in this process, as a client drives it.
struct Inside {
    engine: Engine,
    begun: Instant,
    say: Sender<Heard>,
    heard: Receiver<Heard>,
    /// The engine's numbers of requests, by the client's.
    numbers: HashMap<u64, u64>,
}

impl Inside {
    fn new(engine: Engine) -> Inside {
        let (say, heard) = channel();
        Inside { engine, begun: Instant::now(), say, heard, numbers: HashMap::new() }
    }
}

impl Service for Inside {
    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    fn submit(&mut self, id: u64, request: Submit) -> Result<(), Gone> {
        let (say, begun) = (self.say.clone(), self.begun);
        let tell = move |what: What| say.send(Heard { id, at: begun.elapsed(), what }).is_ok();
        let refused = tell.clone();
        let submitted = self.engine.submit_to(super::engine::taken(&request, &[]), move |event| match event {
            Event::Token(token) => tell(What::Tokens { ids: vec![token.id.unsigned_abs()], known: true }),
            Event::Logits(_) => true,
            Event::End(end) => tell(What::End(super::engine::ended(end))),
        });
        match submitted {
            Ok(number) => drop(self.numbers.insert(id, number)),
            Err(e) => drop(refused(What::End(End { why: Finish::Failed, error: Some(e.to_string()), cached: None }))),
        }
        Ok(())
    }

    fn cancel(&mut self, id: u64) -> Result<(), Gone> {
        if let Some(number) = self.numbers.get(&id) {
            self.engine.cancel(*number);
        }
        Ok(())
    }

    fn next(&mut self, until: Duration) -> Result<Option<Heard>, Gone> {
        match self.heard.recv_timeout(until.saturating_sub(self.now())) {
            Ok(heard) => {
                if matches!(heard.what, What::End(_)) {
                    self.numbers.remove(&heard.id);
                }
                Ok(Some(heard))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Gone { why: "the engine is gone".into() }),
        }
    }
}

/// Keeps each row, and says what comes in.
struct Teller<'a> {
    db: &'a Db,
    key: jitune::db::Key,
    json: bool,
    unit: &'static str,
    live: Live,
}

impl Observer for Teller<'_> {
    fn row(&mut self, row: &Row) -> Result<(), Unmeasured> {
        let lost = |e: &dyn std::error::Error| Unmeasured::Lost(format!("a row cannot be kept: {e}"));
        let record = journal::of_row(self.key.clone(), row).map_err(|e| lost(&e))?;
        self.db.put_trial(&record).map_err(|e| lost(&e))?;
        if self.json {
            out!("{}", serde_json::json!({ "event": "row", "row": row }));
            return Ok(());
        }
        self.live.say(&match (&row.figures, &row.why) {
            (Some(f), _) => format!(
                "{:<40} {:>8} {}: {:>5.1}% within the limits, TTFT {:.1} ms, TPOT {:.2} ms (p99), {} requests",
                row.setting.to_string(),
                row.load,
                self.unit,
                100.0 * f.share,
                f.ttft_p99_ms,
                f.tpot_p99_ms,
                f.requests
            ),
            (None, why) => format!("{:<40} {}", row.setting.to_string(), why.as_deref().unwrap_or_default()),
        });
        Ok(())
    }

    fn doing(&mut self, doing: &Doing) {
        if self.json {
            return;
        }
        let Doing { part, asked, rows, best, left: time } = doing;
        let best = best.map_or(String::new(), |(setting, load)| format!("; best {load} {} by {setting}", self.unit));
        let (load, unit) = (asked.load, self.unit);
        self.live.message(&format!(
            "[{}, {rows} rows, {}]  {} at {load} {unit}{best}",
            part.name(),
            left(*time),
            asked.setting
        ));
    }
}

/// The settings that were evaluated, each at the highest load that it keeps or else at the lowest that it was tried at; and what came of it.
fn show(found: &Found, serving: &Serving, unit: &str) {
    let mut settings: Vec<Setting> = found.rows.iter().map(|r| r.setting).collect();
    settings.sort();
    settings.dedup();
    let figures = |load: f64, f: &Figures, goodput: String| {
        let times = [format!("{:.1}", f.ttft_p99_ms), format!("{:.2}", f.tpot_p99_ms)];
        let [ttft, tpot] = times;
        vec![goodput, format!("{load}"), format!("{:.1}%", 100.0 * f.share), ttft, tpot]
    };
    let tried = |setting: Setting| {
        let of = found.rows.iter().filter(|r| r.setting == setting);
        let kept =
            of.clone().filter(|r| r.figures.is_some_and(|f| f.share >= SHARE)).max_by(|a, b| a.load.total_cmp(&b.load));
        let row = kept.or_else(|| of.clone().min_by(|a, b| a.load.total_cmp(&b.load)));
        match row.and_then(|r| Some((r, r.figures?))) {
            Some((r, f)) if f.share >= SHARE => figures(r.load, &f, format!("{:.3}", f.goodput)),
            Some((r, f)) => figures(r.load, &f, "-".into()),
            None => vec!["-".into(); 5],
        }
    };
    let cells = |setting: Setting, rest: Vec<String>, role: &str| {
        let Setting { tokens, sequences, chunk } = setting;
        let own = [tokens, sequences, chunk].map(|n| n.to_string());
        own.into_iter().chain(rest).chain([role.to_string()]).collect::<Vec<String>>()
    };
    let (load, good) = (format!("load {unit}"), "goodput /s");
    let header = ["tokens", "sequences", "chunk", good, &load, "within", "TTFT p99 ms", "TPOT p99 ms", ""];
    let mut rows: Vec<Vec<String>> = settings.iter().map(|s| cells(*s, tried(*s), "")).collect();
    let best = |best: &Best, role: &str| match best.load > 0.0 {
        true => cells(best.setting, figures(best.load, &best.figures, format!("{:.3}", best.figures.goodput)), role),
        false => cells(best.setting, vec!["-".into(); 5], role),
    };
    rows.push(best(&found.default, "the default"));
    rows.extend(found.searched.iter().map(|b| best(b, "found by the search")));
    rows.extend(found.grid.iter().map(|b| best(b, "the best of the grid")));
    table::print(&header, &rows, &[0, 1, 2, 3, 4, 5, 6, 7]);
    out!("");
    out!(
        "{} for {} within TTFT {} ms and TPOT {} ms: {}",
        serving.setting,
        serving.workload,
        serving.ttft_ms,
        serving.tpot_ms,
        found.why
    );
    let state = if found.decided { "stored; `jitune serve` takes it" } else { "not stored" };
    out!("{} rows, {:.0} s; {state}", found.rows.len(), serving.seconds);
}
