//! llama.cpp as an engine of jitune's benchmarks: its own batches and its own cache, through the crate `llama-cpp-2`.

mod engine;
mod load;

use std::process::ExitCode;

fn main() -> ExitCode {
    jitune_peer::engine::serve(engine::LlamaCpp::default())
}
