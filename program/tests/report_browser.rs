//! `report.html` in a real browser, at the size of a phone and of a desk: nothing is wider than the window, every plot is
//! drawn, its text can be read, and the console is empty.
#![cfg(target_os = "linux")]

mod common;

use common::Place;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Put before everything else: what goes wrong is kept.
const BEFORE: &str = "<script>window.wrong = []; addEventListener('error', e => wrong.push(String(e.message)), true);
for (const kind of ['error', 'warn']) console[kind] = (...all) => wrong.push(all.join(' '));</script>";

/// Put after everything else: what the browser made of the page, told to the page around it.
const AFTER: &str = "<script>addEventListener('load', () => {
const root = document.documentElement, seen = e => e.getClientRects().length > 0;
const plots = [...document.querySelectorAll('svg')].filter(seen);
const sizes = plots.flatMap(p => [...p.querySelectorAll('text')]
  .map(t => parseFloat(getComputedStyle(t).fontSize) * p.getScreenCTM().a));
const words = plots.flatMap(p => [...p.querySelectorAll('text')].filter(t => {
  const own = t.getBoundingClientRect(), all = p.getBoundingClientRect();
  return own.left < all.left - 1 || own.right > all.right + 1;
}));
// What is wider than the page scrolls in a box of its own.
const wide = [...document.querySelectorAll('table')].filter(t => seen(t) && t.scrollWidth > innerWidth);
const loose = wide.filter(t => {
  for (let box = t; box && box !== document.body; box = box.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(box).overflowX)) return box.getBoundingClientRect().right > innerWidth + 1;
  return true;
});
const empty = plots.filter(p => !p.querySelector('path, rect, circle, line, polyline, polygon'));
parent.postMessage(['found', innerWidth, root.scrollWidth, plots.length, plots.filter(p => p.clientHeight < 10).length,
  Math.min(...sizes).toFixed(1), words.length, wide.length, loose.length, empty.length,
  wrong.length ? wrong.join('; ') : 'none'].join('|'), '*');
});</script>";

/// The page around it. A browser's window has a least width that is more than a phone's; a frame has none.
fn around(width: u32, height: u32) -> String {
    format!(
        "<!DOCTYPE html><script>addEventListener('message', e => document.documentElement.dataset.found = e.data);</script>
        <iframe src=\"probe.html\" style=\"width: {width}px; height: {height}px; border: 0\"></iframe>"
    )
}

fn browser() -> Option<String> {
    let named = std::env::var("JITUNE_BROWSER").ok();
    let known = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"].map(String::from);
    let works = |name: &String| {
        let out = Command::new(name).arg("--version").stdin(Stdio::null()).output();
        out.is_ok_and(|o| o.status.success())
    };
    named.into_iter().chain(known).find(works)
}

/// The page as the browser has it after loading, and what it logged. A browser that hangs is ended.
fn open(browser: &str, place: &Place, page: &Path, (width, height): (u32, u32)) -> (String, String) {
    let [dom, log] = ["dom", "log"].map(|name| place.path().join(format!("{name}-{width}")));
    let profile = place.path().join(format!("profile-{width}-{}", page.file_stem().unwrap().display()));
    let mut child = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"])
        .args(["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"])
        .args(["--enable-logging=stderr", "--dump-dom", "--virtual-time-budget=10000"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--window-size={},{}", width + 100, height + 100))
        .arg(format!("file://{}", page.display()))
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&dom).unwrap())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the browser did not end: {}", std::fs::read_to_string(&log).unwrap());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let text = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    assert!(status.success(), "{}", text(&log));
    (text(&dom), text(&log))
}

/// Renders a fixture's report and holds what the browser found against what must be.
fn check(browser: &str, fixture: &str, least_plots: usize) {
    let place = Place::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(fixture);
    let out = place.jitune(&["report", "--from", from.to_str().unwrap(), "-o", "out"]).output().unwrap();
    assert!(out.status.success(), "{}", common::text(&out));
    let html = std::fs::read_to_string(place.path().join("out/report.html")).unwrap();
    let probed =
        html.replacen("<head>", &format!("<head>{BEFORE}"), 1).replacen("</body>", &format!("{AFTER}</body>"), 1);
    place.file("probe.html", &probed);
    for size in [(390, 844), (1280, 900)] {
        let page = place.file(&format!("around-{}.html", size.0), &around(size.0, size.1));
        let (dom, log) = open(browser, &place, &page, size);
        let what = format!("{fixture} at {}×{}", size.0, size.1);
        let found = dom.split("data-found=\"").nth(1).and_then(|rest| rest.split('"').next());
        let found: Vec<&str> = found.unwrap_or_else(|| panic!("{what}: no probe ran: {log}")).split('|').collect();
        let [_, inner, scroll, plots, flat, smallest, outside, wide, loose, empty, wrong] = found[..] else {
            panic!("{what}: {found:?}")
        };
        assert_eq!(inner, size.0.to_string(), "{what}: the window has another size");
        assert_eq!(wrong, "none", "{what}: errors");
        assert!(!log.contains(":CONSOLE"), "{what}: the console is not empty: {log}");
        assert!(scroll.parse::<u32>().unwrap() <= size.0, "{what}: the page is {scroll} wide");
        assert!(plots.parse::<usize>().unwrap() >= least_plots, "{what}: {plots} plots are shown");
        assert_eq!(flat, "0", "{what}: plots without height");
        assert!(smallest.parse::<f64>().unwrap() >= 11.9, "{what}: text of {smallest} pixels");
        assert_eq!(outside, "0", "{what}: words of plots that are cut off");
        assert_eq!(empty, "0", "{what}: plots of nothing");
        assert_eq!(loose, "0", "{what}: of {wide} wide tables some are in no box of their own that scrolls");
        assert!(size.0 > 500 || wide != "0", "{what}: no table is wider than a phone, so that nothing was tried");
    }
}

/// A browser; none where there is none, which CI must have.
fn needed() -> Option<String> {
    let found = browser();
    if found.is_none() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "no browser here; apt-get install -y chromium");
        eprintln!("SKIPPED: no browser here; apt-get install -y chromium");
    }
    found
}

#[test]
fn reports_fit_a_phone_and_a_desk() {
    let Some(browser) = needed() else { return };
    // The legend's marks, the roofline, the hardware, and the cards of bars and trials.
    check(&browser, "report/rows.jsonl", 40);
    check(&browser, "report/cut.jsonl", 5);
}

#[test]
fn reports_of_engines_fit_a_phone_and_a_desk() {
    let Some(browser) = needed() else { return };
    // Curves, percentiles, requests, throughput, costs, the hardware.
    check(&browser, "engines_report/engines.jsonl", 20);
}
