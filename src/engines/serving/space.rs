//! The settings that a search may try.

use crate::setting::Setting;
use std::ops::RangeInclusive;

/// Bounds of a search, and where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Space {
    /// What engines take where nothing is said.
    pub default: Setting,
    /// Tokens of a step.
    pub tokens: RangeInclusive<i64>,
    /// Requests at a time.
    pub sequences: RangeInclusive<i64>,
    /// Tokens of prompts beside decodes.
    pub chunk: RangeInclusive<i64>,
}

/// A change of a setting: powers of two by which its tokens, sequences and chunk grow.
pub(super) type Move = [i32; 3];

/// Each number alone, both ways; tokens with their chunk, and the two that share the tokens of a step against each other.
const MOVES: [Move; 12] = [
    [0, 0, -1],
    [0, -1, 0],
    [0, 1, 0],
    [0, 0, 1],
    [-1, 0, 0],
    [1, 0, 0],
    [1, 0, 1],
    [-1, 0, -1],
    [0, 1, -1],
    [0, -1, 1],
    [0, 1, 1],
    [0, -1, -1],
];

impl Space {
    /// From a sixteenth of the default's tokens to eight times as many, from a 32nd of its sequences to four times as many (eight times, of a
    /// few), and chunks from 16 tokens on.
    pub fn around(default: Setting) -> Space {
        let Setting { tokens, sequences, .. } = default;
        let more = if sequences < 32 { 8 } else { 4 };
        Space {
            default,
            tokens: (tokens / 16).max(16)..=tokens * 8,
            sequences: (sequences / 32).max(1)..=sequences * more,
            chunk: 16.min(tokens)..=tokens * 8,
        }
    }

    /// A setting, with each number within its bounds and the chunk within the step.
    pub fn within(&self, setting: Setting) -> Setting {
        let clamp = |n: i64, range: &RangeInclusive<i64>| n.clamp(*range.start(), *range.end());
        let tokens = clamp(setting.tokens, &self.tokens);
        let sequences = clamp(setting.sequences, &self.sequences);
        Setting { tokens, sequences, chunk: clamp(setting.chunk, &self.chunk).min(tokens) }
    }

    /// A setting with a change; a chunk that is the whole step stays the whole step where tokens alone grow.
    fn moved(&self, setting: Setting, [tokens, sequences, chunk]: Move) -> Setting {
        let scaled = |n: i64, power: i32| ((n as f64) * 2f64.powi(power)).round() as i64;
        let whole = setting.chunk == setting.tokens && tokens > 0;
        self.within(Setting {
            tokens: scaled(setting.tokens, tokens),
            sequences: scaled(setting.sequences, sequences),
            chunk: scaled(setting.chunk, if whole { tokens } else { chunk }),
        })
    }

    /// What is a change away from a setting, each once, that by the change `first` at the front.
    pub(super) fn near(&self, setting: Setting, first: Option<Move>) -> Vec<(Move, Setting)> {
        let mut list: Vec<(Move, Setting)> = Vec::new();
        for (by, other) in first.into_iter().chain(MOVES).map(|by| (by, self.moved(setting, by))) {
            if other != setting && list.iter().all(|(_, known)| *known != other) {
                list.push((by, other));
            }
        }
        list
    }

    /// Settings all over the space, those that differ from the default in one number first: its tokens, a quarter and a sixteenth of them, its
    /// sequences, a quarter and four times as many, with chunks of the whole step and of a quarter.
    pub(super) fn spread(&self) -> Vec<Setting> {
        let mut list = self.product([0, -2, -4]);
        let differs = |s: &Setting| {
            let Setting { tokens, sequences, .. } = self.default;
            u32::from(s.tokens != tokens) + u32::from(s.sequences != sequences) + u32::from(s.chunk != s.tokens)
        };
        list.sort_by_key(differs);
        list
    }

    /// A small grid: a quarter, the whole and four times the default's tokens and sequences, and chunks of a quarter and the whole of the step;
    /// 18 settings at most.
    pub fn grid(&self) -> Vec<Setting> {
        self.product([-2, 0, 2])
    }

    fn product(&self, tokens: [i32; 3]) -> Vec<Setting> {
        let mut list = Vec::new();
        for tokens in tokens {
            for sequences in [-2, 0, 2] {
                for part in [1, 4] {
                    let by = self.moved(self.default, [tokens, sequences, tokens]);
                    let setting = self.within(Setting { chunk: by.tokens / part, ..by });
                    if !list.contains(&setting) {
                        list.push(setting);
                    }
                }
            }
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_tried_is_sound_and_each_once() {
        for cuda in [false, true] {
            let space = Space::around(Setting::usual(cuda));
            let grid = space.grid();
            assert_eq!(grid.len(), 18);
            assert!(grid.contains(&space.default));
            assert!(space.spread().len() > 12 && space.spread()[0] == space.default);
            for setting in grid.into_iter().chain(space.spread()) {
                let near = space.near(setting, Some([0, 1, 0]));
                assert!(near.len() > 3 && near.iter().all(|(_, s)| s.is_sound() && *s != setting), "{near:?}");
                assert!((1..near.len()).all(|i| near[..i].iter().all(|(_, s)| *s != near[i].1)));
            }
        }
        // Tokens alone take a chunk that is all of them with them, and no other.
        let space = Space::around(Setting::usual(true));
        let by = |chunk, by| space.moved(Setting { chunk, ..space.default }, by);
        assert_eq!(
            (by(2048, [1, 0, 0]).chunk, by(512, [1, 0, 0]).chunk, by(2048, [-1, 0, 0]).chunk),
            (4096, 512, 1024)
        );
        assert_eq!(by(2048, [0, 0, 1]), space.default);
    }
}
