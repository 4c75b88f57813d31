//! The search on servers whose best setting is known: each of a whole grid measured in full.

use super::VOCAB;
use super::batches::{Batches, Costs};
use crate::engines::serving::{
    Client, Doing, Evaluate, Found, Observer, Options, SHARE, Space, Unmeasured, Wanted, search,
};
use crate::engines::workload::{Arrivals, Length, Limits, Workload};
use crate::setting::{Asked, Figures, Row, Setting};
use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// What a row takes beside what its server takes: to open it.
const OPEN: Duration = Duration::from_millis(300);

struct Server<'w> {
    costs: Costs,
    client: Client<'w>,
    now: Duration,
    rows: u64,
    /// Rows after which somebody interrupts.
    most: u64,
    /// Settings with more tokens cannot be run.
    memory: i64,
}

impl<'w> Server<'w> {
    fn new(costs: Costs, wanted: &'w Wanted) -> Server<'w> {
        Server { costs, client: Client::new(wanted), now: Duration::ZERO, rows: 0, most: u64::MAX, memory: i64::MAX }
    }
}

impl Evaluate for Server<'_> {
    fn evaluate(&mut self, asked: &Asked) -> Result<Figures, Unmeasured> {
        if asked.setting.tokens > self.memory {
            return Err(Unmeasured::Unfit("no room".into()));
        }
        if self.rows == self.most {
            return Err(Unmeasured::Stopped);
        }
        self.rows += 1;
        let mut service = Batches::new(self.costs, asked.setting, self.rows);
        let stop = AtomicBool::new(false);
        let figures = self.client.figures(&mut service, VOCAB, asked, true, &stop, &mut |_| ())?;
        self.now += OPEN + crate::engines::Service::now(&service);
        Ok(figures)
    }

    fn now(&self) -> Duration {
        self.now
    }
}

#[derive(Default)]
struct Told(Vec<Row>);

impl Observer for Told {
    fn row(&mut self, row: &Row) -> Result<(), Unmeasured> {
        self.0.push(row.clone());
        Ok(())
    }

    fn doing(&mut self, _: &Doing) {}
}

fn wanted(ttft: f64, tpot: f64, turns: u32) -> Wanted {
    let workload = Workload {
        name: "chat".into(),
        arrivals: Arrivals::Open { rate: 4.0, burstiness: 1.0, most: Some(64) },
        prompt: Length::Fixed(256),
        answer: Length::Fixed(32),
        turns,
        think_s: 0.2,
        warm: 2,
        limits: Limits { ttft_ms: Some(ttft), tpot_ms: Some(tpot), e2el_ms: None },
        ..Workload::default()
    };
    Wanted::new(workload).unwrap()
}

fn options(default: Setting) -> Options {
    Options { seconds: 8.0, ..Options::new(Space::around(default), 4.0, Duration::from_secs(3600)) }
}

fn found(options: &Options, costs: Costs, wanted: &Wanted) -> (Found, u64) {
    let mut server = Server::new(costs, wanted);
    let found = search(options, Vec::new(), &mut server, &mut Told::default()).unwrap();
    (found, server.rows)
}

/// The load that a setting keeps, by long windows: the highest of a fine ladder.
fn kept(costs: Costs, wanted: &Wanted, setting: Setting) -> (f64, u64) {
    let mut server = Server::new(Costs { noise: 0.0, ..costs }, wanted);
    let (mut low, mut high) = (2.0, 200.0);
    while high / low > 1.01 {
        let load = f64::sqrt(low * high);
        let asked = Asked { setting, load, seconds: 16.0, round: 0 };
        match server.evaluate(&asked).unwrap().share >= SHARE {
            true => low = load,
            false => high = load,
        }
    }
    (low, server.rows)
}

