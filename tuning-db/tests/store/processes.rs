//! Several processes: the lock, `kill -9`, a full disk. The test program starts
//! itself as the child (`child`, told what to do by an environment variable).

use crate::{Rng, answers, key, open, open_read_only, winner};
use jitune_db::{Db, Error, OpenOptions};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const ROLE: &str = "JITUNE_DB_TEST_CHILD";

/// The child's program: a no-op when the test suite runs it.
#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut words = role.split('|');
    let (what, dir) = (words.next().unwrap(), words.next().unwrap());
    let first: u64 = words.next().unwrap().parse().unwrap();
    let say = |text: String| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\nSAY {text}").unwrap();
        out.flush().unwrap();
    };
    let db = Db::open(dir, OpenOptions { wait: Duration::from_secs(20), read_only: false, ..OpenOptions::default() })
        .unwrap();
    say("open".into());
    match what {
        "hold" => {
            std::thread::sleep(Duration::from_millis(first));
            drop(db);
            say("closed".into());
        }
        "write" => {
            for n in first.. {
                let hash = db.put_artifact(&n.to_le_bytes()).unwrap();
                db.put_trial(&crate::trial(n, "t", n)).unwrap();
                let mut record = winner(n, n);
                record.body["artifact"] = hash.to_string().into();
                db.put_winner(&record).unwrap();
                say(format!("ack {n}"));
            }
        }
        "fill" => {
            for n in first.. {
                let mut record = winner(n, n);
                record.body = "x".repeat(3000).into();
                match db.put_winner(&record) {
                    Ok(_) => say(format!("ack {n}")),
                    Err(error) => {
                        say(format!("error {error}"));
                        // Every record fits no more, and every look-up goes on.
                        assert!(matches!(error, Error::Append { rolled_back: true, .. }), "{error:?}");
                        assert!(matches!(db.put_winner(&record), Err(Error::Append { .. })));
                        for m in first..n {
                            assert_eq!(db.winner(&key(m)).unwrap().unwrap().at, m);
                        }
                        drop(db);
                        say("closed".into());
                        return;
                    }
                }
            }
        }
        "sync" => {
            // The test's library makes the next sync of a path with this end fail once the file is there.
            let fail = |end: &str| fs::write(Path::new(dir).with_extension("fail"), end).unwrap();
            let failed = || !Path::new(dir).with_extension("fail").exists();
            db.put_winner(&winner(1, 1)).unwrap();
            db.put_artifact(b"one").unwrap();
            fail(["journal.jsonl", "", "journal.jsonl", "journal.jsonl", "db4"][first as usize]);
            match first {
                0 => assert!(db.put_winner(&winner(2, 2)).is_err()),
                1 => assert!(db.put_artifact(b"two").is_err()),
                2 => {
                    db.put_trial(&crate::trial(2, "t", 2)).unwrap();
                    assert!(db.sync().is_err());
                }
                3 => {
                    db.put_winner(&winner(1, 1)).unwrap();
                    db.put_winner(&winner(1, 2)).unwrap_err();
                }
                _ => {
                    db.put_trial(&crate::trial(1, "t", 1)).unwrap();
                    db.put_trial(&crate::trial(1, "t", 2)).unwrap();
                    // The shorter journal has the name, and only that is not durable.
                    assert!(db.gc(Default::default()).is_err());
                }
            }
            assert!(failed(), "a sync was asked for");
            let no = |e: Error| assert!(matches!(e, Error::SyncFailed { .. }), "{e:?}");
            no(db.put_winner(&winner(3, 3)).unwrap_err());
            no(db.put_trial(&crate::trial(3, "t", 3)).unwrap_err());
            no(db.put_artifact(b"one").unwrap_err());
            no(db.sync().unwrap_err());
            no(db.gc(Default::default()).unwrap_err());
            no(db.merge(&b""[..]).unwrap_err());
            // Look-ups go on.
            assert_eq!(db.winner(&key(1)).unwrap().unwrap().at, 1);
            no(db.close().unwrap_err());
            say("refused".into());
            let db = Db::open(dir, OpenOptions::default()).unwrap();
            assert_eq!(db.winner(&key(3)).unwrap(), None);
            db.put_winner(&winner(3, 3)).unwrap();
            db.put_artifact(b"two").unwrap();
            assert!(db.verify().unwrap().is_clean());
            say("goes on".into());
        }
        other => panic!("{other}"),
    }
}

