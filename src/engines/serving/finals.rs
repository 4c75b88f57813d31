//! The finals: what was found and the default, in turn, at one load.

use super::SHARE;
use super::search::{Halt, Search};
use crate::setting::{Best, Setting};

/// Loads are lowered by this where what was found does not keep one after all.
const LOWER: f64 = 1.05;
/// So often at most.
const LOADS: u32 = 4;
/// Loads less than this much above what the default keeps are the default's own.
const ABOVE: f64 = 1.02;

impl Search<'_> {
    /// Holds a setting against the default, at the load that it is said to keep: rounds in which both are measured, every other one the other
    /// way round. The default stays unless the other keeps that load over all rounds, the default does not, and no round of the default is
    /// as good as one of the other. Gives the setting to take, and why.
    pub(super) fn finals(&mut self, best: Best) -> Result<(Setting, String), Halt> {
        let default = self.options.space.default;
        // One step below, where chance has less of a say.
        let below = self.tidy(best.load / LOWER);
        let mut load = if below > self.best(default).load * ABOVE { below } else { best.load };
        let unit = if self.options.whole { "clients" } else { "requests/s" };
        for _ in 0..LOADS {
            let kept = self.best(default).load;
            if load <= kept * ABOVE {
                let why = format!("{} keeps no more than the {kept} {unit} of the default", best.setting);
                return Ok((default, why));
            }
            let (mut ours, mut defaults) = (Vec::new(), Vec::new());
            for round in 1..=self.options.rounds {
                let mut pair = [(best.setting, &mut ours), (default, &mut defaults)];
                if round % 2 == 0 {
                    pair.reverse();
                }
                for (setting, shares) in pair {
                    shares.push(self.at(setting, load, round)?.share);
                }
            }
            let of = |setting| self.known_at(setting, load).unwrap_or_default().share;
            let (our, own) = (of(best.setting), of(default));
            let least = ours.iter().copied().fold(1.0, f64::min);
            let most = defaults.iter().copied().fold(0.0, f64::max);
            let shares = format!("{:.1}% of the requests, the default {:.1}%", 100.0 * our, 100.0 * own);
            let rounds = format!("in {} rounds in turn at {load} {unit} it keeps {shares}", self.options.rounds);
            if own >= SHARE {
                return Ok((default, format!("{}: {rounds}; that is no more than the default does", best.setting)));
            }
            if our < SHARE {
                load = self.tidy((load / LOWER).min(if self.options.whole { load - 1.0 } else { load }));
                continue;
            }
            return Ok(match least > most {
                true => (best.setting, rounds),
                false => (default, format!("{}: {rounds}; rounds overlap, which is no difference", best.setting)),
            });
        }
        Ok((default, format!("{} keeps less in several rounds than the search saw", best.setting)))
    }
}
