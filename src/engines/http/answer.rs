//! From the events of a stream to the pieces of an answer: whose tokens they are, and how many.

use crate::engines::service::What;
use jitune_peer::engine::{End, Finish};
use serde::Deserialize;
use std::time::Duration;

/// Chunks without ids that are taken beyond twice the tokens that were asked for: more is no answer to what was asked.
const SPARE: usize = 64;

/// One chunk, of a completion as OpenAI has it or of llama-server's own.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Chunk {
    choices: Vec<Choice>,
    usage: Option<Usage>,
    timings: Option<Timings>,
    error: Option<serde_json::Value>,
    /// Of what some servers say in place of `error`.
    object: Option<String>,
    message: Option<String>,
    // llama-server's own.
    content: Option<String>,
    tokens: Option<Vec<u32>>,
    stop: Option<bool>,
    stop_type: Option<String>,
    tokens_predicted: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Choice {
    text: Option<String>,
    token_ids: Option<Vec<u32>>,
    finish_reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Usage {
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Timings {
    cache_n: Option<u64>,
    predicted_n: Option<u64>,
}

/// An answer on its way.
pub(super) struct Answer {
    /// Tokens that were asked for.
    most: usize,
    /// Tokens of the prompt, where it was sent as a text of so many.
    prompt: Option<usize>,
    /// Tokens so far, that of `held` with them.
    told: usize,
    /// The last piece where the number of its tokens is a guess, until the next one or the server's own count comes.
    held: Option<(Duration, usize)>,
    /// Why it ends, as the server names it.
    finish: Option<String>,
    cached: Option<u64>,
    /// Whether anything came of it by the last event.
    moved: bool,
    /// Its end was told.
    done: bool,
}

impl Answer {
    /// To a request of so many tokens, whose prompt was a text of `prompt` tokens.
    pub fn new(most: usize, prompt: Option<usize>) -> Answer {
        Answer { most, prompt, told: 0, held: None, finish: None, cached: None, moved: false, done: false }
    }

    /// Whether anything came of it since this was asked last.
    pub fn moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Whether its end was told.
    pub fn done(&self) -> bool {
        self.done
    }

    /// Takes an event that was received `at`, and tells what it is with the moment that it belongs to.
    pub fn event(&mut self, data: &str, at: Duration, mut tell: impl FnMut(Duration, What)) -> Result<(), String> {
        if self.done {
            return Ok(());
        }
        if data.trim() == "[DONE]" {
            return self.end(at, tell);
        }
        let mut chunk: Chunk =
            serde_json::from_str(data).map_err(|e| format!("a broken event: {e}: {}", short(data)))?;
        if chunk.error.is_some() || chunk.object.as_deref() == Some("error") {
            return Err(message(data).unwrap_or_else(|| short(data)));
        }
        let usage = chunk.usage.unwrap_or_default();
        if let (Some(sent), Some(read)) = (self.prompt, usage.prompt_tokens)
            && sent as u64 != read
        {
            return Err(format!("the prompt was a text of {sent} tokens, and the server read {read}"));
        }
        let timings = chunk.timings.unwrap_or_default();
        self.cached = usage.prompt_tokens_details.and_then(|d| d.cached_tokens).or(timings.cache_n).or(self.cached);
        let counted = usage.completion_tokens.or(chunk.tokens_predicted).or(timings.predicted_n).map(|n| n as usize);
        let own = chunk.content.is_some() || chunk.stop.is_some();
        let choice = if own {
            let finish = chunk.stop_type.take().filter(|_| chunk.stop == Some(true));
            Some(Choice { text: chunk.content, token_ids: chunk.tokens, finish_reason: finish })
        } else if chunk.choices.is_empty() {
            None
        } else {
            Some(chunk.choices.swap_remove(0))
        };
        match choice {
            Some(choice) => self.choice(choice, counted, at, &mut tell)?,
            None => self.recount(counted)?,
        }
        // There is no [DONE] after it.
        if chunk.stop == Some(true) { self.end(at, tell) } else { Ok(()) }
    }

    /// The stream has ended without saying so, which is as good where the answer had.
    pub fn closed(&mut self, at: Duration, tell: impl FnMut(Duration, What)) -> Result<(), String> {
        match self.done {
            true => Ok(()),
            false => self.end(at, tell),
        }
    }

    /// A part of the answer. The server's count of all so far decides; without one, its ids; without both, a part is one token.
    fn choice(
        &mut self,
        choice: Choice,
        counted: Option<usize>,
        at: Duration,
        tell: &mut impl FnMut(Duration, What),
    ) -> Result<(), String> {
        let ids = choice.token_ids;
        let quiet = choice.text.as_deref().unwrap_or("").is_empty() && ids.as_deref().unwrap_or(&[]).is_empty();
        // Some servers say 0 until the end.
        let counted = counted.filter(|n| quiet || *n > self.told);
        let finishes = choice.finish_reason.is_some();
        self.moved |= finishes;
        self.finish = choice.finish_reason.or_else(|| self.finish.take());
        if quiet && self.held.is_some() && counted.is_some() {
            return self.recount(counted);
        }
        let count = match (counted, &ids) {
            (Some(all), _) => all.saturating_sub(self.told),
            (None, Some(ids)) => ids.len(),
            (None, None) if quiet && finishes => 0,
            (None, None) => 1,
        };
        if count == 0 {
            return Ok(());
        }
        self.moved = true;
        self.told += count;
        if self.told > 2 * self.most + SPARE {
            return Err(format!("{} tokens were asked for, and it goes on after {}", self.most, self.told));
        }
        self.release(tell);
        if counted.is_none() && ids.is_none() {
            self.held = Some((at, count));
            return Ok(());
        }
        let known = ids.filter(|ids| ids.len() == count);
        tell(at, piece(known, count));
        Ok(())
    }

    /// The server's count of all, with no part of the answer: what is more or less than was counted here belongs to the last piece.
    fn recount(&mut self, counted: Option<usize>) -> Result<(), String> {
        let Some(all) = counted.filter(|n| *n != self.told) else { return Ok(()) };
        let wrong = format!("the server counts {all} tokens, and sent {}", self.told);
        let Some((_, count)) = &mut self.held else {
            // A token that ends the answer may be counted and not shown.
            let silent = self.finish.as_deref() == Some("stop") && all == self.told + 1;
            return if silent { Ok(()) } else { Err(wrong) };
        };
        let Some(last) = (*count + all).checked_sub(self.told) else { return Err(wrong) };
        if all > 2 * self.most + SPARE {
            return Err(wrong);
        }
        *count = last;
        self.told = all;
        self.held = self.held.filter(|(_, count)| *count > 0);
        Ok(())
    }

    fn release(&mut self, tell: &mut impl FnMut(Duration, What)) {
        if let Some((at, count)) = self.held.take() {
            tell(at, piece(None, count));
        }
    }

    fn end(&mut self, at: Duration, mut tell: impl FnMut(Duration, What)) -> Result<(), String> {
        let why = match self.finish.as_deref() {
            Some("length" | "limit" | "max_tokens") => Finish::Length,
            Some("stop" | "eos" | "word" | "eos_token" | "stop_sequence") => Finish::Stop,
            Some(other) => return Err(format!("it ended for \"{}\"", short(other))),
            None => return Err(format!("it ended early, after {} of {} tokens", self.told, self.most)),
        };
        self.release(&mut tell);
        self.done = true;
        tell(at, What::End(End { why, error: None, cached: self.cached }));
        Ok(())
    }
}

fn piece(ids: Option<Vec<u32>>, count: usize) -> What {
    match ids {
        Some(ids) => What::Tokens { ids, known: true },
        None => What::Tokens { ids: vec![0; count], known: false },
    }
}

/// What an error's body says, in the forms that servers have.
pub(super) fn message(body: &str) -> Option<String> {
    let body: serde_json::Value = serde_json::from_str(body).ok()?;
    let texts = [&body["error"]["message"], &body["error"], &body["message"], &body["detail"]];
    let found = texts.iter().find_map(|v| v.as_str()).map(short);
    found.or_else(|| body.get("detail").filter(|d| !d.is_null()).map(|d| short(&d.to_string())))
}

/// A text as it is shown in an error.
pub(super) fn short(text: &str) -> String {
    const SHOWN: usize = 300;
    let text = text.trim();
    if text.chars().count() <= SHOWN { text.into() } else { text.chars().take(SHOWN).chain(['…']).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces as (millisecond, tokens, known), and the end.
    type Read = (Vec<(u64, Vec<u32>, bool)>, Result<Option<End>, String>);

    fn read(most: usize, events: &[&str]) -> Read {
        read_of(Answer::new(most, None), events)
    }

    fn read_of(mut answer: Answer, events: &[&str]) -> Read {
        let (mut pieces, mut end) = (Vec::new(), None);
        for (at, event) in events.iter().enumerate() {
            let tell = |at: Duration, what| match what {
                What::Tokens { ids, known } => pieces.push((at.as_millis() as u64, ids, known)),
                What::End(told) => end = Some(told),
            };
            if let Err(why) = answer.event(event, Duration::from_millis(at as u64), tell) {
                return (pieces, Err(why));
            }
        }
        (pieces, Ok(end))
    }

    fn length(cached: Option<u64>) -> Result<Option<End>, String> {
        Ok(Some(End { why: Finish::Length, error: None, cached }))
    }

    #[test]
    fn ids_are_taken_as_they_are_and_usage_agrees() {
        let events = [
            r#"{"choices":[{"index":0,"text":"","token_ids":[5]}],"usage":null}"#,
            r#"{"choices":[{"text":"ab","token_ids":[6,7]}]}"#,
            r#"{"choices":[{"text":"","token_ids":[],"finish_reason":"length"}]}"#,
            r#"{"choices":[],"usage":{"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}"#,
            "[DONE]",
            "not read any more",
        ];
        let pieces = vec![(0, vec![5], true), (1, vec![6, 7], true)];
        assert_eq!(read(3, &events), (pieces.clone(), length(Some(2))));
        let usage = r#"{"choices":[],"usage":{"completion_tokens":4}}"#;
        let wrong = "the server counts 4 tokens, and sent 3".into();
        assert_eq!(read(3, &[events[0], events[1], events[2], usage]), (pieces, Err(wrong)));
    }

    #[test]
    fn without_ids_the_server_s_count_of_each_chunk_decides() {
        let (pieces, end) = read(
            6,
            &[
                r#"{"choices":[{"text":"a"}],"usage":{"completion_tokens":1}}"#,
                r#"{"choices":[{"text":"bcd"}],"usage":{"completion_tokens":4}}"#,
                r#"{"choices":[{"text":"","finish_reason":"length"}],"usage":{"completion_tokens":6}}"#,
                "[DONE]",
            ],
        );
        assert_eq!(pieces, [(0, vec![0], false), (1, vec![0; 3], false), (2, vec![0; 2], false)]);
        assert_eq!(end, length(None));
    }

    #[test]
    fn a_chunk_is_a_token_until_the_last_piece_takes_what_the_usage_says() {
        let chunks = [
            r#"{"choices":[{"text":"a"}]}"#,
            r#"{"choices":[{"text":""}]}"#,
            r#"{"choices":[{"text":"c"}]}"#,
            r#"{"choices":[{"text":"","finish_reason":"length"}]}"#,
        ];
        for (usage, last) in [(3, Some(1)), (5, Some(3)), (2, None)] {
            let usage = format!(r#"{{"choices":[],"usage":{{"completion_tokens":{usage}}}}}"#);
            let (pieces, end) = read(3, &[&chunks[..], &[&usage, "[DONE]"]].concat());
            let counts: Vec<usize> = pieces.iter().map(|(_, ids, _)| ids.len()).collect();
            assert_eq!(counts, [&[1, 1], &last.iter().copied().collect::<Vec<_>>()[..]].concat(), "{usage}");
            assert!(pieces.iter().zip(0..).all(|((at, _, known), i)| *at == i && !known), "{pieces:?}");
            assert_eq!(end, length(None));
        }
        // The same where it stands in the chunk that says why it ends.
        let finish = r#"{"choices":[{"text":"","finish_reason":"length"}],"usage":{"completion_tokens":4}}"#;
        let (pieces, _) = read(3, &[chunks[0], chunks[1], finish, "[DONE]"]);
        assert_eq!(pieces, [(0, vec![0], false), (1, vec![0; 3], false)]);
        // What has been told cannot be taken back.
        let usage = r#"{"choices":[],"usage":{"completion_tokens":1}}"#;
        let (_, end) = read(3, &[&chunks[..], &[usage, "[DONE]"]].concat());
        assert_eq!(end.unwrap_err(), "the server counts 1 tokens, and sent 3");
    }

    #[test]
    fn a_text_that_is_read_as_another_prompt_is_no_answer() {
        let events = [
            r#"{"choices":[{"text":"a"}]}"#,
            r#"{"choices":[{"text":"","finish_reason":"length"}],"usage":{"prompt_tokens":7,"completion_tokens":1}}"#,
            "[DONE]",
        ];
        let (pieces, end) = read_of(Answer::new(1, Some(7)), &events);
        assert_eq!((pieces, end), (vec![(0, vec![0], false)], length(None)));
        let why = read_of(Answer::new(1, Some(6)), &events).1.unwrap_err();
        assert_eq!(why, "the prompt was a text of 6 tokens, and the server read 7");
    }

    #[test]
    fn what_llama_server_says_of_its_own_is_read() {
        let (pieces, end) = read(
            4,
            &[
                r#"{"index":0,"content":"a","tokens":[9],"stop":false,"tokens_predicted":1}"#,
                // The first token of a character was held back, and its id is told of neither.
                r#"{"index":0,"content":"é","tokens":[8],"stop":false,"tokens_predicted":3}"#,
                r#"{"content":"","tokens":[],"stop":true,"stop_type":"limit","tokens_predicted":4,"timings":{"cache_n":7}}"#,
            ],
        );
        assert_eq!(pieces, [(0, vec![9], true), (1, vec![0; 2], false), (2, vec![0], false)]);
        assert_eq!(end, length(Some(7)));
    }

    #[test]
    fn ends_that_are_none_are_said() {
        let token = r#"{"choices":[{"text":"a","token_ids":[1]}]}"#;
        for (events, why) in [
            (&[token, "[DONE]"][..], "it ended early, after 1 of 2 tokens"),
            (&[token, r#"{"choices":[{"text":"","finish_reason":"abort"}]}"#, "[DONE]"], "it ended for \"abort\""),
            (&[token, r#"{"error":{"message":"no room","code":500}}"#], "no room"),
            (&[r#"{"object":"error","message":"no room"}"#], "no room"),
            (&[r#"{"error":"no room"}"#], "no room"),
            (
                &[r#"{"choices":[{"te"#],
                "a broken event: EOF while parsing a string at line 1 column 16: {\"choices\":[{\"te",
            ),
        ] {
            assert_eq!(read(2, events).1.unwrap_err(), why);
        }
        let endless = vec![token; 100];
        assert_eq!(read(2, &endless).1.unwrap_err(), "2 tokens were asked for, and it goes on after 69");
    }
}
