//! Winners of merged journals, or whose code is not here any more: their one config is compiled, judged and timed, and no other is searched
//! for, since the key says that templates, judge, compiler and device are those under which it won.

use super::search::Point;
use super::{JoinedSpace, TuneError, Tuner, Won};
use crate::device::Device;
use crate::journal;
use crate::problem::Problem;
use crate::recipe::Config;
use crate::template::Template;
use crate::winner::Evidence;
use std::sync::Arc;

/// How much slower than its record says a winner may be: one that is slower was measured under other circumstances than the key tells.
const SLOWER: f64 = 2.0;

/// How much slower it may be than the fastest that was measured here, when that was not held against it.
const BESIDE: f64 = 1.05;

/// How much longer than the best of all it may be predicted to take and be believed to be the best.
const DOUBTED: f64 = 3.0;

impl Tuner<'_> {
    /// Of the configs of a problem the one that a record of a winner names; nothing where there is none, where its search was cut
    /// off, or where it is to be tuned again.
    pub(super) fn adopted(&self, problem: &Problem, device: &Device) -> Result<Option<JoinedSpace>, TuneError> {
        let templates = self.library.for_problem(problem, device)?;
        let key = self.context(device).winner(self.library, problem, &templates);
        let Some(record) = (if self.options.again { None } else { self.db.winner(&key)? }) else { return Ok(None) };
        let winner = journal::winner_of(&record, &templates).ok().filter(|w| self.is_final(w));
        let Some(winner) = winner else { return Ok(None) };
        let space = self.of_one(problem, device, templates, winner.template(), &winner.config)?;
        let Some(space) = space else { return Ok(None) };
        // Its record may say anything of how long it took: where others are predicted to be far better, the search is not over with it.
        let all = self.space(problem, device)?.points;
        let best = all.first().map_or(0.0, |best| best.cost_us);
        let doubted = space.points.first().is_some_and(|own| own.cost_us > DOUBTED * best);
        let mut evidence = Evidence { cut_off: winner.evidence.cut_off || doubted, ..winner.evidence };
        let mut most_us = if evidence.median_us > 0.0 { SLOWER * evidence.median_us } else { f64::INFINITY };
        if record.merged {
            // What was tried elsewhere is nothing that was seen here; what was measured here is better known.
            let Evidence { cut_off, narrow, .. } = evidence;
            evidence = Evidence { cut_off, narrow, space: all.len() as u64, ..Evidence::default() };
            for template in &space.templates {
                let key = self.context(device).trials(self.library, problem, template);
                let measured = journal::verdicts(self.db, &key)?.into_iter().filter_map(|(_, v)| v.median_us());
                most_us = measured.fold(most_us, |most, us| most.min(BESIDE * us));
            }
        }
        Ok(Some(JoinedSpace { won: Some(Won { evidence, most_us }), ..space }))
    }

    /// One config alone; nothing where none of the templates has it.
    pub(super) fn of_one(
        &self,
        problem: &Problem,
        device: &Device,
        templates: Vec<Arc<Template>>,
        template: &str,
        config: &Config,
    ) -> Result<Option<JoinedSpace>, TuneError> {
        let Some(template) = templates.iter().position(|t| t.name() == template) else { return Ok(None) };
        let Ok(cost_us) = templates[template].recipe.instance(problem, device, config).and_then(|i| i.cost_us()) else {
            return Ok(None);
        };
        let points = [Point { template, config: config.clone(), cost_us }].into();
        Ok(Some(JoinedSpace { problem: *problem, templates, points, won: None, step: None }))
    }
}