/// Fails one sync when told to, as a disk does that loses a page.
const FAILING: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static int sync_or_fail(int fd, const char* name) {
  const char* flag = getenv("FAIL_SYNC");
  char link[64], path[4096] = "", end[64] = "";
  FILE* file = flag ? fopen(flag, "r") : NULL;
  if (file) {
    if (!fgets(end, sizeof end, file)) end[0] = 0;
    fclose(file);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) < 0) path[0] = 0;
    size_t p = strlen(path), e = strlen(end);
    if (p >= e && strcmp(path + p - e, end) == 0 && unlink(flag) == 0) { errno = EIO; return -1; }
  }
  return ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
}
int fsync(int fd) { return sync_or_fail(fd, "fsync"); }
int fdatasync(int fd) { return sync_or_fail(fd, "fdatasync"); }
"#;

#[test]
fn after_a_failed_sync_nothing_is_written_until_it_is_opened_again() {
    let temp = tempfile::tempdir().unwrap();
    let (source, library) = (temp.path().join("failing.c"), temp.path().join("failing.so"));
    fs::write(&source, FAILING).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").status();
    assert!(built.expect("a C compiler").success());
    for case in 0..5 {
        let dir = temp.path().join(format!("db{case}"));
        let flag = dir.with_extension("fail");
        let setup = format!("export FAIL_SYNC='{}' LD_PRELOAD='{}';", flag.display(), library.display());
        let mut child = spawn("sync", &dir, case, &setup);
        let lines: Vec<String> = said(&mut child).collect();
        assert!(child.wait().unwrap().success(), "{case}: {lines:?}");
        assert_eq!(lines, ["open", "refused", "goes on"], "{case}");
    }
}

/// Starts the child through `sh -c`, after `setup` (a shell command).
fn spawn(what: &str, dir: &Path, n: u64, setup: &str) -> Child {
    let program = std::env::current_exe().unwrap();
    Command::new("sh")
        .arg("-c")
        .arg(format!("{setup} exec \"$0\" \"$@\""))
        .arg(program)
        .args(["--exact", "processes::child", "--nocapture", "--test-threads=1"])
        .env(ROLE, format!("{what}|{}|{n}", dir.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What the child says until its output ends.
fn said(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("SAY ").map(str::to_owned))
}

#[test]
fn a_second_process_waits_then_says_who_holds_it() {
    let temp = tempfile::tempdir().unwrap();
    let mut child = spawn("hold", temp.path(), 60_000, "");
    let pid = child.id();
    assert_eq!(said(&mut child).next().unwrap(), "open");
    let started = Instant::now();
    let wait = Duration::from_millis(300);
    match Db::open(temp.path(), OpenOptions { wait, read_only: false, ..OpenOptions::default() }) {
        Err(error @ Error::Locked { .. }) => {
            let text = error.to_string();
            let Error::Locked { holder, waited, .. } = error else { unreachable!() };
            assert!(waited >= wait && started.elapsed() < Duration::from_secs(10), "{waited:?}");
            assert_eq!(holder.pid, pid);
            assert!(!holder.host.is_empty() && holder.since > 0);
            assert!(text.contains(&format!("process {pid}")), "{text}");
        }
        other => panic!("{other:?}"),
    }
    // Looking needs no lock.
    assert_eq!(answers(&open_read_only(temp.path())), "");
    // A killed holder lets go at once.
    child.kill().unwrap();
    child.wait().unwrap();
    drop(open(temp.path()));
}

#[test]
fn a_second_process_that_waits_long_enough_gets_in() {
    let temp = tempfile::tempdir().unwrap();
    let mut child = spawn("hold", temp.path(), 400, "");
    let mut lines = said(&mut child);
    assert_eq!(lines.next().unwrap(), "open");
    let wait = Duration::from_secs(30);
    let db = Db::open(temp.path(), OpenOptions { wait, read_only: false, ..OpenOptions::default() }).expect("gets in");
    db.put_winner(&winner(1, 1)).unwrap();
    assert_eq!(lines.next().unwrap(), "closed");
    child.wait().unwrap();
}

#[test]
fn two_handles_in_one_process_exclude_each_other_too() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    let second =
        Db::open(temp.path(), OpenOptions { wait: Duration::ZERO, read_only: false, ..OpenOptions::default() });
    match second {
        Err(Error::Locked { holder, .. }) => assert_eq!(holder.pid, std::process::id()),
        other => panic!("{other:?}"),
    }
    drop(db);
    drop(open(temp.path()));
}

#[test]
fn two_writers_at_once_lose_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let mut children: Vec<_> = (0..4)
        .map(|i| {
            std::thread::spawn({
                let dir = temp.path().to_path_buf();
                move || {
                    let wait = Duration::from_secs(60);
                    for n in 0..5 {
                        let db =
                            Db::open(&dir, OpenOptions { wait, read_only: false, ..OpenOptions::default() }).unwrap();
                        db.put_winner(&winner(i * 100 + n, 1)).unwrap();
                    }
                }
            })
        })
        .collect();
    children.drain(..).for_each(|c| c.join().unwrap());
    let db = open(temp.path());
    for (i, n) in (0..4).flat_map(|i| (0..5).map(move |n| (i, n))) {
        assert!(db.winner(&key(i * 100 + n)).unwrap().is_some(), "{i} {n}");
    }
}

