//! Which colour a peer has and which shape an op, the same in every plot of a report.

use super::Rows;
use super::count::OURS;
use super::svg::{COLOURS, SHAPES, Svg};
use serde::Serialize;

/// Peers and ops in the order of their colours and shapes.
pub struct Palette {
    peers: Vec<String>,
    ops: Vec<String>,
}

/// A line of the legend.
#[derive(Serialize)]
pub struct Entry {
    /// What it stands for.
    pub name: String,
    /// Its mark, an SVG element.
    pub svg: String,
}

impl Palette {
    /// Those of a run: jitune first, then as they come.
    pub fn of(rows: &Rows) -> Palette {
        let mut peers = vec![OURS.0.to_string()];
        let mut ops = Vec::new();
        let add = |list: &mut Vec<String>, name: &String| {
            if !list.contains(name) {
                list.push(name.clone());
            }
        };
        rows.rows.iter().for_each(|r| add(&mut peers, &r.peer));
        rows.problems.iter().for_each(|p| add(&mut ops, &p.op));
        Palette { peers, ops }
    }

    /// Those of peers by name, the first in jitune's colour, without ops.
    pub fn named(peers: Vec<String>) -> Palette {
        Palette { peers, ops: Vec::new() }
    }

    /// The colour of a peer. Beyond the last of them colours come again; every mark has its name as a tooltip.
    pub fn peer(&self, name: &str) -> usize {
        let at = self.peers.iter().position(|p| p == name).unwrap_or(0);
        if at < COLOURS { at } else { 1 + (at - 1) % (COLOURS - 1) }
    }

    /// The shape of an op.
    pub fn op(&self, name: &str) -> usize {
        self.ops.iter().position(|o| o == name).unwrap_or(0) % SHAPES
    }

    /// The legend: peers by colour, ops by shape.
    pub fn legend(&self) -> (Vec<Entry>, Vec<Entry>) {
        let entry = |name: &String, op, class: &str| {
            let mut svg = Svg::new(14.0, 14.0, name);
            svg.mark(op, (7.0, 7.0), 5.0, class, "");
            Entry { name: name.clone(), svg: svg.finish() }
        };
        let peers = self.peers.iter().map(|p| entry(p, 0, &format!("mark c{}", self.peer(p))));
        let ops = self.ops.iter().map(|o| entry(o, self.op(o), "mark plain"));
        (peers.collect(), ops.collect())
    }
}
