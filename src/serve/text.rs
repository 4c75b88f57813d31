//! The text of an answer as it comes, up to the first of the texts that end it.

use crate::tokenizer::{Stream, TokenizerError};

/// The text of an answer.
pub(super) struct Text {
    /// None for a model without a tokenizer: its answers have no text.
    stream: Option<Stream>,
    stops: Stops,
    /// Characters that are known, said or held back.
    known: usize,
}

impl Text {
    pub fn new(stream: Option<Stream>, stops: Vec<String>) -> Text {
        Text { stream, stops: Stops { list: stops, held: String::new() }, known: 0 }
    }

    /// What can be said after one more token, whether that ends the answer, and where the token's own text begins: characters of the answer
    /// before it, those held back among them. A part of a character begins where the character does.
    pub fn push(&mut self, id: i32) -> Result<(String, bool, usize), TokenizerError> {
        let Some(stream) = &mut self.stream else { return Ok((String::new(), false, 0)) };
        let piece = stream.push(id)?;
        let new = piece.chars().count();
        self.known += new;
        // What was not whole before is said with the token that follows it.
        let own = if new > 1 { stream.own(id)?.chars().count().min(new) } else { new };
        let (said, ends) = self.stops.push(&piece);
        Ok((said, ends, self.known - own))
    }

    /// Characters that are known, said or held back.
    pub fn known(&self) -> usize {
        self.known
    }

    /// What was held back, once the answer has ended otherwise.
    pub fn rest(&mut self) -> String {
        std::mem::take(&mut self.stops.held)
    }
}

/// Texts that end an answer and are no part of it, wherever its pieces part them.
struct Stops {
    list: Vec<String>,
    /// What may be the beginning of one of them.
    held: String,
}

impl Stops {
    fn push(&mut self, piece: &str) -> (String, bool) {
        self.held += piece;
        if let Some(at) = self.list.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let kept = self.list.iter().map(|stop| begun(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        (std::mem::replace(&mut self.held, rest), false)
    }
}

/// Bytes at the end of a text with which `stop` begins.
fn begun(text: &str, stop: &str) -> usize {
    let mut starts = stop.char_indices().map(|(at, _)| at).rev();
    starts.find(|at| text.ends_with(&stop[..*at])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pieces: &[&str], stops: &[&str]) -> (Vec<String>, bool) {
        let mut stops = Stops { list: stops.iter().map(ToString::to_string).collect(), held: String::new() };
        let mut all = Vec::new();
        for piece in pieces {
            let (said, stopped) = stops.push(piece);
            all.push(said);
            if stopped {
                return (all, true);
            }
        }
        all.push(stops.held);
        (all, false)
    }

    #[test]
    fn stops_are_found_wherever_pieces_part_them() {
        let text = "a naïve text, naïve stop: ENDE or END. More";
        for stops in [&["END"][..], &["ENDE", "END."], &["ïve stop: E"], &["nothing", "END"], &[". More", "END. More!"]]
        {
            let whole = stops.iter().filter_map(|s| text.find(s)).min().unwrap();
            for size in 1..20 {
                let chars: Vec<char> = text.chars().collect();
                let pieces: Vec<String> = chars.chunks(size).map(|c| c.iter().collect()).collect();
                let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
                let (said, stopped) = said(&pieces, stops);
                assert!(stopped && said.concat() == text[..whole], "{stops:?}, {size}: {said:?}");
            }
        }
    }

    #[test]
    fn nothing_of_a_stop_is_said_before_it_is_known_not_to_be_one() {
        let to = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(said(&["ab", "a", "bc", "x"], &["abac"]), (to(&["", "", "ababc", "x", ""]), false));
        assert_eq!(said(&["é", "é!"], &["éé?"]), (to(&["", "éé!", ""]), false));
        assert_eq!(said(&["x", "E", "N"], &["END"]), (to(&["x", "", "", "EN"]), false));
        assert_eq!(said(&["x", "", "y"], &[]), (to(&["x", "", "y", ""]), false));
    }
}
