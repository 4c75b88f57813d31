//! One problem on all peers: set up in turn, checked, then timed round by round, so that whatever the machine does
//! meanwhile meets all of them alike.

use super::monitor::Monitor;
use super::peers::{Conversation, Unanswered};
use super::task::{self, Distance, Prepared};
use super::{Entrant, OURS, Observer, Options, TUNED, TWIN};
use crate::backend::session::{Series, gate_clocks};
use crate::device::Device;
use crate::problem::{Expected, Problem, Storage};
use crate::report::rows::{Basis, Row, State, Times};
use crate::worker::lines::short;
use jitune_peer::{Answer, Ask, Refusal, RefusalKind, RefusedWay, Round, Way};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long setting up may take beyond the warm-up that was asked for: a framework compiles in it.
const PREPARE: Duration = Duration::from_secs(180);
/// How long a check, a round or a release may take.
const STEP: Duration = Duration::from_secs(60);

/// How many times jitune's own error limit a peer's error may be before it counts as wrong. A peer may round where our
/// kernels do not (attention scores to bf16, say): it is then less accurate, and its row says so.
const PEER_SLACK: f64 = 3.0;

/// Rounds of even the slowest problem: of fewer samples, the least and the greatest hold the median with less than 94%.
const FEWEST: u32 = 5;

/// A way that is timed.
struct Lane {
    entrant: usize,
    row: Row,
    kernel: Series,
    called: Series,
}

/// Measures `problem` on every peer that is alive. Peers that are lost are gone from `entrants` afterwards.
pub fn measure(
    problem: &Problem,
    prepared: &Prepared,
    entrants: &mut [Entrant],
    options: &Options,
    monitor: &Monitor,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut lanes = Vec::new();
    for (at, entrant) in entrants.iter_mut().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let blank = Row { problem: problem.to_string(), peer: entrant.label.clone(), ..Row::default() };
        let Some(conversation) = &mut entrant.conversation else {
            rows.push(failed(&blank, format!("it was lost {} times and is not started again", entrant.losses)));
            continue;
        };
        let blank = Row { version: Some(conversation.about.version.clone()), ..blank };
        observer.doing(&format!("{} sets up", entrant.label));
        let deadline = PREPARE + Duration::from_secs_f64(prepared.task.warm_s * 4.0);
        let begun = Instant::now();
        let answer = conversation.ask(&Ask::Prepare(Box::new(prepared.task.clone())), deadline);
        let blank = Row { setup_s: Some(begun.elapsed().as_secs_f64()), ..blank };
        match answer {
            Ok(Answer::Prepared { ways, refused }) => {
                rows.extend(refused.iter().map(|r| refused_row(&blank, r)));
                for way in ways {
                    let mut row = of_way(&blank, &way);
                    let checked = check(conversation, &way, prepared);
                    let keep = note(&mut row, checked, prepared);
                    if let Some(lost) = keep {
                        row.why = Some(lost);
                        entrant.conversation = None;
                        rows.push(row);
                        break;
                    }
                    match row.state {
                        State::Ok => {
                            lanes.push(Lane { entrant: at, row, kernel: Series::default(), called: Series::default() })
                        }
                        _ => rows.push(row),
                    }
                }
            }
            Ok(other) => rows.push(failed(&blank, format!("it answered {}", short(&other)))),
            Err(Unanswered::Refused(why)) => {
                let state = if why.kind == RefusalKind::Unsupported { State::Unsupported } else { State::Failed };
                rows.push(Row { state, why: Some(why.why), covers: "all".into(), ..blank });
            }
            Err(lost @ Unanswered::Lost { .. }) => {
                rows.push(failed(&blank, lost.to_string()));
                entrant.conversation = None;
            }
        }
    }
    part_with_lost(&mut lanes, entrants, &mut rows);
    let before = monitor.mark();
    let cut = rounds(&mut lanes, entrants, &mut rows, options, monitor, stop, observer);
    let throttled = monitor.throttled_since(before);
    if !stop.load(Ordering::Relaxed) {
        check_again(&mut lanes, entrants, prepared, observer);
        part_with_lost(&mut lanes, entrants, &mut rows);
    }
    for entrant in entrants.iter_mut() {
        if let Some(conversation) = &mut entrant.conversation
            && let Err(Unanswered::Lost { .. }) = conversation.ask(&Ask::Release, STEP)
        {
            entrant.conversation = None;
        }
    }
    rows.extend(lanes.into_iter().map(|lane| timed(lane, &throttled, cut)));
    // What was lost because the user stopped the run says nothing of the peer.
    for row in rows.iter_mut().filter(|r| stop.load(Ordering::Relaxed) && r.state == State::Failed) {
        row.state = State::Cut;
    }
    rates(&mut rows, &options.device, problem);
    rows
}