/// Kills at random moments: in every other round anywhere from the start of the
/// process on (opening, rebuilding the index), else anywhere after it has opened,
/// between any two steps of a write. `JITUNE_DB_KILLS` sets how often.
#[test]
fn kill_9_at_200_random_moments_loses_no_acknowledged_winner() {
    let kills: usize = std::env::var("JITUNE_DB_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let mut rng = Rng(std::process::id().into());
    let mut next = 0;
    let mut acknowledged = Vec::new();
    let (mut torn, mut before_open, mut start) = (0, 0, Duration::from_millis(50));
    for round in 0..kills {
        let mut child = spawn("write", dir, next, "");
        let started = Instant::now();
        let mut lines = said(&mut child);
        let (tell, opened) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let first = lines.next();
            let _ = tell.send(());
            first.into_iter().chain(lines).collect::<Vec<_>>()
        });
        if round % 2 == 0 {
            opened.recv_timeout(Duration::from_secs(60)).unwrap();
            start = started.elapsed();
            std::thread::sleep(Duration::from_micros(rng.below(20_000)));
        } else {
            std::thread::sleep(start.mul_f64(rng.below(1200) as f64 / 1000.0));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let lines = reader.join().unwrap();
        before_open += usize::from(lines.is_empty());
        let acks = lines.iter().filter_map(|l| l.strip_prefix("ack ")?.parse::<u64>().ok());
        acknowledged.extend(acks);
        next = acknowledged.last().map_or(0, |n| n + 1);
        if !dir.join("journal.jsonl").exists() {
            assert!(acknowledged.is_empty());
            continue;
        }
        // Every fifth time the parent opens it to write, else the next child does.
        let db = if rng.below(5) == 0 { open(dir) } else { open_read_only(dir) };
        torn += db.report().bad_lines.len();
        assert!(db.report().bad_lines.iter().all(|b| b.torn), "{:?}", db.report());
        for n in acknowledged.iter().rev().take(100) {
            check_winner(&db, *n);
        }
    }
    let db = open(dir);
    for n in &acknowledged {
        check_winner(&db, *n);
    }
    assert!(db.verify().unwrap().is_clean());
    assert!(acknowledged.len() > kills / 2, "too few writes to mean anything: {}", acknowledged.len());
    println!("{kills} kills, {before_open} before open, {} acknowledged, {torn} torn tails", acknowledged.len());
}

fn check_winner(db: &Db, n: u64) {
    let record = db.winner(&key(n)).unwrap().unwrap_or_else(|| panic!("winner {n} is lost"));
    let hash = record.body["artifact"].as_str().unwrap().parse().unwrap();
    assert_eq!(db.artifact(&hash).unwrap().as_deref(), Some(&n.to_le_bytes()[..]));
    assert!(db.trial(&key(n), "t").unwrap().is_some(), "a kill does not take trials either");
}

/// A file size limit stands in for a full disk: the write that crosses it is cut
/// short by the kernel, exactly as on a full disk, and the next one fails.
#[test]
fn a_full_disk_is_said_and_loses_nothing() {
    for blocks in [2100u64, 64] {
        let temp = tempfile::tempdir().unwrap();
        // In sh, a unit is 512 bytes. Ignored, the signal leaves an error instead.
        let setup = format!("trap '' XFSZ; ulimit -f {blocks};");
        let mut child = spawn("fill", temp.path(), 0, &setup);
        let lines: Vec<String> = said(&mut child).collect();
        assert!(child.wait().unwrap().success(), "{lines:?}");
        let acks = lines.iter().filter(|l| l.starts_with("ack ")).count() as u64;
        assert!(acks > 5, "{lines:?}");
        let error = lines.iter().find(|l| l.starts_with("error ")).unwrap();
        assert!(error.contains("journal.jsonl") && error.contains("free space"), "{error}");
        assert_eq!(lines.last().unwrap(), "closed");
        let journal = fs::read(temp.path().join("journal.jsonl")).unwrap();
        assert_eq!(journal.last(), Some(&b'\n'), "the half line was cut off");
        let db = open(temp.path());
        assert!(db.report().bad_lines.is_empty());
        for n in 0..acks {
            assert_eq!(db.winner(&key(n)).unwrap().unwrap().at, n);
        }
        assert_eq!(db.stats().unwrap().winners, acks);
        db.put_winner(&winner(acks, 1)).unwrap();
    }
}
