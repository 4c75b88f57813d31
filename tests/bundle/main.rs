//! Bundles and the production runtime, on the CPU target: what the format refuses, what the ladder answers, and that
//! results are right.

mod allocations;
mod damage;
mod example;
mod format;
mod look_up;
mod make;
mod production;
mod sampling;
mod sanitizer;
