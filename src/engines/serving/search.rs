//! The search itself: from the default to neighbours that keep more, step by step.

use super::space::Move;
use super::{Doing, Evaluate, Found, Observer, Options, Part, SHARE, Unmeasured};
use crate::setting::{Asked, Best, Figures, Row, Setting};
use std::collections::BTreeSet;
use std::time::Duration;

/// The highest load that is kept and the lowest that is not are this close at the end of a look for them: in the search, and at its end.
const COARSE: f64 = 1.1;
const FINE: f64 = 1.03;
/// Loads below this share of the first one are not tried.
const LEAST: f64 = 1.0 / 16.0;

/// Why a part of the search ends early.
#[derive(Debug)]
pub(super) enum Halt {
    /// Its time is over.
    Over,
    /// Somebody interrupts.
    Stopped,
    /// Nothing can be measured any more.
    Lost(String),
}

/// A setting, the highest load that it keeps (0: none that was tried), and the lowest that it does not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Edge {
    pub setting: Setting,
    pub low: f64,
    pub high: f64,
}

pub(super) struct Search<'a> {
    bench: &'a mut dyn Evaluate,
    observer: &'a mut dyn Observer,
    pub options: &'a Options,
    /// Rows of an earlier run that were not needed yet.
    known: Vec<Row>,
    pub rows: Vec<Row>,
    pub part: Part,
    begun: Duration,
    /// Seconds since then after which nothing begins.
    pub until: f64,
    /// Seconds that rows took beside their windows, and how many they are.
    beside: (f64, u32),
}

/// Finds the setting that keeps the most; `known` are rows of an earlier search of the same. What was measured is in what is returned, and
/// whether that is all. The default stays unless something keeps more beside it in the final rounds.
///
/// # Errors
/// What [`Evaluate`] or [`Observer`] says when nothing can be measured any more; rows were told before.
pub fn search(
    options: &Options,
    known: Vec<Row>,
    bench: &mut dyn Evaluate,
    observer: &mut dyn Observer,
) -> Result<Found, Unmeasured> {
    let (begun, budget) = (bench.now(), options.budget.as_secs_f64());
    let (rows, part) = (Vec::new(), Part::Default);
    let mut this = Search { bench, observer, options, known, rows, part, begun, until: budget, beside: (0.0, 0) };
    let default = options.space.default;
    let mut cut = this.default_and_neighbours().err();
    let searched = this.most(|setting| setting != default);
    let mut grid = None;
    if options.grid && matches!(cut, None | Some(Halt::Over)) {
        cut = this.grid(searched).err().or(cut);
        let list = options.space.grid();
        grid = this.most(|setting| list.contains(&setting));
    }
    let best =
        searched.into_iter().chain(grid).filter(|b| b.setting != default).max_by(|a, b| a.load.total_cmp(&b.load));
    let (mut chosen, mut why) = (default, "nothing that was tried keeps more than the default".to_string());
    let mut decided = cut.is_none();
    if !decided {
        why = "the search was cut off before it was done".into();
    }
    if let (None | Some(Halt::Over), Some(best)) = (&cut, best) {
        (this.part, this.until) = (Part::Finals, budget);
        match this.finals(best) {
            Ok(choice) => ((chosen, why), decided) = (choice, true),
            Err(halt) => {
                why = format!("{} was not yet held against the default in turn", best.setting);
                (decided, cut) = (false, Some(halt));
            }
        }
    }
    if let Some(Halt::Lost(why)) = cut {
        return Err(Unmeasured::Lost(why));
    }
    // With what the finals say.
    let again = |best: Best| this.best(best.setting);
    let (default, searched, grid) = (this.best(default), searched.map(again), grid.map(again));
    Ok(Found { default, searched, grid, chosen, why, rows: this.rows, decided, cut_off: cut.is_some() })
}

