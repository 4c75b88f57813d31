//! Plain tables, and numbers as people read them.

pub use jitune::report::text::us;

/// Prints rows under a header, columns aligned; numbers (columns in `right`) to the right.
pub fn print(header: &[&str], rows: &[Vec<String>], right: &[usize]) {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|c| crate::out::one_line(c)).collect()).collect();
    let width = |c: usize| {
        let cells = rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count());
        cells.chain([header[c].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let mut out = String::new();
        for (c, cell) in cells.iter().enumerate() {
            let pad = " ".repeat(widths[c].saturating_sub(cell.chars().count()));
            let (before, after) = if right.contains(&c) { (pad.as_str(), "") } else { ("", pad.as_str()) };
            out.push_str(before);
            out.push_str(cell);
            out.push_str(after);
            out.push_str("  ");
        }
        out!("{}", out.trim_end());
    };
    line(header.to_vec());
    for row in &rows {
        line(row.iter().map(String::as_str).collect());
    }
}

/// Operations a second.
pub fn flops(v: f64) -> String {
    if v >= 1e12 { format!("{:.1} TFLOP/s", v / 1e12) } else { format!("{:.1} GFLOP/s", v / 1e9) }
}

/// Bytes a second.
pub fn bytes(v: f64) -> String {
    format!("{:.1} GB/s", v / 1e9)
}

/// A count with its thousands set apart.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
