//! Winners of merged journals, or whose code is not here any more: their one config is compiled, judged and timed, and no other is searched
//! for, since the key says that templates, judge, compiler and device are those under which it won.

use super::search::Point;
use super::{JoinedSpace, TuneError, Tuner};
use crate::device::Device;
use crate::journal;
use crate::problem::Problem;
use crate::recipe::Config;
use crate::template::Template;
use crate::winner::Evidence;
use std::sync::Arc;

/// How much slower than its record says a winner may be: one that is slower was measured under other circumstances than the key tells.
pub(super) const SLOWER: f64 = 2.0;

/// How much longer than the best of all it may be predicted to take and be believed to be the best.
const DOUBTED: f64 = 3.0;

impl Tuner<'_> {
    /// Of the configs of a problem the one that a record of a winner names; nothing where there is none, where its search was cut
    /// off, or where it is to be tuned again.
    pub(super) fn adopted(&self, problem: &Problem, device: &Device) -> Result<Option<JoinedSpace>, TuneError> {
        let templates = self.library.for_problem(problem, device)?;
        let key = self.context(device).winner(self.library, problem, &templates);
        let record = if self.options.again { None } else { self.db.winner(&key)? };
        let winner = record.and_then(|record| journal::winner_of(&record, &templates).ok());
        let Some(winner) = winner.filter(|w| self.is_final(w)) else { return Ok(None) };
        let space = self.of_one(problem, device, templates, winner.template(), &winner.config)?;
        let Some(space) = space else { return Ok(None) };
        // Its record may say anything of how long it took: where others are predicted to be far better, the search is not over with it.
        let best = self.space(problem, device)?.points.first().map_or(0.0, |best| best.cost_us);
        let doubted = space.points.first().is_some_and(|own| own.cost_us > DOUBTED * best);
        let evidence = Evidence { cut_off: winner.evidence.cut_off || doubted, ..winner.evidence };
        Ok(Some(JoinedSpace { won: Some(evidence), ..space }))
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
