//! The program and the shim on the stand-in for the executor: compiled with the machine's own compiler, driven as jitune drives it.

use jitune_peer::engine::{Ask, End, Finish, Load, Sampling, Submit, Tell};
use jitune_peer::{Device, Numbered, Refusal, RefusalKind};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start() -> Program {
        let mut command = Command::new(env!("CARGO_BIN_EXE_jitune-engine-tensorrt-llm"));
        command.env_remove("JITUNE_TRTLLM_SHIM").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Program { child, input, output }
    }

    fn ask(&mut self, id: u64, message: Ask) {
        let line = serde_json::to_string(&Numbered { id, message }).unwrap() + "\n";
        self.input.write_all(line.as_bytes()).unwrap();
    }

    fn hear(&mut self) -> (u64, Tell) {
        let mut line = String::new();
        assert!(self.output.read_line(&mut line).unwrap() > 0, "it ended: {:?}", self.child.wait());
        let told: Numbered<Tell> = serde_json::from_str(&line).unwrap();
        (told.id, told.message)
    }

    fn hello(&mut self, device: Device, shim: &Path) -> Tell {
        let options = BTreeMap::from([("shim".into(), shim.to_str().unwrap().into()), ("end".into(), "44".into())]);
        self.ask(1, Ask::Hello { protocol: 1, device, options });
        self.hear().1
    }

    fn load(&mut self, folder: &Path, change: impl Fn(&mut Load)) -> Tell {
        let mut load =
            Load { folder: folder.into(), dtype: "bf16".into(), context: 512, sequences: 4, ..Load::default() };
        change(&mut load);
        self.ask(2, Ask::Load(load));
        self.hear().1
    }

    /// What is heard until so many requests have ended: tokens and end of each.
    fn until(&mut self, ends: usize) -> BTreeMap<u64, (Vec<u32>, End)> {
        let mut tokens: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        let mut ended = BTreeMap::new();
        while ended.len() < ends {
            let (id, told) = self.hear();
            assert!(!ended.contains_key(&id), "{id} goes on: {told:?}");
            match told {
                Tell::Tokens { ids, .. } => tokens.entry(id).or_default().extend(ids),
                Tell::End(end) => drop(ended.insert(id, (tokens.remove(&id).unwrap_or_default(), end))),
                Tell::Done => (),
                other => panic!("{other:?}"),
            }
        }
        ended
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The stand-in's library and the shim on it.
fn build(folder: &Path) -> std::path::PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let run = |command: &mut Command| {
        let out = command.current_dir(here).output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    let library = folder.join("libtensorrt_llm.so");
    let mut command = Command::new(compiler);
    command.args([
        "-std=c++17",
        "-Wall",
        "-Wextra",
        "-fPIC",
        "-shared",
        "-I",
        "stand-in",
        "stand-in/executor.cpp",
        "-o",
    ]);
    run(command.arg(library).arg("-pthread"));
    let shim = folder.join("libjitune_trtllm.so");
    let mut command = Command::new("sh");
    command.args(["build.sh", "stand-in"]).args([folder, &shim]).env("CXXFLAGS", "-Wall -Wextra");
    run(&mut command);
    shim
}

/// The folder of a built engine.
fn engine(folder: &Path) -> &Path {
    let config = r#"{"pretrained_config": {"dtype": "bfloat16", "vocab_size": 97, "quantization": {"quant_algo": null}},
        "build_config": {"max_batch_size": 2, "max_seq_len": 512}}"#;
    std::fs::write(folder.join("config.json"), config).unwrap();
    folder
}

fn submit(prompt: &[u32], most: usize) -> Ask {
    Ask::Submit(Submit { prompt: prompt.to_vec(), most, sampling: Sampling::default(), ignore_eos: true })
}

/// What the stand-in answers.
fn answer(prompt: &[u32], most: usize, seed: u32) -> Vec<u32> {
    let mut sum: u32 = prompt.iter().sum();
    let next = |_| {
        let token = (sum + 1 + seed) % 97;
        sum += token;
        token
    };
    (0..most).map(next).collect()
}

