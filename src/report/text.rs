//! Numbers, dates and names as people read them.

use super::rows::Row;
use crate::model::Phase;

/// Microseconds with the digits that count.
pub fn us(v: f64) -> String {
    match v {
        v if !v.is_finite() => "-".into(),
        v if v > 0.0 && v < 0.1 => format!("{v:.4}"),
        v if v < 100.0 => format!("{v:.2}"),
        v => format!("{v:.1}"),
    }
}

/// A time that may be long: µs, ms or s.
pub fn time(us: f64) -> String {
    match us {
        v if v < 1e3 => format!("{} µs", self::us(v)),
        v if v < 1e6 => format!("{:.2} ms", v / 1e3),
        v => format!("{:.2} s", v / 1e6),
    }
}

/// How many times as long.
pub fn ratio(v: f64) -> String {
    format!("{v:.2}×")
}

/// A share of one.
pub fn percent(v: f64) -> String {
    format!("{:.1}%", v * 100.0)
}

/// `peer/way`, or the peer alone where its way is named alike.
pub fn label(peer: &str, way: &str) -> String {
    if peer == way { peer.into() } else { format!("{peer}/{way}") }
}

/// The label of a row.
pub fn label_of(row: &Row) -> String {
    label(&row.peer, &row.way)
}

/// A phase in text; a problem that no model calls has none.
pub fn phase(phase: Option<Phase>) -> &'static str {
    phase.map_or("outside of a model", Phase::name)
}

/// A problem without the op's name, which its table has in the title.
pub fn short<'a>(problem: &'a str, op: &str) -> &'a str {
    problem.strip_prefix(op).map_or(problem, str::trim_start)
}

/// Year, month and day of seconds since 1970 (Howard Hinnant's `civil_from_days`).
fn civil(seconds: u64) -> [u64; 3] {
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    [year + era * 400 + u64::from(month <= 2), month, day]
}

/// `2026-11-22 14:03 UTC` of seconds since 1970.
pub fn date(seconds: u64) -> String {
    let ([year, month, day], rest) = (civil(seconds), seconds % 86_400);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest % 3600 / 60)
}

/// `20261122-140307` of seconds since 1970, in UTC, as names of files have it.
pub fn stamp(seconds: u64) -> String {
    let ([year, month, day], rest) = (civil(seconds), seconds % 86_400);
    format!("{year:04}{month:02}{day:02}-{:02}{:02}{:02}", rest / 3600, rest % 3600 / 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, expect) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_795_356_180, "2026-11-22 14:03 UTC"),
            (4_107_542_399, "2100-02-28 23:59 UTC"),
        ] {
            assert_eq!(date(seconds), expect);
        }
    }

    #[test]
    fn numbers_and_names() {
        assert_eq!((us(4.2), us(720.44), us(f64::NAN)), ("4.20".into(), "720.4".into(), "-".into()));
        assert_eq!((time(12.0), time(1234.0), time(2.5e6)), ("12.00 µs".into(), "1.23 ms".into(), "2.50 s".into()));
        assert_eq!((label("torch", "compile"), label("candle", "candle")), ("torch/compile".into(), "candle".into()));
        assert_eq!(short("gelu rows=4", "gelu"), "rows=4");
        assert_eq!(short("gelu", "matmul"), "gelu");
    }
}