impl Search<'_> {
    fn default_and_neighbours(&mut self) -> Result<(), Halt> {
        let (default, load) = (self.options.space.default, self.options.load);
        let edge = Edge { setting: default, low: 0.0, high: f64::INFINITY };
        let edge = self.close_in(edge, load, COARSE)?;
        self.part = Part::Search;
        let whole = self.options.budget.as_secs_f64();
        // The finals need the last of it, and the grid a half of the rest.
        let rest = whole - self.finals_s(edge.low.max(edge.high / 2.0)).min(0.5 * whole);
        let now = self.elapsed();
        self.until = if self.options.grid { now + (rest - now).max(0.0) / 2.0 } else { rest };
        let edge = self.walk(edge)?;
        self.close_in(Edge { low: 0.0, ..edge }, edge.low.max(edge.high / COARSE), FINE).map(drop)
    }

    /// Goes from a setting to the best of some all over the space, and from there to neighbours, as long as one is better.
    fn walk(&mut self, here: Edge) -> Result<Edge, Halt> {
        let spread = self.options.space.spread().into_iter().map(|setting| ([0; 3], setting)).collect();
        let (mut here, mut by) = (self.better(here, spread, false)?.0, None);
        let mut been = BTreeSet::new();
        while been.insert(here.setting) {
            let near = self.options.space.near(here.setting, by);
            (here, by) = self.better(here, near, true)?;
        }
        Ok(here)
    }

    /// Of some settings one that keeps a load that `here` does not, the first or the last of them; or else one that is clearly nearer to it; or
    /// else `here`. With it the change that led there.
    fn better(&mut self, here: Edge, list: Vec<(Move, Setting)>, first: bool) -> Result<(Edge, Option<Move>), Halt> {
        let mut best = (here, None);
        let mut nearer: Option<(Figures, Move, Setting)> = None;
        for (by, setting) in list {
            let figures = self.at(setting, best.0.high, 0)?;
            if figures.share >= SHARE {
                let edge = Edge { setting, low: best.0.high, high: f64::INFINITY };
                best = (self.close_in(edge, self.tidy(edge.low * COARSE), COARSE)?, Some(by));
                nearer = None;
                if first {
                    break;
                }
            } else if nearer.is_none_or(|(other, ..)| figures.share > other.share) {
                nearer = Some((figures, by, setting));
            }
        }
        let own = self.at(best.0.setting, best.0.high, 0)?;
        if let Some((_, by, setting)) = nearer.filter(|(f, ..)| f.share > own.share + noise(&own, f)) {
            // What keeps less than `high` it keeps too, or nearly so: that is looked at when the search is at its end.
            best = (Edge { setting, ..best.0 }, Some(by));
        }
        Ok(best)
    }

    /// The best of the small grid: each setting at the highest load that anything keeps.
    fn grid(&mut self, searched: Option<Best>) -> Result<(), Halt> {
        self.part = Part::Grid;
        let whole = self.options.budget.as_secs_f64();
        let default = self.best(self.options.space.default);
        let mut load = searched.map_or(default.load, |b| b.load.max(default.load));
        if load <= 0.0 {
            load = self.options.load;
        }
        self.until = whole - self.finals_s(load).min(0.5 * whole);
        let (mut nearest, mut kept): (Option<(f64, Setting)>, bool) = (None, false);
        for setting in self.options.space.grid() {
            let share = self.at(setting, load, 0)?.share;
            if share >= SHARE {
                let edge = Edge { setting, low: load, high: f64::INFINITY };
                load = self.close_in(edge, self.tidy(load * FINE), FINE)?.low;
                kept = true;
            } else if nearest.is_none_or(|(best, _)| share > best) {
                nearest = Some((share, setting));
            }
        }
        match nearest.filter(|_| !kept) {
            Some((_, setting)) => {
                let edge = Edge { setting, low: 0.0, high: load };
                self.close_in(edge, self.tidy(load / FINE), FINE).map(drop)
            }
            None => Ok(()),
        }
    }

    /// The load between those that a setting keeps and those that it does not, closer than `ratio`; `load` is tried first.
    fn close_in(&mut self, mut edge: Edge, load: f64, ratio: f64) -> Result<Edge, Halt> {
        let unknown = edge.low == 0.0 && edge.high.is_infinite();
        let (mut load, mut factor) = (self.tidy(load), if unknown { 2.0 } else { ratio });
        let least = self.tidy(self.options.load * LEAST);
        loop {
            match self.at(edge.setting, load, 0)?.share >= SHARE {
                true => edge.low = load,
                false => edge.high = load,
            }
            let done = edge.high <= edge.low * ratio || self.options.whole && edge.high <= edge.low + 1.0;
            if done || edge.low == 0.0 && edge.high <= least {
                return Ok(edge);
            }
            load = self.tidy(match (edge.low > 0.0, edge.high.is_finite()) {
                (true, true) => (edge.low * edge.high).sqrt(),
                (true, false) => edge.low * factor,
                (false, _) => edge.high / factor,
            });
            if load <= edge.low || load >= edge.high {
                return Ok(edge);
            }
            // From far away in few steps.
            factor = (factor * factor).min(4.0);
        }
    }

    /// A load of three digits, or a number of clients.
    pub fn tidy(&self, load: f64) -> f64 {
        if self.options.whole {
            return load.round().max(1.0);
        }
        let unit = 10f64.powf(load.log10().floor() - 2.0);
        // Divided by its inverse where that is a whole number, so that it is written in three digits.
        if unit < 1.0 { (load / unit).round() / unit.recip().round() } else { (load / unit).round() * unit.round() }
    }

    /// What is seen of a setting: what is known of it already, or measured now.
    pub fn at(&mut self, setting: Setting, load: f64, round: u32) -> Result<Figures, Halt> {
        let seconds = self.options.window(load) * if round > 0 { 2.0 } else { 1.0 };
        let asked = Asked { setting, load, seconds, round };
        let same = |row: &Row| (row.setting, row.load, row.round) == (setting, load, round) && row.seconds >= seconds;
        if let Some(row) = self.rows.iter().find(|row| same(row)) {
            return Ok(row.figures.unwrap_or_default());
        }
        if let Some(place) = self.known.iter().position(same) {
            let row = self.known.swap_remove(place);
            let figures = row.figures.unwrap_or_default();
            self.rows.push(row);
            return Ok(figures);
        }
        let (rows, part) = (self.rows.len(), self.part);
        let best = self.most(|_| true).map(|best| (best.setting, best.load));
        let left = Duration::from_secs_f64((self.options.budget.as_secs_f64() - self.elapsed()).max(0.0));
        if self.elapsed() + seconds + self.beside_s() > self.until {
            return Err(Halt::Over);
        }
        self.observer.doing(&Doing { part, asked, rows, best, left });
        let before = self.elapsed();
        let (figures, why) = match self.bench.evaluate(&asked) {
            Ok(figures) => (Some(figures), None),
            Err(Unmeasured::Unfit(why)) => (None, Some(why)),
            Err(Unmeasured::Stopped) => return Err(Halt::Stopped),
            Err(Unmeasured::Lost(why)) => return Err(Halt::Lost(why)),
        };
        self.beside = (self.beside.0 + (self.elapsed() - before - seconds).max(0.0), self.beside.1 + 1);
        let row = Row { setting, load, seconds, round, figures, why };
        self.observer.row(&row).map_err(|e| match e {
            Unmeasured::Stopped => Halt::Stopped,
            other => Halt::Lost(other.to_string()),
        })?;
        self.rows.push(row);
        Ok(figures.unwrap_or_default())
    }

    pub fn elapsed(&self) -> f64 {
        self.bench.now().saturating_sub(self.begun).as_secs_f64()
    }

    /// Seconds that a row takes beside its window.
    pub fn beside_s(&self) -> f64 {
        self.beside.0 / f64::from(self.beside.1.max(1))
    }

    /// Seconds of the finals of two at a load.
    fn finals_s(&self, load: f64) -> f64 {
        2.0 * f64::from(self.options.rounds) * (2.0 * self.options.window(load) + self.beside_s())
    }

    /// What is known of a setting at a load: of the final rounds, where there are some, together; otherwise of the search.
    pub fn known_at(&self, setting: Setting, load: f64) -> Option<Figures> {
        let rows = || self.rows.iter().filter(|r| r.setting == setting && r.load == load);
        let finals = rows().any(|r| r.round > 0);
        let counted: Vec<Figures> =
            rows().filter(|r| (r.round > 0) == finals).map(|r| r.figures.unwrap_or_default()).collect();
        if counted.is_empty() {
            return None;
        }
        let requests: u64 = counted.iter().map(|f| f.requests).sum();
        let mean = |pick: fn(&Figures) -> f64| {
            let weighted = counted.iter().map(|f| pick(f) * f.requests as f64).sum::<f64>();
            if requests > 0 { weighted / requests as f64 } else { 0.0 }
        };
        let most = |pick: fn(&Figures) -> f64| counted.iter().map(pick).fold(0.0, f64::max);
        Some(Figures {
            requests,
            share: mean(|f| f.share),
            goodput: mean(|f| f.goodput),
            ttft_p99_ms: most(|f| f.ttft_p99_ms),
            tpot_p99_ms: most(|f| f.tpot_p99_ms),
        })
    }

    /// The highest load that a setting keeps, below all that it does not.
    pub fn best(&self, setting: Setting) -> Best {
        let mut loads: Vec<f64> = self.rows.iter().filter(|r| r.setting == setting).map(|r| r.load).collect();
        loads.sort_by(f64::total_cmp);
        let mut best = Best { setting, load: 0.0, figures: Figures::default() };
        // What the finals say of a load counts, whatever the search has seen of one below it.
        let last = |load: &f64| self.rows.iter().any(|r| r.round > 0 && r.setting == setting && r.load == *load);
        let kept = |load: &f64| last(load) && self.known_at(setting, *load).is_some_and(|f| f.share >= SHARE);
        let from = loads.iter().rposition(kept).unwrap_or(0);
        for load in loads.into_iter().skip(from) {
            match self.known_at(setting, load) {
                Some(figures) if figures.share >= SHARE => best = Best { setting, load, figures },
                _ => break,
            }
        }
        best
    }

    /// Of the settings that are asked for, the one that keeps the highest load.
    fn most(&self, asked: impl Fn(Setting) -> bool) -> Option<Best> {
        let settings: BTreeSet<Setting> = self.rows.iter().map(|r| r.setting).filter(|s| asked(*s)).collect();
        let kept = settings.into_iter().map(|s| self.best(s)).filter(|b| b.load > 0.0);
        kept.max_by(|a, b| {
            (a.load, a.figures.goodput).partial_cmp(&(b.load, b.figures.goodput)).unwrap_or(std::cmp::Ordering::Equal)
        })
    }
}

/// A difference of two shares that chance alone makes seldom.
fn noise(a: &Figures, b: &Figures) -> f64 {
    let share = (a.share + b.share) / 2.0;
    let requests = a.requests.min(b.requests).max(1) as f64;
    (1.5 * (2.0 * share * (1.0 - share) / requests).sqrt()).max(0.02)
}