fn refused(tell: Tell) -> Refusal {
    match tell {
        Tell::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_executor_behind_the_shim_is_an_engine() {
    let place = tempfile::tempdir().unwrap();
    let shim = build(place.path());
    let mut program = Program::start();
    let Tell::Hello(about) = program.hello(Device::Cuda(0), &shim) else { panic!("no hello") };
    assert_eq!((&about.engine[..], &about.version[..]), ("tensorrt-llm", "0.0.0-stand-in"));
    let Tell::Loaded(loaded) = program.load(engine(place.path()), |_| ()) else { panic!("it is not loaded") };
    assert_eq!((loaded.sequences, loaded.vocab), (2, 97));

    // More requests than are computed at a time, of different lengths, each its own answer.
    let prompts: Vec<Vec<u32>> = (0..7).map(|i| (1..i + 2).collect()).collect();
    for (id, prompt) in (10..).zip(&prompts) {
        program.ask(id, submit(prompt, 3 + prompt.len()));
    }
    for (id, (tokens, end)) in program.until(prompts.len()) {
        let prompt = &prompts[id as usize - 10];
        assert_eq!(tokens, answer(prompt, 3 + prompt.len(), 0), "{id}");
        assert_eq!(end, End { why: Finish::Length, error: None, cached: None });
    }
    // A seed is heard of, and a token that ends answers too, where it is not to be ignored.
    let sampling = Sampling { temperature: 0.8, seed: 5, ..Sampling::default() };
    program.ask(20, Ask::Submit(Submit { prompt: vec![7], most: 4, sampling, ignore_eos: true }));
    assert_eq!(program.until(1)[&20].0, answer(&[7], 4, 5));
    for ignore_eos in [true, false] {
        program.ask(21, Ask::Submit(Submit { prompt: vec![43], most: 4, sampling: Sampling::default(), ignore_eos }));
        let (tokens, end) = program.until(1).remove(&21).unwrap();
        let (count, why) = if ignore_eos { (4, Finish::Length) } else { (1, Finish::Stop) };
        assert_eq!((tokens, end.why), (answer(&[43], count, 0), why));
    }
    // What goes wrong is said of its request alone, whether it is not taken or fails later.
    program.ask(30, submit(&[], 4));
    program.ask(31, submit(&[66], 4));
    program.ask(32, submit(&[9], 4));
    let ended = program.until(3);
    assert_eq!(ended[&30].1.error.as_deref(), Some("a prompt of no token, or an answer of none"));
    assert_eq!((ended[&31].0.len(), ended[&31].1.why), (1, Finish::Failed));
    assert_eq!(ended[&31].1.error.as_deref(), Some("the token 66 cannot be computed"));
    assert_eq!(ended[&32].0, answer(&[9], 4, 0));
    // One that is cancelled ends, and so do those that waited for it.
    program.ask(40, submit(&[3], 1_000_000));
    program.ask(41, submit(&[4], 1_000_000));
    program.ask(42, submit(&[5], 6));
    while program.hear().0 != 40 {}
    program.ask(50, Ask::Cancel { request: 40 });
    program.ask(51, Ask::Cancel { request: 41 });
    program.ask(52, Ask::Cancel { request: 77 });
    let ended = program.until(3);
    assert!(ended[&40].1.why == Finish::Cancelled && ended[&41].1.why == Finish::Cancelled, "{:?}", ended[&40].1);
    assert_eq!((ended[&42].0.clone(), ended[&42].1.why), (answer(&[5], 6, 0), Finish::Length));
    // Loaded again while something runs, it forgets that, and answers.
    program.ask(60, submit(&[3], 1_000_000));
    while program.hear().0 != 60 {}
    program.ask(
        2,
        Ask::Load(Load {
            folder: place.path().into(),
            dtype: "bf16".into(),
            context: 9,
            sequences: 1,
            ..Load::default()
        }),
    );
    while !matches!(program.hear(), (2, Tell::Loaded(_))) {}
    program.ask(61, submit(&[8], 2));
    assert_eq!(program.until(1)[&61].0, answer(&[8], 2, 0));
    program.ask(70, Ask::Quit);
    assert!(program.child.wait().unwrap().success());
}

#[test]
fn what_is_missing_is_said_with_what_brings_it() {
    let place = tempfile::tempdir().unwrap();
    let mut program = Program::start();
    assert_eq!(refused(program.hello(Device::Cpu(1), place.path())).kind, RefusalKind::Unsupported);
    let missing = refused(program.hello(Device::Cuda(0), &place.path().join("no.so")));
    assert_eq!(missing.kind, RefusalKind::Missing);
    assert!(missing.fix.unwrap().contains("build.sh"), "{}", missing.why);
    let shim = build(place.path());
    assert!(matches!(program.hello(Device::Cuda(0), &shim), Tell::Hello(_)));
    let missing = refused(program.load(&place.path().join("nothing"), |_| ()));
    assert!(missing.kind == RefusalKind::Missing && missing.fix.unwrap().contains("trtllm-build"));
    std::fs::write(place.path().join("config.json"), r#"{"architectures": ["LlamaForCausalLM"]}"#).unwrap();
    assert!(refused(program.load(place.path(), |_| ())).why.contains("no built engine"));
    engine(place.path());
    for change in [|l: &mut Load| l.dtype = "fp8".into(), |l: &mut Load| l.context = 513] {
        assert_eq!(refused(program.load(place.path(), change)).kind, RefusalKind::Unsupported);
    }
    program.ask(3, submit(&[1], 1));
    let ended = program.until(1);
    assert_eq!(ended[&3].1.error.as_deref(), Some("nothing is loaded"));
    program.ask(4, Ask::Logits { prompt: vec![1], file: place.path().join("logits") });
    assert_eq!(refused(program.hear().1).kind, RefusalKind::Unsupported);
}
