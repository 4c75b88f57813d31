//! What a load client needs of an engine, however it is reached.

use jitune_peer::engine::{End, Submit};
use std::time::Duration;

/// An engine that answers requests, and the clock by which it is timed.
pub trait Service {
    /// The time since the service was opened.
    fn now(&self) -> Duration;

    /// Asks for an answer under a number of the caller's, which no other request has; returns at once.
    fn submit(&mut self, id: u64, request: Submit) -> Result<(), Gone>;

    /// Ends a request early; its end is heard all the same.
    fn cancel(&mut self, id: u64) -> Result<(), Gone>;

    /// The next thing that is heard, of whatever request, or none when the time `until` has come.
    fn next(&mut self, until: Duration) -> Result<Option<Heard>, Gone>;
}

/// Something that is heard of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// The number of the request.
    pub id: u64,
    /// When it was received, by the service's clock.
    pub at: Duration,
    /// What.
    pub what: What,
}

/// What is heard of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The next tokens of its answer, in one piece; `known` is false where a server says text alone, and `ids` then holds a 0 for each
    /// token that it counts.
    Tokens {
        /// Their ids.
        ids: Vec<u32>,
        /// Whether the ids are the engine's.
        known: bool,
    },
    /// Nothing comes after it.
    End(End),
}

/// A service that can be asked nothing more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Gone {
    /// How it ended, with the last it said.
    pub why: String,
}
