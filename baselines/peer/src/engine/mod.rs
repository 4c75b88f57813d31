//! A whole engine as a peer: it loads a model, is asked for answers to prompts, and says each token as it comes.
//!
//! Owns the messages ([`Ask`], [`Tell`]), the trait to write an engine in Rust ([`Engine`]), the loop that serves it ([`serve`]), and
//! what makes an engine of a library that only knows batches ([`Static`]), and reads folders for those that do not ([`Folder`]). `docs/engines.md` says what each message means.

mod batches;
mod folder;
mod messages;
mod sampling;
mod serve;

pub use batches::{Batches, Static};
pub use folder::{Config, Family, Folder, Scaling, process_memory};
pub use messages::{
    About, Ask, Batching, ENGINE_PROTOCOL, End, Finish, Load, Loaded, Logits, MAX_LINE, Sampling, Stats, Submit, Tell,
};
pub use sampling::choose;
pub use serve::{Teller, serve, serve_on};

use crate::{Device, Refusal};
use std::collections::BTreeMap;
use std::path::Path;

/// An engine to compare with.
pub trait Engine {
    /// Opens the device and says who it is, or what is missing and the command that brings it. Called once, first.
    fn hello(&mut self, device: Device, options: &BTreeMap<String, String>) -> Result<About, Refusal>;

    /// Loads a model. A second call takes the place of the first.
    fn load(&mut self, load: &Load) -> Result<Loaded, Refusal>;

    /// Takes a request; its tokens and its end are told under `id`, at any time and from any thread.
    fn submit(&mut self, id: u64, request: Submit, teller: &Teller) -> Result<(), Refusal>;

    /// Ends a request early; its end is told all the same. Nothing happens to one that has ended.
    fn cancel(&mut self, id: u64, teller: &Teller);

    /// Works a while, a step say, on what was submitted; false when there is nothing to do until more is asked. An engine with
    /// threads of its own has nothing to do here.
    fn work(&mut self, teller: &Teller) -> Result<bool, Refusal> {
        let _ = teller;
        Ok(false)
    }

    /// Writes the logits of each position of a prompt to a file: rows of little-endian f32.
    fn logits(&mut self, prompt: &[u32], file: &Path) -> Result<Logits, Refusal>;

    /// What it has done and holds.
    fn stats(&mut self) -> Stats {
        Stats::default()
    }

    /// Forgets what it keeps of earlier prompts. Called when nothing runs.
    fn reset(&mut self) -> Result<(), Refusal> {
        Ok(())
    }
}
