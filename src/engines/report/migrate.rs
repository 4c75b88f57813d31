//! The way from the CPU engine to the primary one, in steps with their commands.

use super::entry::{Entry, OURS};
use super::facts::Facts;
use super::noise::Metric;
use super::proxy;

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
        "{new} has {} the output tokens/s of {old} or more at each of {} workloads, the least at {} {}: measure again before each \
         step, and go on only while that stands and the checks are ok.",
        ratio(*gain),
        better.len(),
        worst.workload,
        worst.dtype
    );
    let lines = better.iter().flat_map(|(e, b, _)| [e.source(), b.source()]).chain([check(worst), check(base)]);
    let mut gate = vec![Said::new(gate, lines)];
    gate.extend(behind.iter().map(|(e, b, gain)| {
        let text = format!(
            "At {} {} {old} is no slower ({} of its output tokens/s): it keeps these.",
            e.workload,
            e.dtype,
            percent(*gain)
        );
        Said::new(text, [e.source(), b.source()])
    }));
    let shares = SHARES.map(|s| format!("{s}%")).join(", ");
    let carries = format!(
        "A CPU engine that takes all requests while the GPU is away answers {} of {new}'s output tokens/s at {} {} ({} instead of {}): \
         the rest waits or is refused.",
        percent(1.0 / *gain),
        worst.workload,
        worst.dtype,
        number(rate(base)),
        number(rate(worst))
    );
    let set = |share: u32| {
        format!(
            "sed -i -E 's/^( *)[0-9.]+%( +gpu;)/\\1{share}%\\2/' nginx.conf && nginx -c \"$PWD/nginx.conf\" -s reload"
        )
    };
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
                format!("{shares}, each for as long as the targets below hold; 0% takes all of it back."),
                better.iter().map(|p| p.0.source()),
            )],
            SHARES[1..].iter().map(|s| set(*s)).chain([set(0)]).collect(),
        ),
        step("Keep the CPU engine as the backup", vec![Said::new(carries, both)], Vec::new()),
    ]
}

/// The primary engine's entry, the CPU engine's, and the first's output tokens/s over the second's.
type Pair<'a> = (&'a Entry, &'a Entry, f64);

fn pair<'a>(facts: &'a Facts<'_>, e: &'a Entry) -> Option<Pair<'a>> {
    let own = Metric::OutputThroughput.of(e.counted().filter(|_| e.target == "cuda")?)?.median;
    let (base, its) = facts.baseline.best(e, Metric::OutputThroughput).ok()?;
    Some((e, base, own / its))
}

fn rate(e: &Entry) -> f64 {
    e.counted().and_then(|f| f.output_throughput).map_or(0.0, |v| v.median)
}

/// A word of a command line.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@+=".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}
