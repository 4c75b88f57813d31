//! Where tables stand in a README: between two lines, of which the first names the rows that they are made of.

/// The last line of every place.
const END: &str = "<!-- /jitune report -->";

/// A README without a place for the tables of these rows, or with more than one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it has not these two lines, once and one after the other; put them where the tables shall stand:\n{start}\n{END}"
)]
pub struct NoPlace {
    start: String,
}

/// The lines between which the tables of these rows stand; the rows are named by the path of their file, as it is given.
pub fn markers(rows: &str) -> [String; 2] {
    [format!("<!-- jitune report: {rows} -->"), END.into()]
}

/// A README with the tables between the lines of [`markers`], in place of what was there.
pub fn placed(readme: &str, rows: &str, tables: &str) -> Result<String, NoPlace> {
    let [start, end] = markers(rows);
    let lines: Vec<&str> = readme.split_inclusive('\n').collect();
    let mut begins = (0..lines.len()).filter(|i| lines[*i].trim() == start);
    let (Some(first), None) = (begins.next(), begins.next()) else { return Err(NoPlace { start }) };
    let other = |line: &str| line.trim().starts_with("<!-- jitune report: ");
    match (first + 1..lines.len()).find(|i| other(lines[*i]) || lines[*i].trim() == end) {
        Some(last) if !other(lines[last]) => {
            Ok(format!("{}\n{}\n\n{}", lines[..=first].concat(), tables.trim(), lines[last..].concat()))
        }
        _ => Err(NoPlace { start }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_take_the_place_of_what_was_there_and_of_nothing_else() {
        let [a, end] = markers("a.jsonl");
        let [b, _] = markers("b.jsonl");
        let readme = format!("# x\n{a}\nold\n{end}\nbetween\n{b}\n{end}\nend");
        let once = placed(&readme, "a.jsonl", "| t |\n\n").unwrap();
        assert_eq!(once, format!("# x\n{a}\n\n| t |\n\n{end}\nbetween\n{b}\n{end}\nend"));
        assert_eq!(placed(&once, "a.jsonl", "| t |\n\n").unwrap(), once, "again it is the same");
        let both = placed(&once, "b.jsonl", "| u |").unwrap();
        assert_eq!(both, format!("# x\n{a}\n\n| t |\n\n{end}\nbetween\n{b}\n\n| u |\n\n{end}\nend"));
    }

    #[test]
    fn a_readme_without_the_two_lines_is_refused_with_them() {
        let [a, end] = markers("a.jsonl");
        let [b, _] = markers("b.jsonl");
        for readme in [
            String::new(),
            format!("{a}\n"),
            format!("{end}\n{a}\n"),
            format!("{b}\n{end}\n"),
            // The end is that of another place.
            format!("{a}\n{b}\n{end}\n"),
            format!("{a}\n{end}\n{a}\n{end}\n"),
            format!("in a sentence {a}\n{end}\n"),
        ] {
            let why = placed(&readme, "a.jsonl", "t").unwrap_err().to_string();
            assert!(why.ends_with(&format!("{a}\n{end}")), "{readme}: {why}");
        }
    }
}
