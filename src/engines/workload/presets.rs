//! The workloads that are built in, in full and as a short form for a small model on two cores.

use super::{Arrivals, Length, Limits, Workload};

/// As many requests as fit the time.
const ENDLESS: usize = 1 << 20;

impl Workload {
    /// The names that [`Workload::named`] has, in the order in which they are run.
    pub const NAMES: &[&str] =
        &["sustained-1024", "sustained-128", "chat", "documents", "code", "batch-1", "batch-4", "batch-16", "batch-32"];

    /// A workload that is built in, or none of that name. Any number may follow `batch-`. The `quick` form takes some ten seconds where
    /// 40 tokens a second are decoded, and 512 tokens of context. Where a model's `context` is too short, prompts become shorter, and
    /// answers too where they would take more than half of it.
    ///
    /// - `sustained-1024`, `sustained-128`: 256 (512) clients with prompts and answers of 1024 (128) tokens.
    /// - `chat`: chats of four turns, each 512 new tokens and an answer of 128, arrive at random, 8 requests a second; 100 ms to the first
    ///   token and 20 ms a token after it are good. What is kept of prompts may be used.
    /// - `documents`: 4 clients with prompts of 8192 to 32768 tokens and answers of 128.
    /// - `code`: 64 clients with prompts of 256 tokens and answers of 16 to 1024, 256 in the mean, at temperature 0.8.
    /// - `batch-N`: N clients with prompts and answers of 128 tokens: latency of a fixed batch, and what is gained by batches.
    pub fn named(name: &str, quick: bool, context: usize) -> Option<Workload> {
        let mut workload = if quick { short(name)? } else { full(name)? };
        workload.name = name.into();
        workload.fit(context);
        Some(workload)
    }

    fn fit(&mut self, context: usize) {
        if self.most_context() <= context {
            return;
        }
        let each = context as f64 / f64::from(self.turns.max(1));
        let (prompt, answer) = (self.prompt.most() as f64, self.answer.most() as f64);
        if answer > each / 2.0 {
            let share = each / (prompt + answer);
            self.answer = self.answer.shrunk(share);
            self.prompt = self.prompt.shrunk(share);
        } else {
            self.prompt = self.prompt.shrunk((each - answer) / prompt);
        }
    }
}

/// The N of `batch-N`.
fn batch(name: &str) -> Option<usize> {
    name.strip_prefix("batch-")?.parse().ok().filter(|n| (1..=super::MAX_CLIENTS).contains(n))
}

fn closed(clients: usize, prompt: usize, answer: usize) -> Workload {
    let (prompt, answer) = (Length::Fixed(prompt), Length::Fixed(answer));
    let arrivals = Arrivals::Closed { clients };
    Workload { arrivals, prompt, answer, requests: ENDLESS, warm: clients, ..Workload::default() }
}

fn full(name: &str) -> Option<Workload> {
    Some(match name {
        "sustained-1024" => closed(256, 1024, 1024),
        "sustained-128" => closed(512, 128, 128),
        "chat" => Workload {
            arrivals: Arrivals::Open { rate: 8.0, burstiness: 1.0, most: Some(256) },
            prompt: Length::Fixed(512),
            answer: Length::Fixed(128),
            turns: 4,
            think_s: 1.0,
            requests: ENDLESS,
            warm: 8,
            limits: Limits { ttft_ms: Some(100.0), tpot_ms: Some(20.0), e2el_ms: None },
            prefix: true,
            ..Workload::default()
        },
        "documents" => Workload { prompt: Length::Uniform(8192, 32768), ..closed(4, 1, 128) },
        "code" => Workload {
            answer: Length::Geometric { mean: 256.0, least: 16, most: 1024 },
            temperature: 0.8,
            ..closed(64, 256, 1)
        },
        _ => {
            let clients = batch(name)?;
            // Sixteen whole batches; a small one is over soon, and is asked for more of them.
            Workload { requests: (16 * clients).max(32), seconds: 60.0, ..closed(clients, 128, 128) }
        }
    })
}

fn short(name: &str) -> Option<Workload> {
    let full = full(name)?;
    let closed = |clients, prompt, answer, requests| Workload { warm: 1, requests, ..closed(clients, prompt, answer) };
    let form = match name {
        "sustained-1024" => closed(4, 64, 64, 8),
        "sustained-128" => closed(8, 16, 16, 32),
        "chat" => Workload {
            arrivals: Arrivals::Open { rate: 1.5, burstiness: 1.0, most: Some(8) },
            prompt: Length::Fixed(48),
            answer: Length::Fixed(16),
            turns: 3,
            think_s: 0.2,
            requests: 15,
            warm: 1,
            limits: Limits { ttft_ms: Some(1000.0), tpot_ms: Some(200.0), e2el_ms: None },
            ..full
        },
        "documents" => Workload { prompt: Length::Uniform(192, 384), ..closed(1, 1, 16, 4) },
        "code" => Workload {
            answer: Length::Geometric { mean: 32.0, least: 4, most: 96 },
            temperature: full.temperature,
            ..closed(4, 32, 1, 16)
        },
        _ => {
            let clients = batch(name)?;
            closed(clients, 16, 16, (6 * clients).min(32).max(clients).max(16))
        }
    };
    Some(Workload { seconds: 8.0, stall_s: 20.0, ..form })
}

#[cfg(test)]
mod tests {
    use super::{Arrivals, Workload};

    #[test]
    fn all_names_are_sound() {
        for name in Workload::NAMES {
            for (quick, context) in
                [(false, 131_072), (false, 8192), (false, 2048), (true, 8192), (true, 512), (true, 64)]
            {
                let workload = Workload::named(name, quick, context).unwrap();
                workload.check().unwrap();
                assert!(workload.most_context() <= context, "{name} in {context}: {workload:?}");
                assert!(!quick || (workload.most_context() <= 512 && workload.requests <= 32), "{workload:?}");
            }
        }
        assert_eq!(Workload::named("batch-0", false, 4096), None);
        assert_eq!(Workload::named("talk", true, 4096), None);
    }

    /// The parameters that comparisons elsewhere have are those of the full form; what does not fit takes from the prompt first.
    #[test]
    fn parameters() {
        let full = |name| Workload::named(name, false, 131_072).unwrap();
        let sustained = full("sustained-1024");
        assert_eq!((sustained.most_requests_at_a_time(), sustained.most_context()), (256, 2048));
        assert!(sustained.seconds >= 120.0);
        let chat = full("chat");
        assert_eq!((chat.limits.ttft_ms, chat.limits.tpot_ms, chat.prefix), (Some(100.0), Some(20.0), true));
        assert!(matches!(chat.arrivals, Arrivals::Open { burstiness: 1.0, .. }));
        assert_eq!(full("batch-16").bound(), Some(16));
        let documents = Workload::named("documents", false, 8192).unwrap();
        assert_eq!((documents.answer.most(), documents.most_context()), (128, 8192));
    }
}
