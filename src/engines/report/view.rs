//! A report as blocks of text and tables, before it is Markdown or a page. Nothing in it is escaped.

use super::source::{self, Said};
use serde::Serialize;

/// A report.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Document {
    /// Its title.
    pub title: String,
    /// What a reader must know before anything else.
    pub notices: Vec<String>,
    /// The figures of the first glance.
    pub score: Vec<Score>,
    /// Its sections.
    pub sections: Vec<Section>,
}

/// A figure of the first glance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The figure.
    pub figure: String,
    /// What it counts.
    pub of: String,
    /// Whether it is bad news.
    pub bad: bool,
}

/// A section.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Section {
    /// Its name within a page.
    pub id: &'static str,
    /// Its title.
    pub title: &'static str,
    /// What stands in it.
    pub blocks: Vec<Block>,
}

/// A part of a section.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Block {
    /// A title within the section.
    Heading {
        /// Its words.
        text: String,
    },
    /// A paragraph, and the lines that it is derived from.
    Text {
        /// Its words.
        text: String,
        /// The lines; empty for words that hold of any run.
        because: String,
    },
    /// Points, and the lines that each is derived from.
    List {
        /// The points.
        items: Vec<(String, String)>,
    },
    /// Commands, one a line.
    Commands {
        /// The commands.
        lines: Vec<String>,
    },
    /// A table.
    Table {
        /// The names of its columns.
        header: Vec<String>,
        /// Its cells.
        rows: Vec<Vec<String>>,
        /// Columns of text, from the first; the rest are numbers.
        left: usize,
    },
}

impl Block {
    /// A title.
    pub fn heading(text: impl Into<String>) -> Block {
        Block::Heading { text: text.into() }
    }

    /// Words that hold of any run.
    pub fn text(text: impl Into<String>) -> Block {
        Block::Text { text: text.into(), because: String::new() }
    }

    /// A sentence with its lines.
    pub fn said(said: &Said) -> Block {
        Block::Text { text: said.text.clone(), because: source::text(&said.because) }
    }

    /// Sentences with their lines.
    pub fn list<'a>(items: impl IntoIterator<Item = &'a Said>) -> Block {
        Block::List { items: items.into_iter().map(|s| (s.text.clone(), source::text(&s.because))).collect() }
    }

    /// A table of which the first `left` columns are text.
    pub fn table(header: &[&str], left: usize, rows: Vec<Vec<String>>) -> Block {
        Block::Table { header: header.iter().map(|h| h.to_string()).collect(), rows, left }
    }
}
