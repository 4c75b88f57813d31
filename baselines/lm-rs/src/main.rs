//! lm.rs as an engine of jitune's benchmarks: drives its program `chat`, one request at a time.
//!
//! Token ids go in and out as text: in the tokenizer file that `jitune pack --lmrs` writes beside a model, each token is one character. The
//! program ends no answer with it, so an answer of any length is read, and then the program is ended and started again.

mod chat;

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    process::ExitCode,
};

use chat::{Chat, File};
use jitune_peer::{
    Device, Refusal, RefusalKind,
    engine::{About, Batching, End, Engine, Finish, Load, Loaded, Logits, Sampling, Stats, Submit, Teller, serve},
};

/// Tokens of the chat template and the date that the program puts around a prompt.
const TEMPLATE: usize = 41;
/// The longest sequence that the program computes.
const LONGEST: usize = 8192;

fn main() -> ExitCode {
    serve(Lmrs::default())
}

#[derive(Default)]
struct Lmrs {
    /// The program, and its threads.
    program: Option<(PathBuf, usize)>,
    file: Option<File>,
    /// Started, and waiting for a prompt.
    ready: Option<Chat>,
    waiting: VecDeque<(u64, Submit)>,
    running: Option<Running>,
    done: Stats,
}

struct Running {
    id: u64,
    request: Submit,
    chat: Chat,
    answered: usize,
}

impl Lmrs {
    fn start(&self, sampling: Sampling) -> Result<Chat, Refusal> {
        match (&self.program, &self.file) {
            (Some((program, threads)), Some(file)) => Chat::start(program, *threads, file, sampling),
            _ => Err(Refusal::failed("no model is loaded")),
        }
    }

    /// Ends the answer, and the program with it, and starts the next one's.
    fn end(&mut self, why: Finish, error: Option<String>, teller: &Teller) {
        if let Some(running) = self.running.take() {
            teller.end(running.id, End { why, error, cached: None });
        }
        // What is wrong with it is said to the next request.
        self.ready = self.start(Sampling::default()).ok();
    }

    /// The next token of the answer that runs, or the first of the next one.
    fn token(&mut self, teller: &Teller) -> Result<(), Refusal> {
        if self.running.is_none() {
            let Some((id, request)) = self.waiting.pop_front() else { return Ok(()) };
            let fits = self.ready.take().filter(|chat| chat.sampling == request.sampling);
            let chat = fits.map_or_else(|| self.start(request.sampling), Ok);
            let asked = chat.and_then(|mut chat| chat.prompt(&request.prompt).map(|()| chat));
            match asked {
                Ok(chat) => self.running = Some(Running { id, request, chat, answered: 0 }),
                Err(e) => {
                    teller.end(id, End { why: Finish::Failed, error: Some(e.why), cached: None });
                    return Ok(());
                }
            }
        }
        let Some(running) = &mut self.running else { return Ok(()) };
        let token = running.chat.token()?;
        teller.tokens(running.id, vec![token]);
        running.answered += 1;
        if running.answered == 1 {
            let read = (running.request.prompt.len() + TEMPLATE) as u64;
            self.done.prompt_tokens = Some(self.done.prompt_tokens.unwrap_or(0) + read);
        }
        self.done.answer_tokens = Some(self.done.answer_tokens.unwrap_or(0) + 1);
        if running.answered >= running.request.most {
            self.end(Finish::Length, None, teller);
        }
        Ok(())
    }
}

impl Engine for Lmrs {
    fn hello(&mut self, device: Device, options: &BTreeMap<String, String>) -> Result<About, Refusal> {
        let Device::Cpu(threads) = device else { return Err(Refusal::unsupported("lm.rs computes on processors")) };
        if let Some(key) = options.keys().find(|key| *key != "chat") {
            return Err(Refusal::unsupported(format!("{key} is no setting; chat, the path of lm.rs's program, is")));
        }
        let fix = "cargo build --release in a copy of lm.rs, then the option chat=…/target/release/chat";
        let Some(program) = options.get("chat") else {
            return Err(Refusal::missing("where lm.rs's program is was not said", fix));
        };
        if !Path::new(program).is_file() {
            return Err(Refusal::missing(format!("{program} is not there"), fix));
        }
        self.program = Some((program.into(), threads));
        let device = format!("the processor, {threads} threads");
        let dtypes = ["f32", "q8_0", "q4_0", "int8", "int4"].map(String::from).to_vec();
        Ok(About { engine: "lm.rs".into(), version: "v4 files".into(), device, dtypes, ..About::default() })
    }

