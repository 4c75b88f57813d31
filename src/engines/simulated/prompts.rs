//! What is asked.

use super::{Simulated, VOCAB, answer, closed, end, ms, run, s, tokens};
use crate::engines::client::Outcome;
use crate::engines::rows::State;
use crate::engines::service::What;
use crate::engines::workload::{Arrivals, Length, Workload};
use jitune_peer::engine::{End, Finish, Submit};
use std::collections::BTreeSet;

/// What is asked of an engine that takes so many milliseconds a token.
fn asked(workload: &Workload, gap: u64) -> (Vec<Submit>, Outcome) {
    let mut seen = Vec::new();
    let mut service = Simulated::new(|now, r: &Submit| {
        seen.push(r.clone());
        answer(now, r.most, ms(gap), ms(gap))
    });
    let outcome = run(&mut service, workload);
    (seen, outcome)
}

/// Prompts are the same for all engines, are of the model's tokens, and no two of a run begin alike.
#[test]
fn prompts() {
    let workload = Workload {
        name: "one".into(),
        prompt: Length::Uniform(8, 64),
        answer: Length::Geometric { mean: 6.0, least: 2, most: 9 },
        temperature: 0.8,
        warm: 4,
        ..closed(7, 500)
    };
    let (first, _) = asked(&workload, 3);
    let (second, _) = asked(&workload, 40);
    assert_eq!(first, second);
    assert_eq!(first.len(), 504);
    assert!(first.iter().flat_map(|r| &r.prompt).all(|id| (256..VOCAB as u32).contains(id)));
    assert_eq!(first.iter().map(|r| r.prompt[0]).collect::<BTreeSet<_>>().len(), 504);
    assert!(first.iter().all(|r| (8..=64).contains(&r.prompt.len()) && (2..=9).contains(&r.most) && r.ignore_eos));
    let lengths = |of: &dyn Fn(&Submit) -> usize| first.iter().map(of).collect::<BTreeSet<_>>().len();
    assert!(lengths(&|r| r.prompt.len()) > 40 && lengths(&|r| r.most) == 8);
    assert!(first.iter().all(|r| r.sampling.temperature == 0.8 && r.sampling.top_p == 1.0 && r.sampling.top_k == 0));
    assert_eq!(first.iter().map(|r| r.sampling.seed).collect::<BTreeSet<_>>().len(), 504);
    // Another workload of the run, or another seed, has other prompts: what an engine keeps of the one does not serve the other.
    for other in [Workload { name: "two".into(), ..workload.clone() }, Workload { seed: 1, ..workload }] {
        let (other, _) = asked(&other, 3);
        let alike = first.iter().zip(&other).filter(|(a, b)| a.prompt[..2] == b.prompt[..2]).count();
        assert_eq!(alike, 0);
    }
}

/// A model of few tokens has no others.
#[test]
fn a_small_vocabulary() {
    let mut least = u32::MAX;
    let mut service = Simulated::new(|now, r: &Submit| {
        assert!(r.prompt.iter().all(|id| *id < 40));
        least = least.min(r.prompt.iter().copied().min().unwrap_or(least));
        answer(now, r.most, ms(1), ms(1))
    });
    let stop = std::sync::atomic::AtomicBool::new(false);
    crate::engines::drive(&mut service, &closed(1, 100), 40, &stop, &mut |_| ()).unwrap();
    assert!(crate::engines::drive(&mut service, &closed(1, 100), 0, &stop, &mut |_| ()).is_err());
    assert_eq!(least, 0);
}

fn chat() -> Workload {
    Workload {
        name: "chat".into(),
        arrivals: Arrivals::Open { rate: 6.0, burstiness: 1.0, most: Some(50) },
        prompt: Length::Uniform(5, 9),
        answer: Length::Fixed(4),
        turns: 3,
        think_s: 0.5,
        warm: 2,
        ..closed(1, 300)
    }
}

