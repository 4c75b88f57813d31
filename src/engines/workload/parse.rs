//! Workloads as they are written on a command line: `name`, or `name:setting=value,setting=value`.

use super::{Arrivals, Length, Workload, WorkloadError, read_trace};
use std::path::PathBuf;
use std::str::FromStr;

/// The settings.
pub(super) const KEYS: &[&str] = &[
    "clients",
    "rate",
    "burstiness",
    "most",
    "file",
    "prompt",
    "answer",
    "turns",
    "think",
    "temperature",
    "requests",
    "seconds",
    "warm",
    "ttft",
    "tpot",
    "e2el",
    "prefix",
    "seed",
    "stall",
];

impl Workload {
    /// A workload that is built in, with other settings: `chat:rate=4,turns=2`; its name is the whole text. Settings are `clients`; or `rate`
    /// (requests/s), `burstiness`, `most` (on their way); `file` (of the workload `trace`); `prompt` and `answer` in tokens (`128`,
    /// `16..1024` for any of them, `256~16..1024` for geometric with that mean); `turns`, `think` (s), `temperature`, `requests`, `seconds`, `warm`;
    /// the limits `ttft`, `tpot`, `e2el` (ms); `prefix` (on, off), `seed`, `stall` (s). A trace is read here, and its lengths are then those of
    /// its longest requests.
    pub fn parse(text: &str, quick: bool, context: usize) -> Result<Workload, WorkloadError> {
        let (name, settings) = text.split_once(':').unwrap_or((text, ""));
        let mut workload = match name {
            "trace" => trace(quick),
            _ => Workload::named(name, quick, context).ok_or_else(|| WorkloadError::Unknown { name: name.into() })?,
        };
        for setting in settings.split(',').filter(|s| !s.is_empty()) {
            let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
            workload.set(key.trim(), value.trim())?;
        }
        workload.name = text.into();
        if let Arrivals::Trace { file } = &workload.arrivals {
            if file.as_os_str().is_empty() {
                return Err(WorkloadError::Nonsense("a trace needs its file: trace:file=PATH".into()));
            }
            let all = read_trace(file)?;
            let most = |length: &dyn Fn(&super::Arrival) -> usize| all.iter().map(length).max().unwrap_or(1);
            workload.prompt = Length::Uniform(1, most(&|a| a.prompt));
            workload.answer = Length::Uniform(1, most(&|a| a.answer));
            workload.requests = workload.requests.min(all.len());
        }
        workload.check()?;
        let needs = workload.most_context();
        if needs > context {
            return Err(WorkloadError::Context { name: text.into(), needs, has: context });
        }
        Ok(workload)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), WorkloadError> {
        match key {
            "clients" => {
                let clients = number(key, value, "a number of clients")?;
                if self.bound() == Some(self.warm) {
                    self.warm = clients;
                }
                self.arrivals = Arrivals::Closed { clients };
            }
            "rate" => {
                let rate = number(key, value, "requests a second")?;
                let (burstiness, most) = match self.arrivals {
                    Arrivals::Open { burstiness, most, .. } => (burstiness, most),
                    _ => (1.0, None),
                };
                self.arrivals = Arrivals::Open { rate, burstiness, most };
            }
            "burstiness" | "most" => match &mut self.arrivals {
                Arrivals::Open { burstiness, .. } if key == "burstiness" => {
                    *burstiness = number(key, value, "a number above 0; 1 is Poisson")?;
                }
                Arrivals::Open { most, .. } => *most = Some(number(key, value, "a number of requests")?),
                _ => {
                    return Err(WorkloadError::Nonsense(format!(
                        "{key} belongs to random arrivals; give rate before it"
                    )));
                }
            },
            "file" => match &mut self.arrivals {
                Arrivals::Trace { file } => *file = PathBuf::from(value),
                _ => return Err(WorkloadError::Nonsense("file belongs to a trace: trace:file=PATH".into())),
            },
            "prompt" => self.prompt = length(key, value)?,
            "answer" => self.answer = length(key, value)?,
            "turns" => self.turns = number(key, value, "a number of turns")?,
            "think" => self.think_s = number(key, value, "seconds")?,
            "temperature" => self.temperature = number(key, value, "a number, 0 for the most likely token")?,
            "requests" => self.requests = number(key, value, "a number of requests")?,
            "seconds" => self.seconds = number(key, value, "seconds")?,
            "warm" => self.warm = number(key, value, "a number of requests")?,
            "ttft" => self.limits.ttft_ms = Some(number(key, value, "milliseconds")?),
            "tpot" => self.limits.tpot_ms = Some(number(key, value, "milliseconds")?),
            "e2el" => self.limits.e2el_ms = Some(number(key, value, "milliseconds")?),
            "prefix" => {
                self.prefix = match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err(WorkloadError::Value { key: key.into(), value: value.into(), takes: "on or off" }),
                }
            }
            "seed" => self.seed = number(key, value, "a whole number")?,
            "stall" => self.stall_s = number(key, value, "seconds")?,
            _ => return Err(WorkloadError::Setting { key: key.into() }),
        }
        Ok(())
    }
}

fn trace(quick: bool) -> Workload {
    let arrivals = Arrivals::Trace { file: PathBuf::new() };
    let (seconds, stall_s) = if quick { (8.0, 20.0) } else { (super::MAX_SECONDS, 60.0) };
    Workload { arrivals, requests: usize::MAX, seconds, stall_s, ..Workload::default() }
}

fn number<T: FromStr>(key: &str, value: &str, takes: &'static str) -> Result<T, WorkloadError> {
    value.parse().map_err(|_| WorkloadError::Value { key: key.into(), value: value.into(), takes })
}

