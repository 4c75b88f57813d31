//! The protocol, spoken to a peer made for this.
#![allow(missing_docs)]

use jitune_peer::{About, Answer, Device, Numbered, Peer, Prepared, Refusal, Task, Way, Work, numbers, serve_on};
use std::collections::BTreeMap;

/// Doubles x; the way `sleepy` takes a millisecond.
struct Doubler;

struct Doubling {
    x: Vec<Vec<f32>>,
    y: Vec<f32>,
}

impl Peer for Doubler {
    fn hello(&mut self, device: Device, _: &BTreeMap<String, String>) -> Result<About, Refusal> {
        match device {
            Device::Cpu(_) => Ok(About { peer: "doubler".into(), ..About::default() }),
            Device::Cuda(_) => Err(Refusal::missing("no GPU", "buy one")),
        }
    }

    fn prepare(&mut self, task: &Task) -> Result<Prepared, Refusal> {
        if task.op != "double" {
            return Err(Refusal::unsupported("only doubling"));
        }
        let x = task.tensor("x")?.values()?;
        let y = vec![0.0; x.len()];
        let work = Box::new(Doubling { x: vec![x; task.sets], y });
        Ok(Prepared { work, ways: vec![Way::all("fast", "x + x"), Way::all("sleepy", "later")], refused: Vec::new() })
    }
}

impl Work for Doubling {
    fn call(&mut self, way: usize, set: usize) -> Result<(), Refusal> {
        if way == 1 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        self.y = self.x[set].iter().map(|v| v + v).collect();
        Ok(())
    }

    fn read(&mut self, _: usize, tensor: &str, indices: &[u64]) -> Result<Vec<f64>, Refusal> {
        assert_eq!(tensor, "y");
        Ok(indices.iter().map(|i| f64::from(self.y[*i as usize])).collect())
    }

    fn poison(&mut self, _: usize) -> Result<(), Refusal> {
        self.y.fill(f32::NAN);
        Ok(())
    }
}

