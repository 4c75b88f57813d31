//! The command line: raw arguments become a validated plan, the library does the work, and one place decides exit codes.

#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
mod out;

mod attempt;
#[cfg(feature = "bench")]
mod bench;
mod compare;
mod compile;
mod db;
mod doctor;
#[cfg(feature = "bench")]
mod engine;
#[cfg(feature = "bench")]
mod engine_report;
mod error;
mod explain;
mod export;
mod files;
mod inspect;
mod model;
#[cfg(feature = "engine")]
mod opened;
#[cfg(feature = "engine")]
mod pack;
mod precision;
#[cfg(feature = "engine")]
mod precisions;
mod profile;
mod progress;
mod report;
mod rows;
#[cfg(feature = "engine")]
mod run;
mod select;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "bench")]
mod serving;
mod sign;
#[cfg(feature = "engine")]
mod step;
#[cfg(feature = "engine")]
mod steps;
mod table;
#[cfg(feature = "bench")]
mod tokenization;
mod tune;
#[cfg(feature = "serve")]
mod tuned;
mod verify;
#[cfg(feature = "engine")]
mod weights;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use error::{CliError, EXIT_CODES};
use std::io::IsTerminal;
use std::process::ExitCode;

/// Generates, tunes and ships CUDA and CPU kernels, per shape and per machine.
#[derive(Parser)]
#[command(name = "jitune", version, after_help = EXIT_CODES, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find the best kernel of every problem of a model on this machine, and store it.
    Tune(tune::Args),
    /// Print the problems that one forward pass of a model calls.
    Model(model::Args),
    /// Run a model: its answer to a prompt, on the tuned kernels.
    #[cfg(feature = "engine")]
    Run(run::Args),
    /// Answer OpenAI's HTTP API with a model, for many clients at once.
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    /// Time whole steps of a model, beside the sum of their kernels and the floor.
    #[cfg(feature = "engine")]
    Step(step::Args),
    /// Write a model's weights into one file of another engine.
    #[cfg(feature = "engine")]
    Pack(pack::Args),
    /// Compile every template of a model's plan, with no GPU needed, and print what the compiler says.
    Compile(compile::Args),
    /// Compile, check and time a few candidates of a problem in this process: for writing templates.
    Try(attempt::Args),
    /// Seal stored winners into one file that production loads.
    Export(export::Args),
    /// Say what a bundle holds.
    Inspect(inspect::Args),
    /// Check a bundle: its integrity, then its results and times on this machine.
    Verify(verify::Args),
    /// Say which key a problem has here, and why it hits or misses.
    Explain(explain::Args),
    /// Write the reports of a comparison again from its raw rows.
    Report(report::Args),
    /// Look at the tuning database and keep it in order.
    Db(db::Args),
    /// Say what is here, what is missing, and the one command that brings it.
    Doctor(doctor::Args),
    /// Measure the winners beside what people use: cuBLASLt, PyTorch, Candle, Burn, CPU libraries.
    Compare(Box<compare::Args>),
    /// Measure whole engines on workloads, and say what to run in production.
    #[cfg(feature = "bench")]
    Bench(Box<bench::Args>),
    /// Print one kernel's full card: time, roofline, counters, registers, waves, instruction mix.
    Profile(profile::Args),
    /// Serve as jitune's own peer of a comparison.
    #[command(hide = true)]
    Peer,
    /// Serve as jitune's own engine of a bench.
    #[cfg(feature = "bench")]
    #[command(hide = true)]
    Engine(engine::Args),
}

/// Whether it goes on when somebody closes what it writes to: a pipe, or a client's connection.
fn goes_on(command: &Command) -> bool {
    match command {
        Command::Tune(_) | Command::Compare(_) => true,
        #[cfg(feature = "bench")]
        Command::Bench(_) => true,
        #[cfg(feature = "serve")]
        Command::Serve(_) => true,
        _ => false,
    }
}

/// The command line, as a report shows it.
#[cfg(feature = "bench")]
fn command_line() -> String {
    std::env::args_os().skip(1).fold("jitune".into(), |all, word| format!("{all} {}", word.to_string_lossy()))
}

/// Parses the arguments and runs the command.
fn main() -> ExitCode {
    jitune::worker_main();
    let filter = tracing_subscriber::EnvFilter::try_from_env("JITUNE_LOG");
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "warn,jitune::serve=info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would be said on standard error, which is what failed, by a macro that panics then.
        .log_internal_errors(false)
        .init();
    let cli = match parsed() {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() => e.exit(),
        Err(e) => {
            jitune::backend::default_sigpipe();
            return ended(e.print().map_err(out::failed).and_then(|()| out::finish()));
        }
    };
    if !goes_on(&cli.command) {
        // A closed pipe (`jitune model … | head`) ends the program quietly instead of in a panic.
        jitune::backend::default_sigpipe();
    }
    let done = match cli.command {
        #[cfg(feature = "bench")]
        Command::Tune(args) if args.serving.serving => serving::run(&args),
        #[cfg(feature = "engine")]
        Command::Tune(args) if args.steps.steps => steps::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Model(args) => model::run(&args),
        #[cfg(feature = "engine")]
        Command::Run(args) => run::run(&args),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(&args),
        #[cfg(feature = "engine")]
        Command::Step(args) => step::run(&args),
        #[cfg(feature = "engine")]
        Command::Pack(args) => pack::run(&args),
        Command::Compile(args) => compile::run(&args),
        Command::Try(args) => attempt::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Db(args) => db::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Compare(args) => compare::run(&args),
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::run(&args),
        Command::Profile(args) => profile::run(&args),
        #[cfg(feature = "bench")]
        Command::Engine(args) => return engine::run(args),
        Command::Peer => return jitune_peer::serve(jitune::compare::Ours::default()),
    };
    ended(done.and_then(|()| out::finish()))
}

/// The command line, or what is to be said of it. A number below zero is a value, whose option says what is allowed.
fn parsed() -> Result<Cli, clap::Error> {
    fn signed(command: clap::Command) -> clap::Command {
        let takes = |arg: &clap::Arg| !arg.is_positional() && arg.get_action().takes_values();
        let command = command.mut_args(|arg| if takes(&arg) { arg.allow_negative_numbers(true) } else { arg });
        command.mut_subcommands(signed)
    }
    Cli::from_arg_matches(&signed(Cli::command()).try_get_matches()?)
}

/// Says what went wrong, once, and decides the exit code.
fn ended(done: Result<(), CliError>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if !e.is_quiet() {
                err!("jitune: {e}");
            }
            ExitCode::from(e.exit_code())
        }
    }
}