fn length(key: &str, value: &str) -> Result<Length, WorkloadError> {
    const TAKES: &str = "tokens: 128, 16..1024 for any of them, 256~16..1024 for geometric with that mean";
    let count = |text: &str| number(key, text, TAKES);
    let range = |text: &str| match text.split_once("..") {
        Some((least, most)) => Ok((count(least)?, count(most)?)),
        None => Err(WorkloadError::Value { key: key.into(), value: value.into(), takes: TAKES }),
    };
    match value.split_once('~') {
        Some((mean, rest)) => {
            let (least, most) = range(rest)?;
            Ok(Length::Geometric { mean: number(key, mean, TAKES)?, least, most })
        }
        None if value.contains("..") => range(value).map(|(least, most)| Length::Uniform(least, most)),
        None => count(value).map(Length::Fixed),
    }
}

#[cfg(test)]
mod tests {
    use super::{Arrivals, KEYS, Length, Workload, WorkloadError};

    fn of(text: &str) -> Result<Workload, WorkloadError> {
        Workload::parse(text, false, 4096)
    }

    #[test]
    fn settings() {
        let chat = of("chat:rate=2.5,burstiness=0.5,prompt=100,answer=16..32,turns=2,ttft=50,seed=9,think=0").unwrap();
        assert_eq!(chat.arrivals, Arrivals::Open { rate: 2.5, burstiness: 0.5, most: Some(256) });
        assert_eq!((chat.prompt, chat.answer), (Length::Fixed(100), Length::Uniform(16, 32)));
        assert_eq!((chat.turns, chat.seed, chat.limits.ttft_ms, chat.limits.tpot_ms), (2, 9, Some(50.0), Some(20.0)));
        let code = of("code:answer=64~8..128,clients=3,temperature=0.5,requests=7,seconds=3").unwrap();
        assert_eq!(code.answer, Length::Geometric { mean: 64.0, least: 8, most: 128 });
        assert_eq!((code.bound(), code.warm, code.temperature, code.requests, code.seconds), (Some(3), 3, 0.5, 7, 3.0));
        assert_eq!(code.name, "code:answer=64~8..128,clients=3,temperature=0.5,requests=7,seconds=3");
        // A closed workload that is given a rate is one at random.
        let rate = of("batch-4:rate=3,most=9").unwrap();
        assert_eq!(rate.arrivals, Arrivals::Open { rate: 3.0, burstiness: 1.0, most: Some(9) });
        assert_eq!(of("batch-4").unwrap(), Workload::named("batch-4", false, 4096).unwrap());
    }

    #[test]
    fn nonsense_is_refused_with_what_to_do() {
        for (text, says) in [
            ("talk", "sustained-1024"),
            ("chat:speed=3", "burstiness"),
            ("chat:rate", "requests a second"),
            ("chat:rate=fast", "requests a second"),
            ("chat:rate=-1", "0.0001"),
            ("chat:rate=nan", "0.0001"),
            ("chat:burstiness=0", "Poisson"),
            ("chat:most=0", "1 to"),
            ("chat:ttft=0", "above 0"),
            ("chat:turns=0", "1 to"),
            ("chat:think=-1", "0 to"),
            ("chat:think=inf", "0 to"),
            ("chat:seconds=0", "0.001 to"),
            ("chat:stall=0", "0.001 to"),
            ("chat:requests=0", "1 or more"),
            ("chat:prefix=yes", "on or off"),
            ("batch-4:clients=0", "1 to"),
            ("batch-4:clients=99999999", "1 to"),
            ("batch-4:prompt=0", "1 to"),
            ("batch-4:prompt=9..3", "the less first"),
            ("batch-4:prompt=9~3", "geometric"),
            ("batch-4:answer=0.5~3..9", "in the mean"),
            ("batch-4:prompt=18446744073709551615", "1 to"),
            ("batch-4:temperature=-1", "0 to 100"),
            ("batch-4:file=x", "trace:file"),
            ("batch-4:most=3", "give rate before"),
            ("batch-4:burstiness=3,rate=1", "give rate before"),
            ("batch-4:warm=18446744073709551615", "1 to"),
            ("batch-4:prompt=5000", "has 4096"),
            ("trace", "trace:file"),
            ("trace:file=/no/such", "/no/such"),
        ] {
            let found = of(text).expect_err(text).to_string();
            assert!(found.contains(says), "{text}: {found}");
        }
    }

    /// The list that an error shows has every setting, and none that is refused.
    #[test]
    fn every_setting_is_listed() {
        for key in KEYS {
            let found = Workload::named("chat", true, 512).unwrap().set(key, "?");
            assert!(!matches!(found, Err(WorkloadError::Setting { .. })), "{key}");
        }
        assert!(matches!(Workload::default().set("?", "?"), Err(WorkloadError::Setting { .. })));
    }

    #[test]
    fn a_trace_says_what_it_needs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("trace.jsonl");
        let row = |at, i, o| format!("{{\"timestamp\": {at}, \"input_length\": {i}, \"output_length\": {o}}}\n");
        std::fs::write(&file, [row(0, 100, 5), row(3, 7, 80)].concat()).unwrap();
        let trace = of(&format!("trace:file={}", file.display())).unwrap();
        assert_eq!((trace.most_context(), trace.requests, trace.most_requests_at_a_time()), (180, 2, 2));
        let turns = of(&format!("trace:turns=2,file={}", file.display()));
        assert!(turns.expect_err("turns").to_string().contains("no turns"));
    }
}
