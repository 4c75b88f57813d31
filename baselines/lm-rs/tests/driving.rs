//! The driver, with a program that speaks as lm.rs's does and says the prompt again and again.
#![cfg(unix)]

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use jitune_peer::{
    Numbered,
    engine::{Ask, ENGINE_PROTOCOL, Finish, Load, Sampling, Submit, Tell},
};

const ECHO: &str = r#"#!/bin/sh
printf '\n    L      M     M\nLMRS version: 4\nModel type: LLAMA\n\nYou: '
read -r line || exit 101
printf 'Assistant:\n'
case "$*" in *"--temperature 0 "*) ;; *) printf '%s' "$line$line" ;; esac
said=0
while :; do
    printf '%s' "$line" || exit 1
    # A long answer takes seconds, so that it still runs when another request is cancelled.
    said=$((said + 1))
    [ $said -lt 8 ] || sleep 0.02
done
"#;

struct Program {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    id: u64,
    said: Vec<(u64, Tell)>,
}

impl Program {
    fn start() -> Program {
        let mut child = Command::new(env!("CARGO_BIN_EXE_jitune-engine-lmrs"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Program { child, to, from, id: 0, said: Vec::new() }
    }

    fn send(&mut self, ask: Ask) -> u64 {
        self.id += 1;
        writeln!(self.to, "{}", serde_json::to_string(&Numbered { id: self.id, message: ask }).unwrap()).unwrap();
        self.id
    }

    fn of(&mut self, id: u64) -> Tell {
        loop {
            if let Some(at) = self.said.iter().position(|(of, _)| *of == id) {
                return self.said.remove(at).1;
            }
            let mut line = String::new();
            assert!(self.from.read_line(&mut line).unwrap() > 0, "it ended: {:?}", self.child.wait());
            let told: Numbered<Tell> = serde_json::from_str(&line).unwrap();
            self.said.push((told.id, told.message));
        }
    }

    fn ask(&mut self, ask: Ask) -> Tell {
        let id = self.send(ask);
        self.of(id)
    }

    fn hello(&mut self, chat: &Path) -> Tell {
        let options = [("chat".to_string(), chat.display().to_string())].into();
        self.ask(Ask::Hello { protocol: ENGINE_PROTOCOL, device: "cpu:2".parse().unwrap(), options })
    }

    fn submit(&mut self, prompt: &[u32], most: usize) -> u64 {
        self.send(Ask::Submit(Submit { prompt: prompt.to_vec(), most, ignore_eos: true, ..Submit::default() }))
    }

    fn answer(&mut self, id: u64) -> (Vec<u32>, Finish, String) {
        let mut tokens = Vec::new();
        loop {
            match self.of(id) {
                Tell::Tokens { ids, .. } => tokens.extend(ids),
                Tell::End(end) => return (tokens, end.why, end.error.unwrap_or_default()),
                other => panic!("{other:?}"),
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn script(place: &Path, text: &str) -> PathBuf {
    let path = place.join("chat");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A file as far as its header goes: a vocabulary of 300, 1000 tokens at most.
fn model(place: &Path) -> PathBuf {
    let path = place.join("m.lmrs");
    let words = [4u32, 32, 64, 2, 4, 8, 2, 300, 1000, 0, 0];
    let mut bytes = b"lmrs".to_vec();
    words.iter().for_each(|w| bytes.extend(w.to_le_bytes()));
    bytes.resize(256, 0);
    std::fs::write(&path, bytes).unwrap();
    std::fs::write(place.join("m.lmrs.tokenizer"), "").unwrap();
    path
}

fn loading(folder: &Path, dtype: &str, context: usize) -> Ask {
    Ask::Load(Load { folder: folder.into(), dtype: dtype.into(), context, sequences: 4, ..Load::default() })
}

#[test]
fn ids_go_in_and_out_and_counts_are_exact() {
    let place = tempfile::tempdir().unwrap();
    let mut program = Program::start();
    assert!(matches!(program.hello(&script(place.path(), ECHO)), Tell::Hello(about) if about.engine == "lm.rs"));
    match program.ask(loading(&model(place.path()), "f32", 500)) {
        Tell::Loaded(loaded) => assert_eq!((loaded.sequences, loaded.vocab), (1, 300)),
        other => panic!("{other:?}"),
    }
    let first = program.submit(&[0, 299, 10], 7);
    let second = program.submit(&[5], 2);
    assert_eq!(program.answer(first), (vec![0, 299, 10, 0, 299, 10, 0], Finish::Length, String::new()));
    assert_eq!(program.answer(second).0, [5, 5]);
    // One that runs and one that waits; who comes next is answered.
    let (long, waits) = (program.submit(&[1, 2], 400), program.submit(&[3], 4));
    assert!(matches!(program.of(long), Tell::Tokens { .. }));
    assert!(matches!(program.ask(Ask::Cancel { request: waits }), Tell::Done));
    assert_eq!(program.answer(waits), (vec![], Finish::Cancelled, String::new()));
    assert!(matches!(program.ask(Ask::Cancel { request: long }), Tell::Done));
    assert_eq!(program.answer(long).1, Finish::Cancelled);
    // The program is started with what a request says.
    let sampling = Sampling { temperature: 0.5, ..Sampling::default() };
    let drawn = program.send(Ask::Submit(Submit { prompt: vec![7, 8], most: 3, sampling, ignore_eos: true }));
    assert_eq!(program.answer(drawn).0, [7, 8, 7]);
    for (prompt, most, words) in [(&[][..], 1, "at least 1"), (&[300], 1, "token 300"), (&[1], 500, "500 fit")] {
        let id = program.submit(prompt, most);
        let (_, why, error) = program.answer(id);
        assert!(why == Finish::Failed && error.contains(words), "{error}");
    }
    match program.ask(Ask::Stats) {
        Tell::Stats(stats) => assert_eq!((stats.running, stats.waiting), (Some(0), Some(0))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_missing_or_ends_is_said() {
    let place = tempfile::tempdir().unwrap();
    let said = |tell: Tell| match tell {
        Tell::Refused(e) => format!("{} {}", e.why, e.fix.unwrap_or_default()),
        other => panic!("{other:?}"),
    };
    let mut program = Program::start();
    assert!(said(program.hello(&place.path().join("none"))).contains("cargo build"));
    program.hello(&script(place.path(), ECHO));
    assert!(said(program.ask(loading(place.path(), "f32", 10))).contains("jitune pack"));
    let file = model(place.path());
    assert!(said(program.ask(loading(&file, "bf16", 10))).contains("is of f32"));
    assert!(said(program.ask(loading(&file, "f32", 1000))).contains("959 fit"));
    std::fs::write(place.path().join("other"), [0; 300]).unwrap();
    assert!(said(program.ask(loading(&place.path().join("other"), "f32", 10))).contains("no file of lm.rs"));
    // It ends before it asks, and in the middle of an answer.
    program.hello(&script(place.path(), "#!/bin/sh\necho no\n"));
    assert!(said(program.ask(loading(&file, "f32", 10))).contains("ended"));
    program.hello(&script(place.path(), "#!/bin/sh\nprintf 'You: '; read -r line; printf '%s' \"$line\"\n"));
    assert!(matches!(program.ask(loading(&file, "f32", 10)), Tell::Loaded(_)));
    let id = program.submit(&[4], 3);
    let (tokens, why, error) = program.answer(id);
    assert!(tokens == [4] && why == Finish::Failed && error.contains("ended"), "{tokens:?} {error}");
    std::fs::remove_file(place.path().join("m.lmrs.tokenizer")).unwrap();
    assert!(said(program.ask(loading(&file, "f32", 10))).contains("--lmrs"));
}
