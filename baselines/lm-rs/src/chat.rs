//! lm.rs's program, and its files.

use std::{
    io::{BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use jitune_peer::{Refusal, engine::Sampling};

/// The character of token 0 in the tokenizer file.
const FIRST: u32 = 0x1_0000;
/// What it prints before it reads a prompt.
const ASKS: &[u8] = b"You: ";

/// A model's file, by its header.
pub struct File {
    pub path: PathBuf,
    pub tokenizer: PathBuf,
    pub dtype: &'static str,
    pub vocab: u32,
    /// Tokens of the longest sequence.
    pub longest: usize,
    /// Tokens of a prompt and its answer that were asked for.
    pub context: usize,
}

impl File {
    pub fn open(path: &Path) -> Result<File, Refusal> {
        let failed = |why: &dyn std::fmt::Display| Refusal::failed(format!("{}: {why}", path.display()));
        let mut head = [0; 56];
        std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).map_err(|e| failed(&e))?;
        let word =
            |i: usize| head.get(4 * i..4 * i + 4).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_le_bytes(*b));
        if !head.starts_with(b"lmrs") || word(1) != 4 {
            return Err(failed(&"it is no file of lm.rs, version 4"));
        }
        let dtype = match head[48] {
            0 => "f32",
            1 => "q8_0",
            2 => "q4_0",
            other => return Err(failed(&format!("weights of type {other}"))),
        };
        let mut tokenizer = path.as_os_str().to_owned();
        tokenizer.push(".tokenizer");
        let tokenizer = PathBuf::from(tokenizer);
        if !tokenizer.is_file() {
            let fix = "jitune pack FOLDER --lmrs FILE";
            return Err(Refusal::missing(format!("{} is not there", tokenizer.display()), fix));
        }
        Ok(File { path: path.into(), tokenizer, dtype, vocab: word(8), longest: word(9) as usize, context: 0 })
    }
}

/// The program, running. It ends with this.
pub struct Chat {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// What it was started with.
    pub sampling: Sampling,
}

impl Chat {
    /// Starts it, and waits until it asks for a prompt.
    pub fn start(program: &Path, threads: usize, file: &File, sampling: Sampling) -> Result<Chat, Refusal> {
        let failed = |e: std::io::Error| Refusal::failed(format!("{}: {e}", program.display()));
        let mut child = Command::new(program)
            .arg("--model")
            .arg(&file.path)
            .arg("--tokenizer")
            .arg(&file.tokenizer)
            .args(["--temperature", &sampling.temperature.to_string()])
            .args(["--top-p", &sampling.top_p.to_string(), "--seed", &sampling.seed.max(1).to_string()])
            .env("RAYON_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Refusal::failed("it was started without pipes"));
        };
        let mut chat = Chat { child, to, from: BufReader::new(from), sampling };
        let mut last = Vec::new();
        while !last.ends_with(ASKS) {
            last.push(chat.byte()?);
        }
        Ok(chat)
    }

    /// Gives it a prompt.
    pub fn prompt(&mut self, prompt: &[u32]) -> Result<(), Refusal> {
        let text: Option<String> = prompt.iter().map(|id| char::from_u32(FIRST + id)).collect();
        let text = text.ok_or_else(|| Refusal::failed("a token that is no character"))?;
        writeln!(self.to, "{text}")
            .and_then(|()| self.to.flush())
            .map_err(|e| Refusal::failed(format!("lm.rs's program: {e}")))
    }

    /// The next token that it says: the next character that takes four bytes. What else it prints takes one each.
    pub fn token(&mut self) -> Result<u32, Refusal> {
        let mut character = [0; 4];
        while character[0] < 0xf0 {
            character[0] = self.byte()?;
        }
        for byte in &mut character[1..] {
            *byte = self.byte()?;
        }
        let text = std::str::from_utf8(&character).map_err(Refusal::failed)?;
        text.chars()
            .next()
            .and_then(|c| u32::from(c).checked_sub(FIRST))
            .ok_or_else(|| Refusal::failed("it says no token"))
    }

    fn byte(&mut self) -> Result<u8, Refusal> {
        let mut byte = [0];
        self.from.read_exact(&mut byte).map_err(|e| Refusal::failed(format!("lm.rs's program ended: {e}")))?;
        Ok(byte[0])
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