fn of_way(blank: &Row, way: &Way) -> Row {
    Row { way: way.way.clone(), how: way.how.clone(), covers: way.covers.clone(), state: State::Ok, ..blank.clone() }
}

fn refused_row(blank: &Row, refused: &RefusedWay) -> Row {
    let state = if refused.kind == RefusalKind::Unsupported { State::Unsupported } else { State::Failed };
    Row { way: refused.way.clone(), state, why: Some(refused.why.clone()), covers: "all".into(), ..blank.clone() }
}

fn failed(row: &Row, why: String) -> Row {
    let covers = if row.covers.is_empty() { "all".into() } else { row.covers.clone() };
    Row { state: State::Failed, why: Some(why), covers, ..row.clone() }
}

/// Takes a check's result into the row; the text of a loss when the peer is gone.
fn note(row: &mut Row, checked: Result<Distance, Unanswered>, prepared: &Prepared) -> Option<String> {
    match checked {
        Ok(d) => {
            row.error_rms = d.rms.is_finite().then_some(d.rms);
            row.error_max = d.max.is_finite().then_some(d.max);
            row.compared = d.compared;
            let limit = prepared.tolerance;
            let within = |times: f64| d.rms <= limit.rms * times && d.max <= limit.max * times;
            let is_ours = row.peer == OURS || row.peer == TWIN;
            let allowed = if is_ours { 1.0 } else { PEER_SLACK };
            row.less_accurate = !within(1.0) && within(allowed);
            // Ours gives the lowest index among equals; a peer may give any of them.
            let indices = if is_ours { d.wrong + d.ties } else { d.wrong };
            if !within(allowed) || indices > 0 {
                row.state = State::Wrong;
            }
            if indices > 0 {
                row.why = Some(format!("{indices} of {} indices are wrong", d.compared));
            } else if d.ties > 0 {
                row.why = Some(format!("{} of {} indices are not the lowest among equals", d.ties, d.compared));
            }
            if !within(1.0) {
                row.why = Some(format!(
                    "error rms {:.1e} (limit {:.0e}), max {:.1e} (limit {:.0e})",
                    d.rms, limit.rms, d.max, limit.max
                ));
            }
            None
        }
        Err(Unanswered::Refused(why)) => {
            row.state = State::Failed;
            row.why = Some(why.why);
            None
        }
        Err(lost @ Unanswered::Lost { .. }) => {
            row.state = State::Failed;
            Some(lost.to_string())
        }
    }
}

/// Compares a way's outputs with the reference, as far as it covers them.
fn check(conversation: &mut Conversation, way: &Way, prepared: &Prepared) -> Result<Distance, Unanswered> {
    let mut all = Distance::default();
    for tensor in prepared.task.tensors.iter().filter(|t| t.is_out()) {
        // A peer that leaves out the cache write is right or wrong by y alone.
        if way.covers != "all" && tensor.name != "y" {
            continue;
        }
        let list = if way.covers == "product" { &prepared.product } else { &prepared.expected };
        let mine: Vec<&Expected> = list.iter().filter(|e| e.tensor == tensor.name).collect();
        if mine.is_empty() {
            continue;
        }
        let indices: Vec<u64> = mine.iter().map(|e| e.index).collect();
        let values = conversation.read(&way.way, &tensor.name, &indices, STEP)?;
        let d = match tensor.dtype == Storage::I32.name() {
            true => task::indices(prepared, &mine, &values),
            false => task::distance(&tensor.dtype, &mine, &values),
        };
        all = all.and(d);
    }
    match all.compared {
        0 => Err(unchecked(format!("none of its values can be compared: it covers `{}`", way.covers))),
        _ => Ok(all),
    }
}

