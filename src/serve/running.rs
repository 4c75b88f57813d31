//! A job on its way: its requests in the engine, and what has come of them.

use super::api::Job;
use super::log::Tally;
use super::metrics::{Metrics, Reason};
use super::refusal::Refusal;
use super::text::Text;
use crate::engine::{Engine, Event, Finish, Logprobs, Token};
use crate::tokenizer::{Stream, Tokenizer};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What is heard of one answer with one token.
#[derive(Debug)]
pub(super) struct Piece {
    /// Which of the job's answers.
    pub answer: usize,
    /// Text that can be said by now.
    pub text: String,
    pub token: i32,
    pub logprobs: Option<Logprobs>,
    /// Characters of the answer before its own text.
    pub offset: usize,
    /// Whether the answer ends with it.
    pub finish: Option<Reason>,
}

/// Tokens that a job has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub prompt: usize,
    pub cached: usize,
    pub answer: usize,
}

/// A job's requests in the engine. Dropping it cancels what is not done.
pub(super) struct Running {
    engine: Arc<Engine>,
    metrics: Arc<Metrics>,
    tally: Arc<Tally>,
    /// Without a bound, since the engine waits for nobody; a request has at most as many events as it asks for tokens, and
    /// these are no more than the context. So a client that does not read costs some bytes a token and no page of the cache.
    events: UnboundedReceiver<(usize, Event)>,
    answers: Vec<Answer>,
    /// Answers to each prompt.
    each: usize,
    /// Requests whose end is still to come.
    left: usize,
    pub usage: Usage,
}

struct Answer {
    id: u64,
    begun: Instant,
    ends: Vec<i32>,
    most: usize,
    text: Text,
    count: usize,
    /// How it ended for the client; the engine's end may still be to come.
    finish: Option<Reason>,
    ended: bool,
}

impl Running {
    /// Gives the requests of a job to the engine: all of them, or none.
    pub fn begin(
        engine: &Arc<Engine>,
        metrics: &Arc<Metrics>,
        tally: &Arc<Tally>,
        tokenizer: Option<&Arc<Tokenizer>>,
        job: Job,
    ) -> Result<Running, Refusal> {
        let (said, events) = unbounded_channel();
        let Job { requests, each, stops, .. } = job;
        let prompt = requests.iter().step_by(each).map(|r| r.prompt.len()).sum();
        tally.prompt.store(prompt, Ordering::Relaxed);
        let mut running = Running {
            engine: Arc::clone(engine),
            metrics: Arc::clone(metrics),
            tally: Arc::clone(tally),
            events,
            answers: Vec::with_capacity(requests.len()),
            each,
            left: requests.len(),
            usage: Usage { prompt, ..Usage::default() },
        };
        for (number, request) in requests.into_iter().enumerate() {
            let (ends, most, begun) = (request.ends.clone(), request.most, Instant::now());
            let sink = sink(number, said.clone(), Arc::clone(metrics), begun);
            // Of one that is refused, those before it are cancelled with what is dropped.
            let id = engine.submit_to(request, sink)?;
            let text = Text::new(tokenizer.map(Stream::new), stops.clone());
            running.answers.push(Answer { id, begun, ends, most, text, count: 0, finish: None, ended: false });
        }
        Ok(running)
    }

    /// The next piece of any answer; none when all have ended.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, Refusal>>> {
        while self.left > 0 {
            let Poll::Ready(event) = self.events.poll_recv(cx) else { return Poll::Pending };
            let said = match event {
                Some((number, Event::Token(token))) => self.token(number, token),
                Some((number, Event::End(end))) => {
                    if number % self.each == 0 {
                        self.usage.cached += end.cached;
                    }
                    self.metrics.waited.add(end.waited);
                    self.end(number, end.why)
                }
                Some((_, Event::Logits(_))) => continue,
                None => Err(Refusal::failed(self.engine.failure().unwrap_or_else(|| "the engine has ended".into()))),
            };
            match said {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                Ok(None) => (),
                Err(refusal) => {
                    self.leave(Reason::Error);
                    return Poll::Ready(Some(Err(refusal)));
                }
            }
        }
        Poll::Ready(None)
    }

    pub async fn next(&mut self) -> Option<Result<Piece, Refusal>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn token(&mut self, number: usize, token: Token) -> Result<Option<Piece>, Refusal> {
        let Some(answer) = self.answers.get_mut(number).filter(|a| a.finish.is_none()) else { return Ok(None) };
        answer.count += 1;
        self.usage.answer += 1;
        self.metrics.told();
        self.tally.first.get_or_init(Instant::now);
        let Token { id, logprobs } = token;
        let (mut text, mut finish, mut offset) = (String::new(), None, answer.text.known());
        if answer.ends.contains(&id) {
            // What ends an answer is no part of it.
            finish = Some(Reason::Stop);
        } else {
            let (said, stopped, at) = answer.text.push(id).map_err(|e| Refusal::failed(e.to_string()))?;
            (text, offset) = (said, at);
            if stopped {
                finish = Some(Reason::Stop);
                self.engine.cancel(answer.id);
            } else if answer.count >= answer.most {
                finish = Some(Reason::Length);
            }
        }
        if let Some(reason) = finish {
            text += &answer.text.rest();
            answer.finish = finish;
            self.metrics.ended(reason);
            self.metrics.whole.add(answer.begun.elapsed());
        }
        Ok(Some(Piece { answer: number, text, token: id, logprobs, offset, finish }))
    }

    fn end(&mut self, number: usize, why: Finish) -> Result<Option<Piece>, Refusal> {
        let Some(answer) = self.answers.get_mut(number) else { return Ok(None) };
        answer.ended = true;
        self.left -= 1;
        match (answer.finish, why) {
            (Some(_), _) => Ok(None),
            (None, Finish::Failed(why)) => Err(Refusal::failed(why)),
            (None, why) => Err(Refusal::failed(format!("the engine ended an answer before its end: {why:?}"))),
        }
    }

    /// Cancels what is not done.
    fn leave(&mut self, reason: Reason) {
        self.tally.answer.store(self.usage.answer, Ordering::Relaxed);
        for answer in self.answers.iter_mut().filter(|a| !a.ended) {
            answer.ended = true;
            self.engine.cancel(answer.id);
        }
        for answer in self.answers.iter_mut().filter(|a| a.finish.is_none()) {
            answer.finish = Some(reason);
            self.metrics.ended(reason);
        }
        self.left = 0;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.leave(Reason::Abort);
    }
}

/// Who hears of a request, on the engine's thread. It must not hold the engine, whose end waits for that thread.
fn sink(
    number: usize,
    said: UnboundedSender<(usize, Event)>,
    metrics: Arc<Metrics>,
    begun: Instant,
) -> impl FnMut(Event) -> bool + Send {
    let mut last = None;
    move |event| {
        if let Event::Token(_) = event {
            let now = Instant::now();
            match last.replace(now) {
                None => metrics.first.add(now - begun),
                Some(last) => metrics.between.add(now - last),
            }
        }
        said.send((number, event)).is_ok()
    }
}
