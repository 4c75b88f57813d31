//! Engines head to head: a workload, the clients that make it, the engines that serve it, and what is measured of both.
//!
//! **Workload → Client → Service → Trip → Measured → rows.** A [`Workload`] says who asks what and when; the [`client`] asks it of a
//! [`Service`], which is an engine in a process of its own ([`process`]), a server of OpenAI's HTTP API ([`http`]) or a simulated queue in the
//! tests; what it hears of a request is a [`Trip`], with every moment kept; [`measured`] is what people call the figures.
//! `docs/engines.md` has the protocol and the lines of a run. Renders nothing (`report`), knows no kernel.

pub mod check;
pub mod client;
mod groups;
pub mod http;
pub mod known;
pub mod link;
pub mod measured;
mod plan;
pub mod process;
pub mod random;
pub mod report;
pub mod requests;
pub mod rows;
pub mod run;
pub mod service;
pub mod serving;
pub mod trtllm;
pub mod vllm;
mod watch;
pub mod workload;

#[cfg(test)]
mod simulated;

pub use client::{Outcome, Progress, Trip, drive};
pub use service::{Gone, Heard, Service};
pub use workload::{Workload, WorkloadError};