/// Compares once more after all rounds: what is right at its first calls alone is not right, and has no times.
fn check_again(lanes: &mut [Lane], entrants: &mut [Entrant], prepared: &Prepared, observer: &mut dyn Observer) {
    for lane in lanes {
        observer.doing(&format!("{} is checked again", lane.row.peer));
        let entrant = &mut entrants[lane.entrant];
        let Some(conversation) = &mut entrant.conversation else { continue };
        let way = Way::part(lane.row.way.clone(), "", lane.row.covers.clone());
        let mut row = lane.row.clone();
        if let Some(lost) = note(&mut row, check(conversation, &way, prepared), prepared) {
            row = failed(&row, lost);
            entrant.conversation = None;
        }
        if row.state != State::Ok {
            let why = row.why.unwrap_or_default();
            lane.row = Row { why: Some(format!("after its rounds, and not before: {why}")), ..row };
        }
    }
}

/// What cannot be compared is not right.
fn unchecked(why: String) -> Unanswered {
    Unanswered::Refused(Refusal::failed(why))
}

/// The rounds, each lane once in each; every round starts with another lane. Says whether it was cut short.
fn rounds(
    lanes: &mut Vec<Lane>,
    entrants: &mut [Entrant],
    rows: &mut Vec<Row>,
    options: &Options,
    monitor: &Monitor,
    stop: &AtomicBool,
    observer: &mut dyn Observer,
) -> bool {
    let begun = Instant::now();
    for round in 0..options.rounds {
        observer.doing(&format!("round {} of {}", round + 1, options.rounds));
        if stop.load(Ordering::Relaxed) {
            return true;
        }
        if round >= FEWEST && begun.elapsed().as_secs_f64() > options.seconds {
            return false;
        }
        for i in 0..lanes.len() {
            let n = lanes.len();
            let lane = &mut lanes[(i + round as usize) % n];
            let Some(conversation) = &mut entrants[lane.entrant].conversation else { continue };
            let asked = Instant::now();
            let answer = conversation.ask(&Ask::Round { way: lane.row.way.clone() }, STEP);
            let waited = asked.elapsed();
            match answer {
                Ok(Answer::Round(r)) if impossible(&r, waited).is_some() => {
                    lane.row = failed(&lane.row, impossible(&r, waited).unwrap_or_default());
                }
                Ok(Answer::Round(r)) => {
                    let mhz = monitor.clock();
                    if let Some(us) = r.kernel_us {
                        lane.kernel.us.push(us);
                        lane.kernel.mhz.push(mhz);
                    }
                    lane.called.us.push(r.called_us);
                    lane.called.mhz.push(mhz);
                }
                Ok(other) => lane.row = failed(&lane.row, format!("it answered {}", short(&other))),
                Err(Unanswered::Refused(why)) => lane.row = failed(&lane.row, why.why),
                Err(lost) => {
                    lane.row = failed(&lane.row, lost.to_string());
                    entrants[lane.entrant].conversation = None;
                }
            }
        }
        part_with_lost(lanes, entrants, rows);
    }
    false
}

/// Why times cannot be those of a round that was waited for so long.
fn impossible(round: &Round, waited: Duration) -> Option<String> {
    // No call is shorter than a nanosecond. The peer's clock and ours may differ a little.
    let most = waited.as_secs_f64() * 1e6 * 1.1 + 1000.0;
    let bad = |us: &f64| !(*us >= 1e-3 && *us * f64::from(round.calls) <= most);
    let found = [Some(round.called_us), round.kernel_us].into_iter().flatten().find(bad);
    match (found, round.calls) {
        (_, 0) => Some("it says that a round made no call".into()),
        (Some(us), calls) => Some(format!("{calls} calls of {us:e} us are no round that was waited for {most:.0} us")),
        (None, _) => None,
    }
}

/// Makes rows of the lanes that failed and of those whose process is gone.
fn part_with_lost(lanes: &mut Vec<Lane>, entrants: &[Entrant], rows: &mut Vec<Row>) {
    lanes.retain(|lane| {
        let failed_itself = lane.row.state != State::Ok;
        let alive = !failed_itself && entrants[lane.entrant].conversation.is_some();
        if failed_itself {
            rows.push(lane.row.clone());
        } else if !alive {
            rows.push(failed(&lane.row, "its process was lost on another way".into()));
        }
        alive
    });
}

/// A lane's row with its times.
fn timed(lane: Lane, throttled: &[String], cut: bool) -> Row {
    let mut series = [lane.kernel, lane.called];
    for s in &mut series {
        gate_clocks(std::slice::from_mut(s));
    }
    let mut clocks: Vec<u32> = series[1].mhz.iter().copied().filter(|m| *m > 0).collect();
    clocks.sort_unstable();
    let [kernel, called] = series.map(|s| times(s.us));
    let state = if cut && called.is_none() { State::Cut } else { State::Ok };
    Row {
        state,
        basis: if kernel.is_some() { Basis::Kernel } else { Basis::Called },
        kernel,
        called,
        clock_mhz: clocks.get(clocks.len() / 2).map(|m| f64::from(*m)),
        throttled: throttled.to_vec(),
        ..lane.row
    }
}

