//! The load client: makes a workload's requests, and keeps every moment of what comes back.

use std::time::Duration;

/// One request, and all that was heard of it; times by the service's clock, since the cell's begin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trip {
    /// Its number in the cell.
    pub id: u64,
    /// The chat that it is a turn of, and which.
    pub turn: Option<(u64, u32)>,
    /// Whether it belongs to the warm-up.
    pub warm: bool,
    /// When it was due.
    pub due: Duration,
    /// When it was sent.
    pub sent: Duration,
    /// Tokens of its prompt.
    pub prompt: usize,
    /// Tokens that were asked for.
    pub asked: usize,
    /// When each piece of the answer was received, and how many tokens it had.
    pub pieces: Vec<(Duration, u32)>,
    /// The tokens, where the engine says which.
    pub ids: Vec<u32>,
    /// When its end was received.
    pub end: Option<Duration>,
    /// Why it has no whole answer.
    pub error: Option<String>,
}
