//! Speaks to the engine's program.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use jitune_peer::{
    Numbered,
    engine::{Ask, ENGINE_PROTOCOL, End, Finish, Load, Loaded, Sampling, Stats, Submit, Tell},
};

/// The program, running.
pub struct Program {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    id: u64,
    /// What came of requests before it was asked for.
    said: Vec<(u64, Tell)>,
}

/// What came of a request.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub tokens: Vec<u32>,
    pub end: End,
}

impl Program {
    pub fn start(options: &[(&str, &str)]) -> Program {
        let mut child = Command::new(env!("CARGO_BIN_EXE_jitune-engine-llama-cpp"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut program = Program { child, to, from, id: 0, said: Vec::new() };
        let options: BTreeMap<String, String> = options.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let hello = Ask::Hello { protocol: ENGINE_PROTOCOL, device: "cpu:2".parse().unwrap(), options };
        match program.ask(hello) {
            Tell::Hello(about) => assert_eq!(about.engine, "llama.cpp"),
            other => panic!("{other:?}"),
        }
        program
    }

    pub fn send(&mut self, ask: Ask) -> u64 {
        self.id += 1;
        let line = serde_json::to_string(&Numbered { id: self.id, message: ask }).unwrap();
        writeln!(self.to, "{line}").unwrap();
        self.id
    }

    /// The next that is told of a request.
    pub fn of(&mut self, id: u64) -> Tell {
        loop {
            if let Some(at) = self.said.iter().position(|(of, _)| *of == id) {
                return self.said.remove(at).1;
            }
            let mut line = String::new();
            assert!(self.from.read_line(&mut line).unwrap() > 0, "the program ended: {:?}", self.child.wait());
            let told: Numbered<Tell> = serde_json::from_str(&line).unwrap();
            self.said.push((told.id, told.message));
        }
    }

    pub fn ask(&mut self, ask: Ask) -> Tell {
        let id = self.send(ask);
        self.of(id)
    }

    pub fn load(&mut self, file: &Path, dtype: &str, context: usize, sequences: usize) -> Loaded {
        match self.ask(loading(file, dtype, context, sequences)) {
            Tell::Loaded(loaded) => loaded,
            other => panic!("{other:?}"),
        }
    }

    pub fn submit(&mut self, prompt: &[u32], most: usize, sampling: Sampling) -> u64 {
        self.send(Ask::Submit(Submit { prompt: prompt.to_vec(), most, sampling, ignore_eos: true }))
    }

    pub fn answer(&mut self, id: u64) -> Answer {
        let mut answer = Answer::default();
        loop {
            match self.of(id) {
                Tell::Tokens { ids, .. } => answer.tokens.extend(ids),
                Tell::End(end) => return Answer { end, ..answer },
                other => panic!("{other:?}"),
            }
        }
    }

    /// The greedy answer of so many tokens.
    pub fn greedy(&mut self, prompt: &[u32], most: usize) -> Vec<u32> {
        let id = self.submit(prompt, most, Sampling::default());
        let answer = self.answer(id);
        assert_eq!((answer.tokens.len(), answer.end.why), (most, Finish::Length), "{answer:?}");
        answer.tokens
    }

    /// The logits of each position, row by row.
    pub fn logits(&mut self, prompt: &[u32], folder: &Path) -> Vec<f32> {
        let file = folder.join("logits.f32");
        match self.ask(Ask::Logits { prompt: prompt.to_vec(), file: file.clone() }) {
            Tell::Logits(told) => assert_eq!(told.rows, prompt.len() as u64),
            other => panic!("{other:?}"),
        }
        std::fs::read(file).unwrap().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    pub fn stats(&mut self) -> Stats {
        match self.ask(Ask::Stats) {
            Tell::Stats(stats) => stats,
            other => panic!("{other:?}"),
        }
    }
}

pub fn loading(file: &Path, dtype: &str, context: usize, sequences: usize) -> Ask {
    let (folder, dtype) = (file.to_path_buf(), dtype.into());
    Ask::Load(Load { folder, dtype, context, sequences, ..Load::default() })
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
