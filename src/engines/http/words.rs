//! Prompts for a server that takes no token ids: texts of as many tokens.

use std::collections::BTreeSet;

/// Most words that are looked for.
const MOST: usize = 4096;
/// The fewest that prompts can be made of, so that no two begin alike for a while.
const LEAST: usize = 16;

/// Words that are one token each, wherever they stand among each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    list: Vec<String>,
    /// Tokens that the tokenizer puts around a text.
    around: usize,
}

impl Words {
    /// The words of a tokenizer of `vocab` tokens: `token` is the text of one, `encode` the ids of a text with those that are put around it.
    /// None where it has too few, or where texts of them have other tokens than they have.
    pub fn find(
        vocab: u64,
        token: impl Fn(u32) -> Option<String>,
        encode: impl Fn(&str) -> Option<Vec<u32>>,
    ) -> Option<Words> {
        let around = encode("")?.len();
        let mut seen = BTreeSet::new();
        let mut found: Vec<(u32, String)> = Vec::new();
        for id in 0..u32::try_from(vocab).unwrap_or(u32::MAX) {
            let Some(text) = token(id) else { continue };
            let plain =
                text.strip_prefix(' ').is_some_and(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_lowercase()));
            if plain && seen.insert(text.clone()) && encode(&text)?.len() == around + 1 {
                found.push((id, text));
                if found.len() == MOST {
                    break;
                }
            }
        }
        let ids: BTreeSet<u32> = found.iter().map(|(id, _)| *id).collect();
        let list: Vec<String> = found.into_iter().map(|(_, text)| text).collect();
        let all = encode(&list.concat())?;
        let among = all.iter().filter(|id| ids.contains(id)).count();
        (list.len() >= LEAST && all.len() == list.len() + around && among >= list.len())
            .then_some(Words { list, around })
    }

    /// A text of as many tokens as there are ids; ids that begin alike give texts that do.
    pub fn text(&self, ids: &[u32]) -> String {
        let words = ids.len().saturating_sub(self.around).max(1);
        ids.iter().take(words).map(|id| &self.list[*id as usize % self.list.len()][..]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tokenizer of words with a space before them; ` a` and ` b` in a row are one token when `joins`, and one begins each text.
    fn encode(text: &str, joins: bool) -> Option<Vec<u32>> {
        let joined = if joins { text.replace(" a b", " Z") } else { text.into() };
        Some([99].into_iter().chain(joined.split_terminator(' ').skip(1).map(|w| u32::from(w.as_bytes()[0]))).collect())
    }

    #[test]
    fn a_text_has_as_many_tokens_as_there_are_ids() {
        let token = |id: u32| Some(format!(" {}", char::from_u32(id)?));
        let words = Words::find(128, token, |text| encode(text, false)).unwrap();
        assert_eq!(words.list.len(), 26, "of all characters the lower-case letters alone");
        for ids in [&[5u32, 6, 7, 5, 900][..], &[1, 2], &[1]] {
            let text = words.text(ids);
            assert_eq!(encode(&text, false).unwrap().len(), ids.len().max(2), "{text}");
        }
        assert!(words.text(&[5, 6, 7]).starts_with(&words.text(&[5, 6])));
    }

    #[test]
    fn words_that_become_others_beside_each_other_are_none() {
        let token = |id: u32| Some(format!(" {}", char::from_u32(id)?));
        assert_eq!(Words::find(128, token, |text| encode(text, true)), None);
        assert_eq!(Words::find(100, token, |text| encode(text, false)), None, "too few");
        assert_eq!(Words::find(128, |_| None, |text| encode(text, false)), None);
    }
}
