//! Engines that go wrong are called what they are, and what was heard before is kept.

use super::{Simulated, VOCAB, answer, closed, end, ms, run, s, tokens};
use crate::engines::client::{Outcome, drive};
use crate::engines::measured::Measured;
use crate::engines::rows::State;
use crate::engines::service::What;
use crate::engines::workload::{Limits, Workload};
use jitune_peer::engine::{End, Finish, Submit};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What an engine is that answers request `n` (from 1) so; four clients, a hundred requests of four tokens.
fn called(mut answer: impl FnMut(usize, Duration, &Submit) -> Vec<(Duration, What)>) -> Outcome {
    let mut n = 0;
    let mut service = Simulated::new(|now, r: &Submit| {
        n += 1;
        answer(n, now, r)
    });
    let workload = closed(4, 100);
    let begun = service.now;
    let outcome = run(&mut service, &workload);
    let last = outcome.trips.iter().filter_map(|t| t.end).max().unwrap_or_default();
    assert!(service.now - begun <= last + s(workload.patience() + 3.0));
    assert!(outcome.trips.iter().all(|t| t.is_whole() || t.error.is_some()), "{outcome:?}");
    outcome
}

fn good(now: Duration, r: &Submit) -> Vec<(Duration, What)> {
    answer(now, r.most, ms(30), ms(10))
}

fn failed(trips: &Outcome) -> (u64, u64) {
    let measured = Measured::of(&trips.trips, &Limits::default());
    (measured.completed, measured.failed)
}

fn why(outcome: &Outcome) -> &str {
    outcome.why.as_deref().unwrap_or_default()
}

#[test]
fn ok() {
    let outcome = called(|_, now, r| good(now, r));
    assert_eq!((outcome.state, &outcome.why, failed(&outcome)), (State::Ok, &None, (100, 0)));
    assert_eq!(outcome.trips[5].ids, [7, 8, 9, 10]);
}

#[test]
fn drops_every_tenth() {
    let outcome = called(|n, now, r| match n % 10 {
        0 => vec![(now + ms(5), What::End(End { why: Finish::Failed, error: Some("no room".into()), cached: None }))],
        _ => good(now, r),
    });
    assert_eq!((outcome.state, failed(&outcome)), (State::Dropped, (90, 10)));
    assert_eq!(why(&outcome), "10 of 100 requests had no answer, the first: no room");
    // One that nobody cancelled but the engine has no answer either.
    let outcome = called(|n, now, r| if n == 50 { vec![(now, end(Finish::Cancelled))] } else { good(now, r) });
    assert_eq!((outcome.state, failed(&outcome)), (State::Dropped, (99, 1)));
}

#[test]
fn takes_nothing() {
    let mut service = Simulated::new(|now, _: &Submit| vec![(now, end(Finish::Failed))]);
    let outcome = run(&mut service, &closed(4, 1_000_000));
    assert_eq!(outcome.state, State::Dropped);
    assert!(outcome.trips.len() < 80, "{}", outcome.trips.len());
    assert!(why(&outcome).contains("in a row"), "{}", why(&outcome));
    // One that has an answer at last does not make it go on.
    let late =
        called(|n, now, r| if n == 1 { answer(now, r.most, s(9.0), ms(0)) } else { vec![(now, end(Finish::Failed))] });
    assert_eq!((late.state, failed(&late).0), (State::Dropped, 1));
    assert!(late.trips.len() < 80 && why(&late).contains("64 of them in a row"), "{}", why(&late));
    // The warm-up alone is enough, too.
    let outcome = run(&mut service, &Workload { warm: 64, ..closed(4, 1_000_000) });
    assert_eq!((outcome.state, outcome.trips.len()), (State::Dropped, 64));
}

#[test]
fn bundles_tokens() {
    let outcome = called(|_, now, _| {
        vec![(now + ms(30), tokens(&[1])), (now + ms(60), tokens(&[2, 3, 4])), (now + ms(60), end(Finish::Length))]
    });
    assert_eq!(outcome.state, State::Ok);
    assert_eq!(outcome.trips[9].pieces.iter().map(|p| p.1).collect::<Vec<_>>(), [1, 3]);
    let found = Measured::of(&outcome.trips, &Limits::default());
    assert_eq!((found.output_tokens, found.piece_tokens), (400, 2.0));
    // Three tokens in 30 ms, in one piece.
    assert_eq!((found.tpot_ms.max, found.itl_ms.max, found.itl_ms.count), (10.0, 30.0, 100));
}

#[test]
fn another_length() {
    for (count, finish) in [(5, Finish::Length), (3, Finish::Length), (0, Finish::Length), (3, Finish::Stop)] {
        let outcome = called(|n, now, r| {
            let mut all = answer(now, if n % 25 == 0 { count } else { r.most }, ms(30), ms(10));
            if n % 25 == 0 {
                all.pop();
                all.push((now + ms(100), end(finish)));
            }
            all
        });
        assert_eq!((outcome.state, failed(&outcome)), (State::Miscounted, (96, 4)), "{count}");
        let says = format!("4 of 100 answers have another length than was asked for, the first: {count} tokens, and 4");
        assert!(why(&outcome).starts_with(&says), "{}", why(&outcome));
        // The tokens are kept, in no figure.
        assert_eq!(outcome.trips.iter().map(|t| t.tokens()).sum::<usize>(), 96 * 4 + 4 * count);
    }
    // A token that ends answers at the place of the last one is no fault.
    let outcome = called(|_, now, r| {
        let mut all = good(now, r);
        all.pop();
        all.push((now + ms(100), end(Finish::Stop)));
        all
    });
    assert_eq!(outcome.state, State::Ok);
}