/// A GPU's steps, a processor's, and one whose prompts are dear; limits of all kinds, each with its own best.
const MACHINES: [(&str, Costs, [f64; 2], u32); 4] = [
    ("loose", Costs { step: 2e-3, decode: 4e-5, prompt: 3e-5, noise: 0.03 }, [100.0, 20.0], 1),
    ("tight", Costs { step: 2e-3, decode: 4e-5, prompt: 3e-5, noise: 0.03 }, [150.0, 6.0], 1),
    ("dear prompts", Costs { step: 1e-3, decode: 2e-4, prompt: 1e-4, noise: 0.03 }, [300.0, 12.0], 1),
    ("turns", Costs { step: 4e-3, decode: 2e-4, prompt: 2e-5, noise: 0.03 }, [60.0, 8.0], 2),
];

/// What it finds keeps 97% of what the best of a grid does, which takes many times as many rows; and no less than the default.
#[test]
fn near_the_best_of_the_whole_grid_in_far_fewer_rows() {
    let default = Setting { tokens: 2048, sequences: 64, chunk: 2048 };
    for (name, costs, [ttft, tpot], turns) in MACHINES {
        let wanted = wanted(ttft, tpot, turns);
        let (found, rows) = found(&options(default), costs, &wanted);
        let (mut best, mut grid) = ((0.0, default), 0);
        for tokens in [128, 512, 2048] {
            for sequences in [8, 16, 32, 64, 256] {
                for chunk in [32, 128, 256, 2048].into_iter().filter(|chunk| *chunk <= tokens) {
                    let setting = Setting { tokens, sequences, chunk };
                    let (load, rows) = kept(costs, &wanted, setting);
                    grid += rows;
                    if load > best.0 {
                        best = (load, setting);
                    }
                }
            }
        }
        let (ours, own) = (kept(costs, &wanted, found.chosen).0, kept(costs, &wanted, default).0);
        eprintln!(
            "{name}: {ours:.1}/s with {} in {rows} rows; {:.1}/s with {} of the grid in {grid}; {own:.1}/s by default; {}",
            found.chosen, best.0, best.1, found.why
        );
        assert!(ours >= 0.97 * best.0, "{name}: {ours} of {}", best.0);
        assert!(ours >= 0.99 * own && rows * 6 < grid, "{name}: {rows} rows");
    }
}

/// Where the default is as good as anything, it stays, whatever chance says.
#[test]
fn the_default_stays_where_nothing_is_better() {
    // One token a step of its own for each sequence: no limit of a step changes what fits.
    let costs = Costs { step: 0.0, decode: 2e-4, prompt: 1e-4, noise: 0.2 };
    let wanted = wanted(1000.0, 50.0, 1);
    let default = Setting { tokens: 512, sequences: 64, chunk: 512 };
    let best = kept(costs, &wanted, default).0;
    for seconds in [4.0, 8.0] {
        let (found, _) = found(&Options { seconds, ..options(default) }, costs, &wanted);
        let ours = kept(costs, &wanted, found.chosen).0;
        assert!(ours >= 0.99 * best, "{found:?}");
    }
}

#[test]
fn what_was_measured_before_is_not_measured_again() {
    let (_, costs, [ttft, tpot], turns) = MACHINES[2];
    let (wanted, options) = (wanted(ttft, tpot, turns), options(Setting { tokens: 2048, sequences: 64, chunk: 2048 }));
    let mut all = Told::default();
    let whole = search(&options, Vec::new(), &mut Server::new(costs, &wanted), &mut all).unwrap();
    assert!(!whole.cut_off && all.0.len() > 12, "{whole:?}");
    // Interrupted after some rows, and gone on with: no setting is asked twice at the same load.
    let (mut first, mut server) = (Told::default(), Server { most: 9, ..Server::new(costs, &wanted) });
    let cut = search(&options, Vec::new(), &mut server, &mut first).unwrap();
    assert!(cut.cut_off && !cut.decided && cut.chosen == options.space.default && cut.rows.len() == 9, "{cut:?}");
    let (mut rest, mut server) = (Told::default(), Server::new(costs, &wanted));
    let after = search(&options, first.0.clone(), &mut server, &mut rest).unwrap();
    assert!(!after.cut_off && after.rows[..9] == first.0[..]);
    let asked = |rows: &[Row]| rows.iter().map(|r| r.asked().to_string()).collect::<BTreeSet<_>>();
    assert!(asked(&first.0).is_disjoint(&asked(&rest.0)));
    // All of it is known: nothing is measured, and the answer is the same.
    let mut none = Told::default();
    let again =
        search(&options, all.0.clone(), &mut Server { most: 0, ..Server::new(costs, &wanted) }, &mut none).unwrap();
    assert_eq!((again, none.0.len()), (whole, 0));
}

