//! The loop that answers requests.

use crate::numbers;
use crate::protocol::{Answer, Ask, Device, Numbered, PROTOCOL, Refusal, RefusedWay, Way};
use crate::timer::Timer;
use crate::{Peer, Prepared};
use std::io::{BufRead, Write};
use std::process::ExitCode;

/// Serves requests on standard input until its end. Exit code 4 when the asker cannot be answered.
pub fn serve(peer: impl Peer) -> ExitCode {
    match serve_on(peer, std::io::stdin().lock(), std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // Standard error may be full or closed.
            let _ = writeln!(std::io::stderr(), "peer: {e}");
            ExitCode::from(4)
        }
    }
}

/// Serves requests from `from` and answers to `to`.
pub fn serve_on(peer: impl Peer, from: impl BufRead, mut to: impl Write) -> std::io::Result<()> {
    let mut server = Server { peer, device: None, ways: Vec::new(), held: None };
    for line in from.lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let (id, message) = match serde_json::from_str::<Numbered<Ask>>(&line) {
            Ok(Numbered { message: Ask::Quit, .. }) => break,
            Ok(Numbered { id, message }) => (id, server.answer(message).unwrap_or_else(Answer::Refused)),
            Err(e) => (number_of(&line), Answer::Refused(Refusal::failed(format!("not understood: {e}")))),
        };
        serde_json::to_writer(&mut to, &Numbered { id, message })?;
        to.write_all(b"\n")?;
        to.flush()?;
    }
    Ok(())
}

/// The number of a request that is not understood, where that much of it is.
fn number_of(line: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(line).ok().and_then(|v| v.get("id")?.as_u64()).unwrap_or_default()
}

struct Server<P> {
    peer: P,
    device: Option<Device>,
    /// Of the option `ways`.
    ways: Vec<String>,
    /// The timer goes first, while what it times is alive.
    held: Option<(Timer, Prepared)>,
}

impl<P: Peer> Server<P> {
    fn answer(&mut self, ask: Ask) -> Result<Answer, Refusal> {
        match ask {
            Ask::Hello { protocol, device, options } => {
                if protocol != PROTOCOL {
                    let why = format!("this peer speaks protocol {PROTOCOL}, not {protocol}");
                    return Err(Refusal::missing(why, "build jitune and its peers from one version"));
                }
                let about = self.peer.hello(device, &options)?;
                self.ways = options.get("ways").map_or_else(Vec::new, |w| w.split(',').map(String::from).collect());
                self.device = Some(device);
                Ok(Answer::Hello(about))
            }
            Ask::Prepare(mut task) => {
                let Some(device) = self.device else { return Err(Refusal::failed("`hello` comes first")) };
                self.held = None;
                task.ways.clone_from(&self.ways);
                let mut prepared = self.peer.prepare(&task)?;
                let mut timer = Timer::new(&task, matches!(device, Device::Cuda(_)))?;
                let (mut ways, mut refused) = (Vec::new(), prepared.refused.clone());
                // A way that does not run costs itself, not the others.
                for way in (0..prepared.ways.len()).filter(|w| task.wants(&prepared.ways[*w].way)).collect::<Vec<_>>() {
                    match timer.warm(&mut prepared, way) {
                        Ok(captured) => ways.push(Way { captured, ..prepared.ways[way].clone() }),
                        Err(e) => {
                            let way = prepared.ways[way].way.clone();
                            refused.push(RefusedWay { way, kind: e.kind, why: e.why });
                        }
                    }
                }
                let answer = Answer::Prepared { ways, refused };
                self.held = Some((timer, prepared));
                Ok(answer)
            }
            Ask::Read { way, tensor, count, indices, values: file } => {
                let indices = numbers::read_indices(&indices, count)?;
                let (_, prepared, way) = self.way(&way)?;
                prepared.work.wait()?;
                prepared.work.poison(way)?;
                prepared.work.call(way, 0)?;
                prepared.work.wait()?;
                let values = prepared.work.read(way, &tensor, &indices)?;
                if values.len() != indices.len() {
                    return Err(Refusal::failed(format!("{} values of {}", values.len(), indices.len())));
                }
                numbers::write_values(&file, &values)?;
                Ok(Answer::Values { count })
            }
            Ask::Round { way } => {
                let (timer, prepared, way) = self.way(&way)?;
                Ok(Answer::Round(timer.round(prepared, way)?))
            }
            Ask::Once { way } => {
                let (timer, prepared, way) = self.way(&way)?;
                timer.once(prepared, way).map(|()| Answer::Done)
            }
            Ask::Release => {
                self.held = None;
                Ok(Answer::Done)
            }
            Ask::Quit => Ok(Answer::Done),
        }
    }

    fn way(&mut self, name: &str) -> Result<(&mut Timer, &mut Prepared, usize), Refusal> {
        let Some((timer, prepared)) = &mut self.held else { return Err(Refusal::failed("`prepare` comes first")) };
        let Some(at) = prepared.ways.iter().position(|w| w.way == name) else {
            return Err(Refusal::failed(format!("no way `{name}` was prepared")));
        };
        Ok((timer, prepared, at))
    }
}