fn talk(lines: &[String]) -> Vec<Answer> {
    let mut out = Vec::new();
    serve_on(Doubler, lines.join("\n").as_bytes(), &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let answer = |l: &str| serde_json::from_str::<Numbered<Answer>>(l).unwrap().message;
    text.lines().map(answer).collect()
}

fn hello(device: &str) -> String {
    format!(r#"{{"ask":"hello","protocol":2,"device":"{device}"}}"#)
}

fn refused(answer: &Answer) -> &Refusal {
    match answer {
        Answer::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_whole_conversation() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x");
    std::fs::write(&file, [1.5f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat()).unwrap();
    let task = format!(
        r#"{{"ask":"prepare","problem":"double","op":"double","dtype":"f32","dims":{{}},"sets":3,"flush_bytes":4096,
            "round_us":200,"warm_s":0.1,"tensors":[{{"name":"x","dtype":"f32","shape":[2],"role":"in","file":{file:?}}},
            {{"name":"y","dtype":"f32","shape":[2],"role":"out"}}]}}"#
    );
    let (indices, values) = (folder.path().join("indices"), folder.path().join("values"));
    numbers::write_indices(&indices, &[0, 1]).unwrap();
    let read = |count: u64| {
        format!(
            r#"{{"ask":"read","way":"fast","tensor":"y","count":{count},"indices":{indices:?},"values":{values:?}}}"#
        )
    };
    let answers = talk(&[
        hello("cpu:2"),
        task.replace('\n', " "),
        read(2),
        r#"{"ask":"round","way":"sleepy"}"#.into(),
        r#"{"ask":"once","way":"fast"}"#.into(),
        r#"{"ask":"round","way":"none"}"#.into(),
        r#"{"ask":"release"}"#.into(),
        r#"{"ask":"round","way":"fast"}"#.into(),
        r#"{"ask":"quit"}"#.into(),
        hello("cpu:2"),
    ]);
    assert_eq!(answers.len(), 8, "{answers:?}");
    let Answer::Prepared { ways, .. } = &answers[1] else { panic!("{answers:?}") };
    assert_eq!(ways.iter().map(|w| w.way.as_str()).collect::<Vec<_>>(), ["fast", "sleepy"]);
    assert_eq!(answers[2], Answer::Values { count: 2 });
    assert_eq!(numbers::read_values(&values, 2).unwrap(), [Some(3.0), None]);
    assert!(numbers::read_values(&values, 3).unwrap_err().why.contains("16 bytes, not 24"));
    assert!(numbers::read_values(&values, u64::MAX).is_err());
    let answers_of_a_wrong_count = talk(&[hello("cpu:2"), read(3)]);
    assert!(refused(&answers_of_a_wrong_count[1]).why.contains("16 bytes, not 24"), "{answers_of_a_wrong_count:?}");
    let Answer::Round(round) = answers[3] else { panic!("{answers:?}") };
    assert!(round.called_us > 1000.0 && round.kernel_us == Some(round.called_us), "{round:?}");
    assert!(round.calls.is_multiple_of(3), "{round:?}");
    assert_eq!(answers[4], Answer::Done);
    assert!(refused(&answers[5]).why.contains("none"));
    assert_eq!(answers[6], Answer::Done);
    assert!(refused(&answers[7]).why.contains("prepare"));
}

#[test]
fn only_the_ways_that_are_asked_for_are_set_up() {
    let hello = r#"{"ask":"hello","protocol":2,"device":"cpu:1","options":{"ways":"other,fast"}}"#;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("x");
    std::fs::write(&file, 1.5f32.to_le_bytes()).unwrap();
    let task = format!(
        r#"{{"ask":"prepare","problem":"double","op":"double","dtype":"f32","dims":{{}},"sets":1,"round_us":1,"warm_s":0,"tensors":[{{"name":"x","dtype":"f32","shape":[1],"role":"in","file":{file:?}}}]}}"#
    );
    let answers = talk(&[hello.into(), task]);
    let Answer::Prepared { ways, .. } = &answers[1] else { panic!("{answers:?}") };
    assert_eq!(ways.iter().map(|w| w.way.as_str()).collect::<Vec<_>>(), ["fast"]);
}

#[test]
fn what_cannot_be_answered_is_refused_and_the_next_is_answered() {
    let answers = talk(&[
        "not json".into(),
        r#"{"ask":"dance"}"#.into(),
        r#"{"ask":"prepare","problem":"p","op":"p","dtype":"f32","dims":{},"tensors":[],"sets":1,"round_us":1,"warm_s":1}"#
            .into(),
        hello("cuda:0"),
        r#"{"ask":"hello","protocol":99,"device":"cpu:1"}"#.into(),
        hello("cpu:1"),
    ]);
    assert_eq!(answers.len(), 6);
    answers[..5].iter().for_each(|a| assert!(!refused(a).why.is_empty()));
    assert_eq!(refused(&answers[3]).fix.as_deref(), Some("buy one"));
    assert!(refused(&answers[4]).why.contains("99"));
    assert!(matches!(&answers[5], Answer::Hello(about) if about.peer == "doubler"));
}

#[test]
fn every_answer_bears_the_number_of_its_request() {
    let mut out = Vec::new();
    let lines = [
        r#"{"id":7,"ask":"release"}"#,
        r#"{"id":18446744073709551615,"ask":"round","way":"w"}"#,
        r#"{"id":9,"ask":"dance"}"#,
        r#"{"ask":"release"}"#,
    ];
    serve_on(Doubler, lines.join("\n").as_bytes(), &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let id = |l: &str| serde_json::from_str::<Numbered<Answer>>(l).unwrap().id;
    assert_eq!(text.lines().map(id).collect::<Vec<_>>(), [7, u64::MAX, 9, 0]);
}
