//! The way from the CPU engine to the primary one, in steps with their commands.

use super::entry::{Entry, OURS};
use super::facts::Facts;
use super::proxy;
use super::rankings::{closed, deciding};

use super::source::{Said, Source};
use super::words::{number, percent, ratio};
use serde::Serialize;

/// A step of the way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// What is done.
    pub title: String,
    /// Why, and what it is held against.
    pub said: Vec<Said>,
    /// The commands, one a line.
    pub commands: Vec<String>,
}

fn step(title: &str, said: Vec<Said>, commands: Vec<String>) -> Step {
    Step { title: title.into(), said, commands }
}

/// The shares of the traffic that the primary engine has, one after another, in percent.
const SHARES: [u32; 4] = [5, 25, 50, 100];

/// The steps from the CPU engine to the primary one; none where one of the two was not measured.
pub(super) fn migration(facts: &Facts<'_>, primary: &[&Entry]) -> Vec<Step> {
    let pairs: Vec<Pair<'_>> = primary.iter().filter_map(|e| pair(facts, e)).collect();
    // One precision of the new engine and one old engine: those of the most workloads.
    let most = |of: &dyn Fn(&Pair<'_>) -> String| {
        let count = |p: &&Pair<'_>| pairs.iter().filter(|o| of(o) == of(p)).count();
        pairs.iter().rev().max_by_key(count).map(of)
    };
    let (dtype, old) = (most(&|p| p.0.dtype.clone()), most(&|p| p.1.engine.clone()));
    let same = |p: &&Pair<'_>| Some(&p.0.dtype) == dtype.as_ref() && Some(&p.1.engine) == old.as_ref();
    let (better, behind): (Vec<&Pair<'_>>, Vec<&Pair<'_>>) = pairs.iter().filter(same).partition(|p| p.2 > 1.0);
    // What is promised is the least gain.
    let Some((worst, base, gain)) = better.iter().min_by(|a, b| a.2.total_cmp(&b.2)).copied() else {
        return Vec::new();
    };
    let run = &facts.runs.run;
    let both = vec![worst.source(), base.source()];
    let (new, old) = (&worst.engine, &base.engine);
    let check = |e: &Entry| Source::Check { engine: e.engine.clone(), dtype: e.dtype.clone() };
    let beside = format!(
        "{old} {} on {} stays as it is, and {new} {} on {} runs beside it; nginx.conf and envoy.yaml expect the one at {} and the \
         other at {}.",
        base.dtype,
        base.device,
        worst.dtype,
        worst.device,
        proxy::CPU,
        proxy::GPU
    );
    let serve = (new == OURS)
        .then(|| format!("jitune serve --model {} --host 127.0.0.1 --port {}", quoted(&run.model), proxy::PORT));
    let gate = format!(
        "{new} is {} as good as {old} or better at each of {} workloads (in output tokens/s, or in the time to the end where \
         requests come at their own times), the least at {} {}: measure again before each step, and go on only while that stands \
         and the checks are ok.",
        ratio(*gain),
        better.len(),
        worst.workload,
        worst.dtype
    );
    let lines = better.iter().flat_map(|(e, b, _)| [e.source(), b.source()]).chain([check(worst), check(base)]);
    let mut gate = vec![Said::new(gate, lines)];
    gate.extend(behind.iter().map(|(e, b, gain)| {
        let text =
            format!("At {} {} {new} is {} as good as {old}, which keeps these.", e.workload, e.dtype, ratio(*gain));
        Said::new(text, [e.source(), b.source()])
    }));
    let shares = SHARES.map(|s| format!("{s}%")).join(", ");
    // The workload at which the backup falls short the most.
    let rates = better.iter().filter_map(|(e, b, _)| Some((*e, *b, rate(e)?, rate(b)?)));
    let closed = rates.filter(|(e, ..)| closed(run, &e.workload));
    let short = closed.max_by(|a, b| (a.2 / a.3).total_cmp(&(b.2 / b.3))).map(|(e, b, own, its)| {
        let text = format!(
            "{old} takes all requests while {new} is away: at {} {} it answers {} of the output tokens/s ({} instead of {}), the rest \
             waits.",
            e.workload,
            e.dtype,
            percent(its / own),
            number(its),
            number(own)
        );
        Said::new(text, [e.source(), b.source()])
    });
    let edit = |to: &str| {
        format!(
            "sed -i -E 's/^( *)(# )?([0-9.]+%)( +gpu;)/\\1{to}\\4/' nginx.conf && nginx -c \"$PWD/nginx.conf\" -s reload"
        )
    };
    let raise = SHARES[1..].iter().map(|share| edit(&format!("{share}%")));
    vec![
        step("Run both", vec![Said::new(beside, both.clone())], serve.into_iter().collect()),
        step("Hold both against each other", gate, vec![run.command.clone()]),
        step(
            "Give it a share of the requests",
            vec![Said::new(
                format!(
                    "nginx.conf (or envoy.yaml) gives {new} {}% of the requests and {old} the rest; what {new} cannot take goes to {old}.",
                    SHARES[0]
                ),
                both.clone(),
            )],
            vec!["nginx -t -c \"$PWD/nginx.conf\"".into(), "nginx -c \"$PWD/nginx.conf\"".into()],
        ),
        step(
            "Raise the share",
            vec![Said::new(
                format!(
                    "{shares}, each for as long as it takes to see that the targets hold; the last command takes all of it back."
                ),
                better.iter().map(|p| p.0.source()),
            )],
            raise.chain([edit("# \\3")]).collect(),
        ),
        step("Keep the CPU engine as the backup", short.into_iter().collect(), Vec::new()),
    ]
}

/// The primary engine's entry, the CPU engine's, and how many times better the first is.
type Pair<'a> = (&'a Entry, &'a Entry, f64);

fn pair<'a>(facts: &'a Facts<'_>, e: &'a Entry) -> Option<Pair<'a>> {
    let metric = deciding(&facts.runs.run, &e.workload);
    let own = metric.of(e.counted().filter(|_| e.target == "cuda")?)?.median;
    let (base, its) = facts.baseline.best(e, metric).ok()?;
    Some((e, base, metric.gain(own, its)?))
}

fn rate(e: &Entry) -> Option<f64> {
    e.counted()?.output_throughput.map(|v| v.median).filter(|v| *v > 0.0)
}

/// A word of a command line.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@+=".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}
