//! Progress of long work: a live line on a terminal, plain lines elsewhere; of a tuning run, JSON lines when asked.

use super::table;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jitune::problem::Problem;
use jitune::tune::{Event, Observer};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// How progress is shown.
pub enum Progress {
    /// Events as JSON lines on standard output.
    Json,
    /// A live bar or plain lines on standard error.
    Human(Human),
}

/// The human forms.
pub struct Human {
    line: Live,
    start: Instant,
    budget: Duration,
}

/// A live line on standard error where that is a terminal; elsewhere only what stays.
pub struct Live {
    bar: ProgressBar,
    live: bool,
}

impl Live {
    /// In indicatif's template.
    pub fn new(template: &str) -> Live {
        let live = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        if !live {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Live { bar, live }
    }

    /// What is being done, behind the bar.
    pub fn message(&self, text: &str) {
        self.bar.set_message(crate::out::one_line(text));
    }

    /// A line that stays.
    pub fn say(&self, text: &str) {
        if self.live {
            self.bar.println(crate::out::escaped(text));
        } else {
            // Progress that cannot be written is no reason to stop.
            err!("{text}");
        }
    }
}

impl std::ops::Deref for Live {
    type Target = ProgressBar;

    fn deref(&self) -> &ProgressBar {
        &self.bar
    }
}

/// A time that is left, in words.
pub fn left(time: Duration) -> String {
    let seconds = time.as_secs();
    format!("{}:{:02} left", seconds / 60, seconds % 60)
}

impl Progress {
    /// JSON lines, or what suits the terminal.
    pub fn new(json: bool, budget: Duration) -> Progress {
        if json {
            return Progress::Json;
        }
        let line = Live::new("{elapsed_precise} [{bar:24}] {pos}/{len}  {msg}");
        Progress::Human(Human { line, start: Instant::now(), budget })
    }

    /// Takes the live line away.
    pub fn finish(&self) {
        if let Progress::Human(h) = self {
            h.line.finish_and_clear();
        }
    }
}

impl Human {
    fn left(&self) -> String {
        left(self.budget.saturating_sub(self.start.elapsed()))
    }

    fn show(&self, event: &Event) {
        match event {
            Event::Plan { problems, stored } => {
                self.line.set_length(*problems as u64);
                self.line.set_position(*stored as u64);
                self.line.say(&format!("{problems} problems, {stored} of them stored already"));
            }
            Event::Device { device } => self.line.say(&format!(
                "{} ({}): read {}, copy {}, f32 products {}",
                device.name,
                device.arch,
                table::bytes(device.ceilings.read),
                table::bytes(device.ceilings.copy),
                table::flops(device.ceilings.single),
            )),
            Event::Problem { problem, space, .. } => {
                self.line.message(&format!("{problem}  {space} configs  {}", self.left()));
            }
            Event::Trial { problem, best_us, roofline_us, trials, .. } => {
                let share = if best_us.is_finite() { roofline_us / best_us * 100.0 } else { 0.0 };
                self.line.message(&format!(
                    "{problem}  trial {trials}  best {} us  {share:.0}% of roofline  {}",
                    table::us(*best_us),
                    self.left()
                ));
            }
            Event::Won { winner, stored: false, .. } => {
                self.line.inc(1);
                let e = &winner.evidence;
                self.line.say(&format!(
                    "{:>10} us  {:>3.0}% of roofline  {:>3} trials  {:>5.1} s  {}  {}  [{}]  {}",
                    table::us(e.median_us),
                    e.roofline_share * 100.0,
                    e.trials,
                    e.seconds,
                    winner.problem,
                    winner.template(),
                    winner.config,
                    self.left()
                ));
            }
            Event::Failed { problem, error, .. } => {
                self.line.inc(1);
                self.line.say(&format!("    failed  {problem}: {}", why(problem, error)));
            }
            // What was stored before, and what a later version tells.
            _ => {}
        }
    }
}

/// Why a problem has no winner, without the problem, which stands before it already.
pub(super) fn why<'a>(problem: &Problem, error: &'a str) -> &'a str {
    error.strip_prefix(&format!("'{problem}': ")).unwrap_or(error)
}

impl Observer for Progress {
    fn event(&self, event: &Event) {
        match self {
            Progress::Human(h) => h.show(event),
            Progress::Json => {
                if let Ok(text) = serde_json::to_string(event) {
                    out!("{text}");
                }
            }
        }
    }
}