    fn load(&mut self, load: &Load) -> Result<Loaded, Refusal> {
        if load.folder.is_dir() {
            let why = format!("{} is a folder, and lm.rs reads files of its own", load.folder.display());
            let fix = format!("jitune pack {} --lmrs FILE", load.folder.display());
            return Err(Refusal { kind: RefusalKind::Unsupported, why, fix: Some(fix) });
        }
        let file = File::open(&load.folder)?;
        let asked = match (load.dtype.as_str(), file.dtype) {
            ("int8", "q8_0") | ("int4", "q4_0") => true,
            (asked, found) => asked == found,
        };
        if !asked {
            return Err(Refusal::unsupported(format!(
                "{} is of {}, and {} was asked for",
                load.folder.display(),
                file.dtype,
                load.dtype
            )));
        }
        let room = file.longest.min(LONGEST).saturating_sub(TEMPLATE);
        if load.context > room {
            return Err(Refusal::unsupported(format!(
                "{} tokens, where {room} fit beside the chat template",
                load.context
            )));
        }
        let vocab = file.vocab.into();
        (self.running, self.file, self.done) = (None, Some(File { context: load.context, ..file }), Stats::default());
        self.waiting.clear();
        self.ready = Some(self.start(Sampling::default())?);
        let notes = vec![
            format!("one request at a time, {TEMPLATE} tokens of a chat template around each prompt"),
            "the time to the first token has the program's sorting of its vocabulary in it".into(),
        ];
        Ok(Loaded { batching: Batching::Continuous, sequences: 1, memory_bytes: None, vocab, notes })
    }

    fn submit(&mut self, id: u64, request: Submit, _: &Teller) -> Result<(), Refusal> {
        let file = self.file.as_ref().ok_or_else(|| Refusal::failed("no model is loaded"))?;
        let (prompt, most) = (request.prompt.len(), request.most);
        if prompt == 0 || most == 0 || prompt + most > file.context {
            let context = file.context;
            return Err(Refusal::failed(format!(
                "{prompt} tokens and {most} more, where each is at least 1 and {context} fit"
            )));
        }
        if let Some(token) = request.prompt.iter().find(|token| **token >= file.vocab) {
            return Err(Refusal::failed(format!("token {token} of {}", file.vocab)));
        }
        if request.sampling.top_k > 0 {
            return Err(Refusal::failed("lm.rs has no top_k"));
        }
        self.waiting.push_back((id, request));
        Ok(())
    }

    fn cancel(&mut self, id: u64, teller: &Teller) {
        if let Some(at) = self.waiting.iter().position(|(waits, _)| *waits == id) {
            self.waiting.remove(at);
            teller.end(id, End { why: Finish::Cancelled, error: None, cached: None });
        } else if self.running.as_ref().is_some_and(|running| running.id == id) {
            self.end(Finish::Cancelled, None, teller);
        }
    }

    fn work(&mut self, teller: &Teller) -> Result<bool, Refusal> {
        if let Err(e) = self.token(teller) {
            self.end(Finish::Failed, Some(e.why), teller);
        }
        Ok(self.running.is_some() || !self.waiting.is_empty())
    }

    fn logits(&mut self, _: &[u32], _: &Path) -> Result<Logits, Refusal> {
        Err(Refusal::unsupported("lm.rs's program shows no logits"))
    }

    fn stats(&mut self) -> Stats {
        let (waiting, running) = (self.waiting.len() as u64, u64::from(self.running.is_some()));
        Stats { waiting: Some(waiting), running: Some(running), steps: self.done.answer_tokens, ..self.done }
    }
}
