//! Numbers of a run's lines that cannot have been measured.

use crate::engines::measured::{Meanwhile, Measured, Spread};
use crate::engines::rows::{Line, Request};

/// Which number it is, and its value.
pub(super) type Bad = (&'static str, f64);

fn within(name: &'static str, list: &[f64], low: f64, high: f64) -> Result<(), Bad> {
    match list.iter().find(|v| !(low..=high).contains(*v)) {
        Some(value) => Err((name, *value)),
        None => Ok(()),
    }
}

/// A moment of a cell in seconds: no cell takes four months.
const LONGEST_S: f64 = 1e7;
/// Any rate, count or time beyond this was not measured.
const MOST: f64 = 1e18;

/// The first number of a line that cannot have been measured: pictures and tables are as large as what they show.
pub(super) fn check(line: &Line) -> Result<(), Bad> {
    match line {
        Line::Run(run) => run.prices.values().try_for_each(|p| within("a price in dollars an hour", &[*p], 1e-6, 1e6)),
        Line::Start(start) => within("start_s", start.start_s.as_slice(), 0.0, LONGEST_S),
        Line::Check(check) => {
            // A divergence of nothing may come out a little below zero.
            for (name, value) in [("kl", check.kl), ("own_kl", check.own_kl)] {
                within(name, value.as_slice(), -1e-3, 1e9)?;
            }
            within("top1", check.top1.as_slice(), 0.0, 1.0)
        }
        Line::Request(request) => moments(request),
        Line::Cell(cell) => cell.measured.as_ref().map_or(Ok(()), measured),
        Line::Trace(t) => {
            let r = &t.reading;
            within("t", &[r.t], 0.0, LONGEST_S)?;
            [r.sm_mhz, r.mem_mhz, r.power_w, r.temp_c]
                .iter()
                .try_for_each(|v| within("a reading of the hardware", v.as_slice(), -300.0, 1e9))?;
            [r.gpu_pct, r.mem_pct].iter().try_for_each(|v| within("a share of the time in %", v.as_slice(), 0.0, 100.0))
        }
        Line::Tokenization(t) => [t.encode, t.decode]
            .iter()
            .try_for_each(|v| within("tokens a second of a tokenizer", v.as_slice(), 0.0, MOST)),
        Line::End(end) => within("seconds", &[end.seconds], 0.0, LONGEST_S),
    }
}

/// The moments of a request, one after another.
fn moments(r: &Request) -> Result<(), Bad> {
    within("due_s", &[r.due_s], 0.0, LONGEST_S)?;
    within("sent_s", &[r.sent_s], 0.0, LONGEST_S)?;
    within("prompt", &[r.prompt as f64, r.asked as f64], 0.0, 1e9)?;
    let mut before = r.sent_s;
    for at in r.at_s.iter().chain(&r.end_s) {
        within("a moment of a request, in seconds,", &[*at], before, LONGEST_S)?;
        before = *at;
    }
    Ok(())
}

fn measured(m: &Measured) -> Result<(), Bad> {
    within("duration_s", &[m.duration_s], 0.0, LONGEST_S)?;
    for (name, value) in [
        ("request_throughput", m.request_throughput),
        ("output_throughput", m.output_throughput),
        ("total_throughput", m.total_throughput),
        ("piece_tokens", m.piece_tokens),
    ] {
        within(name, &[value], 0.0, MOST)?;
    }
    within("goodput", m.goodput.as_slice(), 0.0, MOST)?;
    within("over_time", &m.over_time, 0.0, MOST)?;
    for (name, s) in [
        ("ttft_ms", m.ttft_ms),
        ("tpot_ms", m.tpot_ms),
        ("itl_ms", m.itl_ms),
        ("e2el_ms", m.e2el_ms),
        ("late_ms", m.late_ms),
    ] {
        spread(name, &s)?;
    }
    meanwhile(&m.meanwhile)
}

fn spread(name: &'static str, s: &Spread) -> Result<(), Bad> {
    within(name, &[s.mean, s.std], 0.0, LONGEST_S * 1e3)?;
    let mut before = 0.0;
    for v in [s.median, s.p90, s.p99, s.max] {
        within(name, &[v], before, LONGEST_S * 1e3)?;
        before = v;
    }
    Ok(())
}

fn meanwhile(m: &Meanwhile) -> Result<(), Bad> {
    for (name, value) in
        [("pages_used", m.pages_used), ("live_share", m.live_share), ("prefix_hits", m.prefix_hits), ("busy", m.busy)]
    {
        within(name, value.as_slice(), 0.0, 1.0)?;
    }
    for (name, value) in [
        ("launches_a_step", m.launches_a_step),
        ("host_us_a_step", m.host_us_a_step),
        ("to_device_a_step", m.to_device_a_step),
        ("to_host_a_step", m.to_host_a_step),
        ("roofline", m.roofline),
        ("sm_mhz", m.sm_mhz),
        ("power_w", m.power_w),
        ("joules_a_token", m.joules_a_token),
        ("host_cores", m.host_cores),
    ] {
        within(name, value.as_slice(), 0.0, MOST)?;
    }
    Ok(())
}