/// The median and its 95% interval, by order statistics: the ranks n/2 ± 0.98·√n of the sorted samples (the normal
/// approximation of the binomial).
pub fn times(samples_us: Vec<f64>) -> Option<Times> {
    let mut sorted = samples_us.clone();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let middle = *sorted.get(n / 2)?;
    let median_us = if n.is_multiple_of(2) { (sorted[n / 2 - 1] + middle) / 2.0 } else { middle };
    let half = 0.98 * (n as f64).sqrt();
    let low = (n as f64 / 2.0 - half).floor().max(0.0) as usize;
    let high = ((n as f64 / 2.0 + half).ceil() as usize).min(n - 1);
    Some(Times { median_us, low_us: sorted[low], high_us: sorted[high], samples_us })
}

/// Rates, and ratios against jitune's winner on the best basis that both have.
fn rates(rows: &mut [Row], device: &Device, problem: &Problem) {
    let tuned = |peer: &str| rows.iter().find(|r| r.peer == peer && r.way == TUNED && r.state == State::Ok).cloned();
    let (ours, twin) = (tuned(OURS), tuned(TWIN));
    let roofline = device.roofline(problem).0 * 1e6;
    for row in rows.iter_mut().filter(|r| r.state == State::Ok) {
        let Some(own) = row.times().cloned() else { continue };
        if row.covers == "all" {
            row.tflops = Some(problem.flops() / own.median_us / 1e6);
            row.gbs = Some(problem.bytes() as f64 / own.median_us / 1e3);
            row.roofline_share = Some(roofline / own.median_us);
        }
        let Some(ours) = &ours else { continue };
        if (row.peer.as_str(), row.way.as_str()) == (OURS, TUNED) {
            continue;
        }
        let on_basis = |of: &Row| if row.basis == Basis::Kernel { of.kernel.clone() } else { of.called.clone() };
        if let Some(reference) = on_basis(ours) {
            let ratio = own.median_us / reference.median_us;
            // What two entrants of one program differ by is no difference.
            let noise =
                twin.as_ref().and_then(on_basis).map_or(0.0, |t| (t.median_us / reference.median_us).ln().abs());
            let overlap = own.low_us <= reference.high_us && reference.low_us <= own.high_us;
            (row.ratio, row.tie) = (Some(ratio), overlap || ratio.ln().abs() <= noise);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_twin_differs_by_is_a_tie() {
        let row = |peer: &str, us: f64| {
            let kernel = times((0..9).map(|i| us + f64::from(i) * 0.01).collect());
            Row { peer: peer.into(), way: TUNED.into(), state: State::Ok, kernel, ..Row::default() }
        };
        let tie = |twin: f64, peer: f64| {
            let mut rows = [row(OURS, 10.0), row(TWIN, twin), row("other", peer)];
            rates(&mut rows, &Device::ahead_of_time("sm_90a").unwrap(), &"gelu rows=8 cols=64".parse().unwrap());
            (rows[2].ratio.map(|r| (r * 100.0).round() / 100.0), rows[2].tie)
        };
        assert_eq!(tie(10.0, 10.05), (Some(1.0), true));
        assert_eq!(tie(10.2, 10.5), (Some(1.05), false));
        assert_eq!(tie(10.6, 10.5), (Some(1.05), true));
        assert_eq!(tie(9.4, 10.5), (Some(1.05), true));
        assert_eq!(tie(9.4, 9.0), (Some(0.9), false));
    }

    #[test]
    fn the_interval_holds_the_median_and_leaves_out_the_ends() {
        let t = times((1..=101).map(f64::from).collect()).unwrap();
        assert_eq!(t.median_us, 51.0);
        assert!(t.low_us > 35.0 && t.low_us < 51.0 && t.high_us > 51.0 && t.high_us < 67.0, "{t:?}");
        let few = times(vec![3.0, 1.0]).unwrap();
        assert_eq!((few.median_us, few.low_us, few.high_us), (2.0, 1.0, 3.0));
        assert_eq!(times(Vec::new()), None);
    }
}
