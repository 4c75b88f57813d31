//! `jitune serve`: a model behind OpenAI's HTTP API.

use super::CliError;
use super::opened::{ModelArgs, Opened};
use super::select::bytes;
use super::tuned::{Given, Tuned};
use jitune::device::Target;
use jitune::engine::{Engine, Options};
use jitune::model::Model;
use jitune::problem::MAX_DIM;
use jitune::serve::{self, ServeError, Served, Server};
use jitune::tokenizer::{Tokenizer, TokenizerError};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

/// Arguments.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  jitune serve --model ./my-model\n  \
    JITUNE_API_KEY=… jitune serve --model ./my-model.gguf --host 0.0.0.0 --port 8000\n\n\
    Answers /v1/completions, /v1/chat/completions, /v1/models, /tokenize, /detokenize, /health and /metrics. SIGTERM or \
    Ctrl-C lets the requests that run end, and takes no new ones; a second one ends at once. Each request that has ended \
    is a line on standard error; JITUNE_LOG=warn leaves these out.")]
pub struct Args {
    #[command(flatten)]
    open: ModelArgs,
    /// The address to listen at; anything but this machine's own is for you to say.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// The port; 0 is any free one.
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// What clients must send as `Authorization: Bearer KEY`; by default $JITUNE_API_KEY, which other users of the machine do
    /// not see.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// What clients call the model; by default the name of its folder or file.
    #[arg(long, value_parser = clap::builder::NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Most tokens of a prompt and its answer together; by default what the model was made for, or as much of it as there is
    /// memory for.
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(i64).range(1..=MAX_DIM))]
    context: Option<i64>,
    #[command(flatten)]
    given: Given,
    /// Most bytes on the device, such as 4G; by default what is free there. The cache takes what the weights leave.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    memory: Option<u64>,
    /// Most requests that wait; those beyond are told to come again (429).
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    queue: u32,
    /// How long requests that run may go on after SIGTERM or Ctrl-C. Those that are left then end with an error, and the exit
    /// code is 1. With 0 that is at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_timeout: u32,
    /// Compute each prompt anew, also where one before it began alike.
    #[arg(long)]
    no_prefix_reuse: bool,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let stop = super::tune::on_signals()?;
    let key = key(args.api_key.as_deref())?;
    // Before all that takes long.
    let server = Server::bind(address(&args.host, args.port)?).map_err(not_served)?;
    let host = server.address().ip();
    if !host.is_loopback() && key.is_none() {
        err!("jitune: warning: whoever reaches {host} can use the model; --api-key says who may");
    }
    let opened = args.open.open()?;
    let path = args.open.path();
    let (tokenizer, ends) = (tokenizer(&path)?, Model::ends(&path)?);
    if tokenizer.is_none() {
        err!("jitune: note: {} has no tokenizer.json; prompts and answers are lists of tokens", path.display());
    }
    if ends.is_empty() {
        err!(
            "jitune: note: {} names no token that ends an answer; answers end at their stop texts and max_tokens",
            path.display()
        );
    }
    let engine = engine(args, &opened)?;
    args.open.say_portable(&engine);
    let name = args.name.clone().unwrap_or_else(|| name(&args.open.model));
    let mut options = serve::Options::default();
    options.key = key;
    options.drain = Duration::from_secs(args.drain_timeout.into());
    let context = engine.options().context;
    let served = Served { name, engine, tokenizer, ends };
    server
        .run(served, options, &stop, |address| {
            err!("context: {context} tokens");
            err!("listening on http://{address}");
        })
        .map_err(not_served)
}

/// The key of an option or of the environment. An empty one is a secret that nobody filled in, and no open door.
fn key(given: Option<&str>) -> Result<Option<String>, CliError> {
    let (name, key) = match (given, std::env::var_os("JITUNE_API_KEY")) {
        (Some(key), _) => ("--api-key", key.to_string()),
        (None, Some(key)) => ("JITUNE_API_KEY", key.to_string_lossy().into_owned()),
        (None, None) => return Ok(None),
    };
    match key.bytes().all(|b| b.is_ascii_graphic()) && !key.is_empty() {
        true => Ok(Some(key)),
        false if key.is_empty() => {
            Err(CliError::Usage(format!("{name} is empty: leave it out for a server that has no key")))
        }
        false => Err(CliError::Usage(format!(
            "{name}: a key is of printable ASCII without spaces and line ends, as headers carry it"
        ))),
    }
}

fn address(host: &str, port: u16) -> Result<SocketAddr, CliError> {
    let mut found = (host, port).to_socket_addrs().map_err(|e| CliError::Usage(format!("--host {host}: {e}")))?;
    found.next().ok_or_else(|| CliError::Usage(format!("--host {host}: it has no address")))
}

/// None for a folder that has none.
fn tokenizer(path: &Path) -> Result<Option<Tokenizer>, CliError> {
    match Tokenizer::open(path) {
        Ok(tokenizer) => Ok(Some(tokenizer)),
        Err(TokenizerError::Io { source, .. }) if path.is_dir() && source.kind() == std::io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(TokenizerError::Io { path, source }) => Err(CliError::Io { path, source }),
        Err(other) => Err(CliError::Usage(other.to_string())),
    }
}

/// The name of a folder or file; a repository's is its own.
fn name(model: &str) -> String {
    let Ok(whole) = Path::new(model).canonicalize() else { return model.into() };
    let part = if whole.is_dir() { whole.file_name() } else { whole.file_stem() };
    part.map_or_else(|| model.into(), |name| name.to_string_lossy().into_owned())
}

/// The engine, with the setting that was found for it where none is given.
fn engine(args: &Args, opened: &Opened<'_>) -> Result<Engine, CliError> {
    let context = args.context.unwrap_or(opened.model.max_position_embeddings);
    let tuned = if args.given.takes_tuned() { Tuned::find(opened, context, None)? } else { None };
    let setting = args.given.setting(tuned.as_ref(), opened.target == Target::Cuda);
    if let Some(tuned) = &tuned {
        err!("{}", tuned.says(setting));
    }
    let of = |context| {
        let mut options: Options = opened.options(context);
        (options.sequences, options.tokens, options.chunk) = (setting.sequences, setting.tokens, Some(setting.chunk));
        (options.memory, options.waiting) = (args.memory, args.queue as usize);
        options.prefix = !args.no_prefix_reuse;
        options
    };
    opened.longest(args.context, of, |options| opened.try_engine(options))
}

fn not_served(e: ServeError) -> CliError {
    match e {
        ServeError::Listen { .. } => CliError::Usage(e.to_string()),
        other => CliError::Partly(other.to_string()),
    }
}
