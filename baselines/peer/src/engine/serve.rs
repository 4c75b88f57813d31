//! The loop that serves an engine: requests from standard input, what it tells to standard output.

use super::{About, Ask, ENGINE_PROTOCOL, End, Engine, Finish, MAX_LINE, Tell};
use crate::{Numbered, Refusal};
use std::io::{BufRead, BufWriter, Read, Write};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvError, Sender, TryRecvError, channel};
use std::time::Instant;

/// Tells, from any thread. Nothing that is told waits for a reader.
#[derive(Clone)]
pub struct Teller {
    to: Sender<Numbered<Tell>>,
    begun: Instant,
}

impl Teller {
    /// The next tokens of a request. False when nobody listens any more.
    pub fn tokens(&self, id: u64, ids: Vec<u32>) -> bool {
        let at_us = self.begun.elapsed().as_micros() as u64;
        self.tell(id, Tell::Tokens { ids, at_us })
    }

    /// The end of a request. False when nobody listens any more.
    pub fn end(&self, id: u64, end: End) -> bool {
        self.tell(id, Tell::End(end))
    }

    fn tell(&self, id: u64, message: Tell) -> bool {
        self.to.send(Numbered { id, message }).is_ok()
    }
}

/// Serves requests on standard input until its end or `quit`. Exit code 4 when the asker cannot be answered.
pub fn serve(engine: impl Engine) -> ExitCode {
    match serve_on(engine, std::io::BufReader::new(std::io::stdin()), std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Standard error may be full or closed.
            let _ = writeln!(std::io::stderr(), "engine: {e}");
            ExitCode::from(4)
        }
    }
}

/// Serves requests from `from` and tells `to`.
pub fn serve_on(
    mut engine: impl Engine,
    from: impl BufRead + Send + 'static,
    to: impl Write + Send + 'static,
) -> std::io::Result<()> {
    let (tell, told) = channel();
    let (ask, asked) = channel();
    let teller = Teller { to: tell, begun: Instant::now() };
    std::thread::Builder::new().name("asks".into()).spawn(move || read(from, &ask))?;
    let writer = std::thread::Builder::new().name("tells".into()).spawn(move || write(to, &told))?;
    let ended = answer(&mut engine, &asked, &teller);
    // The engine may hold threads that tell; they end with it, and then so does the writer.
    drop(engine);
    drop(teller);
    let written = writer.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread that writes panicked")));
    ended.and(written)
}

/// Reads lines until there are no more, or one is no request.
fn read(mut from: impl BufRead, ask: &Sender<std::io::Result<Numbered<Ask>>>) {
    loop {
        let mut line = Vec::new();
        let read = from.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line);
        let asked = match read {
            Ok(0) => return,
            Ok(n) if n > MAX_LINE => Err(std::io::Error::other(format!("a line of over {MAX_LINE} bytes"))),
            Ok(_) if line.trim_ascii().is_empty() => continue,
            Ok(_) => serde_json::from_slice(&line).map_err(|e| std::io::Error::other(format!("not understood: {e}"))),
            Err(e) => Err(e),
        };
        let last = asked.is_err();
        if ask.send(asked).is_err() || last {
            return;
        }
    }
}

/// Writes what is told; flushes when there is nothing more for the moment.
fn write(to: impl Write, told: &Receiver<Numbered<Tell>>) -> std::io::Result<()> {
    let mut to = BufWriter::new(to);
    while let Ok(first) = told.recv() {
        let mut next = Some(first);
        while let Some(message) = next {
            serde_json::to_writer(&mut to, &message)?;
            to.write_all(b"\n")?;
            next = told.try_recv().ok();
        }
        to.flush()?;
    }
    Ok(())
}

/// Answers until the asker ends.
fn answer(
    engine: &mut impl Engine,
    asked: &Receiver<std::io::Result<Numbered<Ask>>>,
    teller: &Teller,
) -> std::io::Result<()> {
    let mut busy = false;
    loop {
        let next = match busy {
            true => asked.try_recv(),
            false => asked.recv().map_err(|RecvError| TryRecvError::Disconnected),
        };
        match next {
            Ok(asked) => {
                let Numbered { id, message } = asked?;
                if message == Ask::Quit {
                    return Ok(());
                }
                busy |= matches!(message, Ask::Submit(_));
                if let Some(tell) = one(engine, id, message, teller).unwrap_or_else(|e| Some(Tell::Refused(e))) {
                    teller.tell(id, tell);
                }
                continue;
            }
            Err(TryRecvError::Disconnected) => return Ok(()),
            Err(TryRecvError::Empty) => (),
        }
        // What goes wrong here went wrong for all that run; an engine says so of each before it returns.
        busy = engine.work(teller).map_err(std::io::Error::other)?;
    }
}

/// What to tell of one request; nothing yet of a submitted one.
fn one(engine: &mut impl Engine, id: u64, ask: Ask, teller: &Teller) -> Result<Option<Tell>, Refusal> {
    Ok(Some(match ask {
        Ask::Hello { protocol, .. } if protocol != ENGINE_PROTOCOL => {
            let why = format!("this engine speaks protocol {ENGINE_PROTOCOL}, not {protocol}");
            return Err(Refusal::missing(why, "build jitune and its peers from one version"));
        }
        Ask::Hello { device, options, .. } => {
            let about: About = engine.hello(device, &options)?;
            Tell::Hello(about)
        }
        Ask::Load(load) => Tell::Loaded(engine.load(&load)?),
        Ask::Submit(request) => {
            if let Err(e) = engine.submit(id, request, teller) {
                teller.end(id, End { why: Finish::Failed, error: Some(e.why), cached: None });
            }
            return Ok(None);
        }
        Ask::Cancel { request } => {
            engine.cancel(request, teller);
            Tell::Done
        }
        Ask::Logits { prompt, file } => Tell::Logits(engine.logits(&prompt, &file)?),
        Ask::Stats => Tell::Stats(engine.stats()),
        Ask::Reset => {
            engine.reset()?;
            Tell::Done
        }
        Ask::Quit => Tell::Done,
    }))
}