#[test]
fn it_ends_in_time_and_the_default_stays_until_the_finals() {
    let (_, costs, [ttft, tpot], turns) = MACHINES[1];
    let wanted = wanted(ttft, tpot, turns);
    for budget in [15.0, 40.0, 120.0, 400.0] {
        let space = Space::around(Setting { tokens: 2048, sequences: 64, chunk: 2048 });
        for grid in [false, true] {
            let options = Options { grid, ..Options::new(space.clone(), 4.0, Duration::from_secs_f64(budget)) };
            let mut server = Server::new(costs, &wanted);
            let found = search(&options, Vec::new(), &mut server, &mut Told::default()).unwrap();
            let took = server.now.as_secs_f64();
            // The last row may take longer than those before it.
            assert!(took <= budget + 6.0, "{took} s of {budget}");
            let finals = found.rows.iter().any(|r| r.round == options.rounds);
            assert!(finals || found.chosen == space.default, "{budget}: {found:?}");
            assert!(!finals || found.decided, "{budget}: {found:?}");
            assert!(found.cut_off || budget > 100.0, "{budget}");
        }
    }
}

/// What cannot be run is a row with its reason, and no end of the search.
#[test]
fn settings_that_do_not_fit_are_passed_over() {
    let (_, costs, [ttft, tpot], turns) = MACHINES[0];
    let wanted = wanted(ttft, tpot, turns);
    let options = options(Setting { tokens: 2048, sequences: 64, chunk: 2048 });
    let mut server = Server { memory: 2048, ..Server::new(costs, &wanted) };
    let found = search(&options, Vec::new(), &mut server, &mut Told::default()).unwrap();
    assert!(!found.cut_off && found.chosen.tokens <= 2048);
    let unfit = |row: &&Row| row.setting.tokens > 2048;
    assert!(found.rows.iter().any(|r| unfit(&r)));
    assert!(found.rows.iter().filter(unfit).all(|r| r.figures.is_none() && r.why.as_deref() == Some("no room")));
    // A default that does not fit keeps nothing, and something else is found.
    let mut server = Server { memory: 1024, ..Server::new(costs, &wanted) };
    let found = search(&options, Vec::new(), &mut server, &mut Told::default()).unwrap();
    assert!(found.default.load == 0.0 && found.chosen.tokens <= 1024, "{}", found.why);
}

/// The small grid is measured beside the search, and its best is no more than what its settings keep.
#[test]
fn a_grid_beside_the_search() {
    let (_, costs, [ttft, tpot], turns) = MACHINES[2];
    let wanted = wanted(ttft, tpot, turns);
    let options = Options { grid: true, ..options(Setting { tokens: 2048, sequences: 64, chunk: 2048 }) };
    let (found, _) = found(&options, costs, &wanted);
    let grid = options.space.grid();
    let best = found.grid.unwrap();
    assert!(grid.contains(&best.setting) && grid.iter().all(|s| found.rows.iter().any(|r| r.setting == *s)));
    let right = grid.iter().map(|s| kept(costs, &wanted, *s).0).fold(0.0, f64::max);
    assert!((best.load / right - 1.0).abs() < 0.08, "{} for {right}", best.load);
}

#[test]
fn only_what_has_limits_and_a_load_can_be_searched() {
    let chat = Workload::named("chat", false, 8192).unwrap();
    assert_eq!(Wanted::new(chat.clone()).unwrap().load(), (8.0, false));
    let none = Workload { limits: Limits::default(), ..chat.clone() };
    assert!(Wanted::new(none).unwrap_err().to_string().contains("--ttft"));
    let trace = Workload { arrivals: Arrivals::Trace { file: "x".into() }, turns: 1, ..chat };
    assert!(Wanted::new(trace).unwrap_err().to_string().contains("trace"));
}