/// Each turn's prompt is the previous one, its answer and something new, and is due when the thinking is over.
#[test]
fn turns_go_on() {
    let mut seen: Vec<Submit> = Vec::new();
    let mut service = Simulated::new(|now, r: &Submit| {
        seen.push(r.clone());
        let id = seen.len() as u32;
        vec![
            (now + ms(50), tokens(&[id])),
            (now + ms(90), tokens(&[id + 1, id + 2, 0])),
            (now + ms(91), end(Finish::Length)),
        ]
    });
    let outcome = run(&mut service, &chat());
    assert_eq!((outcome.state, outcome.trips.len()), (State::Ok, 302));
    let mut pairs = 0;
    for (trip, now) in outcome.trips.iter().zip(&seen).filter(|(t, _)| !t.warm) {
        assert_eq!(trip.prompt, now.prompt.len());
        let (chat, turn) = trip.turn.unwrap();
        let Some(place) = outcome.trips.iter().position(|t| turn > 0 && t.turn == Some((chat, turn - 1))) else {
            assert_eq!(turn, 0);
            assert!((5..=9).contains(&trip.prompt));
            continue;
        };
        let (before, was) = (&outcome.trips[place], &seen[place].prompt);
        let said = [was.as_slice(), &before.ids].concat();
        assert_eq!(before.ids.len(), 4);
        assert_eq!(now.prompt[..said.len()], said);
        assert!((5..=9).contains(&(now.prompt.len() - said.len())));
        assert_eq!(trip.due, before.end.unwrap() + s(0.5));
        pairs += 1;
    }
    assert!(pairs > 150, "{pairs}");
    let chats: BTreeSet<u64> = outcome.trips.iter().filter_map(|t| Some(t.turn?.0)).collect();
    assert!(chats.len() >= 100, "{}", chats.len());
    assert!(outcome.trips.iter().all(|t| t.turn.is_none_or(|(_, turn)| turn < 3)));
    // The rate is that of requests: 300 at 6 a second take some 50 s.
    let last = outcome.trips.iter().map(|t| t.sent).max().unwrap();
    assert!((35.0..70.0).contains(&last.as_secs_f64()), "{last:?}");
}

/// A server of text does not say its tokens: the lengths are right all the same.
#[test]
fn turns_of_text() {
    let mut seen: Vec<Submit> = Vec::new();
    let mut service = Simulated::new(|now, r: &Submit| {
        seen.push(r.clone());
        let what = What::Tokens { ids: vec![0; 4], known: false };
        vec![(now + ms(50), what), (now + ms(50), end(Finish::Length))]
    });
    let outcome = run(&mut service, &chat());
    assert!(outcome.trips.iter().all(|t| t.ids.is_empty() && t.tokens() == 4));
    let goes_on = |place: usize| {
        let (chat, turn) = outcome.trips[place].turn?;
        let next = outcome.trips.iter().position(|t| t.turn == Some((chat, turn + 1)))?;
        let (was, now) = (&seen[place].prompt, &seen[next].prompt);
        assert_eq!(now[..was.len()], was[..]);
        assert!(now[was.len()..].iter().all(|id| *id >= 256));
        assert!((9..=13).contains(&(now.len() - was.len())));
        Some(())
    };
    assert!((0..seen.len()).filter_map(goes_on).count() > 150);
}

/// Nobody goes on with a chat whose answer failed; others begin.
#[test]
fn a_failed_turn_is_the_last() {
    let mut count = 0;
    let mut service = Simulated::new(|now, r: &Submit| {
        count += 1;
        match count % 10 {
            0 => vec![(now, What::End(End { why: Finish::Failed, error: Some("full".into()), cached: None }))],
            _ => answer(now, r.most, ms(20), ms(1)),
        }
    });
    for arrivals in [chat().arrivals, Arrivals::Closed { clients: 3 }] {
        let outcome = run(&mut service, &Workload { arrivals, warm: 0, ..chat() });
        assert_eq!((outcome.state, outcome.trips.len()), (State::Dropped, 300));
        for trip in outcome.trips.iter().filter(|t| t.error.is_some()) {
            let (chat, turn) = trip.turn.unwrap();
            assert!(!outcome.trips.iter().any(|t| t.turn == Some((chat, turn + 1))));
        }
    }
}