/// An answer without end is cancelled.
#[test]
fn does_not_end() {
    let mut outcome = called(|n, now, r| answer(now, if n == 3 { 100_000 } else { r.most }, ms(30), ms(10)));
    assert_eq!((outcome.state, failed(&outcome)), (State::Miscounted, (99, 1)));
    let long = outcome.trips.swap_remove(2);
    assert!(long.tokens() < 100 && long.end < Some(s(1.0)), "{:?}", long.end);
}

#[test]
fn stalls() {
    // Nothing of all that is asked from the 41st on; or half an answer; or all of it without an end.
    for told in [0, 2, 4] {
        let outcome = called(|n, now, r| match n {
            41.. => good(now, r).into_iter().take(told).collect(),
            _ => good(now, r),
        });
        assert_eq!((outcome.state, failed(&outcome)), (State::Stalled, (40, 4)), "{told}");
        assert!(why(&outcome).contains("4 of 44 requests had no end"), "{}", why(&outcome));
        assert!(outcome.trips[40..].iter().all(|t| t.error.as_deref() == Some("stalled") && t.tokens() == told));
    }
    // One that passes over `cancel` too.
    let mut service = Simulated::new(|_, _: &Submit| Vec::new());
    service.deaf = true;
    let outcome = run(&mut service, &closed(2, 10));
    assert_eq!((outcome.state, outcome.trips.len()), (State::Stalled, 2));
    assert!(outcome.trips.iter().all(|t| t.end.is_none()));
}

/// New requests do not make an engine that is silent a living one.
#[test]
fn a_stall_under_arrivals() {
    let mut service = Simulated::new(|_, _: &Submit| Vec::new());
    let workload = Workload { stall_s: 5.0, ..super::open(10.0, 1.0, 100_000) };
    let outcome = run(&mut service, &workload);
    assert_eq!(outcome.state, State::Stalled);
    assert!(outcome.trips.last().unwrap().sent < s(workload.patience() + 2.0));
}

/// Slow is not stalled, and a pause without a request is none of the engine's.
#[test]
fn slow_is_not_stalled() {
    let mut service = Simulated::new(|now, r: &Submit| answer(now, r.most, s(55.0), s(55.0)));
    assert_eq!(run(&mut service, &closed(2, 6)).state, State::Ok);
    let mut service = Simulated::new(|now, r: &Submit| answer(now, r.most, s(1.0), s(0.0)));
    assert_eq!(run(&mut service, &super::open(0.002, 1.0, 20)).state, State::Ok);
}

#[test]
fn dies() {
    let mut service = Simulated::new(good);
    service.dies = Some(service.now + ms(1000));
    let outcome = run(&mut service, &closed(4, 1000));
    assert_eq!((outcome.state, why(&outcome)), (State::Failed, "out of memory"));
    // 60 ms a request: 16 rounds of four had ended, the last four were on their way.
    assert_eq!(failed(&outcome), (64, 4));
    assert_eq!(outcome.trips.last().unwrap().error.as_deref(), Some("out of memory"));
    assert_eq!(outcome.trips.last().unwrap().tokens(), 1);
}

#[test]
fn interrupted() {
    for (deaf, dies) in [(false, false), (true, false), (false, true)] {
        let stop = AtomicBool::new(false);
        let mut service = Simulated::new(good);
        service.deaf = deaf;
        service.dies = dies.then_some(service.now + ms(1001));
        let begun = service.now;
        let mut tell = |p: &crate::engines::Progress| stop.store(p.at >= ms(1000), Ordering::Relaxed);
        let outcome = drive(&mut service, &closed(4, 1000), VOCAB, &stop, &mut tell).unwrap();
        assert_eq!((outcome.state, why(&outcome)), (State::Cut, "interrupted"), "{deaf} {dies}");
        assert!(service.now - begun < ms(3200));
        assert!(outcome.trips.len() < 80 && outcome.trips.iter().filter(|t| t.is_whole()).count() >= 60);
        assert!(outcome.trips.iter().all(|t| t.is_whole() || t.error.is_some()));
        // One that goes on all the same has answered whole, and only then.
        assert_eq!(outcome.trips.iter().all(super::super::client::Trip::is_whole), deaf);
    }
}

/// What a cell before left on its way is heard while this one runs, and belongs to none of its requests.
#[test]
fn another_cells_answers() {
    let mut service = Simulated::new(|now, r: &Submit| match now < s(1001.0) {
        true => answer(now, 400, s(2.0), ms(10)),
        false => good(now, r),
    });
    service.deaf = true;
    let first = run(&mut service, &Workload { stall_s: 1.0, ..closed(4, 100) });
    assert_eq!(first.state, State::Stalled);
    assert!(service.now < s(1005.0) && service.coming.len() > 400);
    let second = run(&mut service, &closed(4, 1000));
    assert_eq!((second.state, failed(&second)), (State::Ok, (1000, 0)));
}
