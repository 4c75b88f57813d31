//! The program: one match over subcommands, in [`jitune::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    jitune::cli::main()
}
