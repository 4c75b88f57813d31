//! Server-sent events, read as they come, wherever they are cut.

use jitune_peer::engine::MAX_LINE;

/// The `data` of events; what else events have, and comments, is passed over.
#[derive(Default)]
pub(super) struct Events {
    /// A line whose end has not come.
    line: Vec<u8>,
    /// The lines of data of an event whose end has not come.
    data: Option<Vec<u8>>,
    /// The last byte was a carriage return: a line feed after it ends no other line.
    returned: bool,
}

impl Events {
    /// Takes the next bytes; gives each event that is whole to `event`, whose error ends it.
    pub fn push(&mut self, mut bytes: &[u8], mut event: impl FnMut(&str) -> Result<(), String>) -> Result<(), String> {
        while let Some((&first, rest)) = bytes.split_first() {
            if std::mem::take(&mut self.returned) && first == b'\n' {
                bytes = rest;
                continue;
            }
            let end = bytes.iter().position(|b| matches!(b, b'\n' | b'\r'));
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if self.line.len() + self.data.as_ref().map_or(0, Vec::len) + part.len() > MAX_LINE {
                return Err(format!("an event of over {MAX_LINE} bytes"));
            }
            self.line.extend_from_slice(part);
            let Some(end) = end else { return Ok(()) };
            self.returned = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if let Some(data) = self.end_line() {
                text(&data).and_then(&mut event)?;
            }
        }
        Ok(())
    }

    /// Nothing more comes. An event is given that only lacks the empty line behind it, since some servers leave that out.
    pub fn end(mut self, mut event: impl FnMut(&str) -> Result<(), String>) -> Result<(), String> {
        self.end_line();
        match self.data {
            Some(data) => text(&data).and_then(&mut event),
            None => Ok(()),
        }
    }

    /// The event that is whole by the end of the line.
    fn end_line(&mut self) -> Option<Vec<u8>> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return self.data.take();
        }
        let (name, value) = match line.iter().position(|b| *b == b':') {
            Some(colon) => (&line[..colon], &line[colon + 1..]),
            None => (&line[..], &line[line.len()..]),
        };
        // A text may begin with a byte order mark.
        if name.strip_prefix("\u{feff}".as_bytes()).unwrap_or(name) == b"data" {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            }
        }
        None
    }
}

fn text(data: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(data).map_err(|e| format!("an event is no UTF-8: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], size: usize) -> Result<Vec<String>, String> {
        let (mut events, mut list) = (Events::default(), Vec::new());
        for part in text.chunks(size) {
            events.push(part, |e| {
                list.push(e.to_owned());
                Ok(())
            })?;
        }
        events.end(|e| {
            list.push(e.to_owned());
            Ok(())
        })?;
        Ok(list)
    }

    #[test]
    fn events_are_the_same_wherever_they_are_cut() {
        let text = "\u{feff}data: {\"a\":\r\ndata:  1}\r\n\r\n: a comment\n\ndata:é\rdata\r\revent: x\nid: 7\ndata: y\n\n\n\ndata: [DONE]";
        let all = ["{\"a\":\n 1}", "é\n", "y", "[DONE]"];
        for size in 1..text.len() + 1 {
            assert_eq!(read(text.as_bytes(), size).unwrap(), all, "{size}");
        }
    }

    #[test]
    fn what_has_no_end_is_refused_before_it_fills_the_memory() {
        let long = vec![b'x'; MAX_LINE + 1];
        let why = read(&[b"data: ", &long[..]].concat(), 1 << 16).unwrap_err();
        assert!(why.contains("over 4194304 bytes"), "{why}");
        // Many lines of one event are as long.
        let lines = b"data: 123456789\n".repeat(MAX_LINE / 9);
        assert!(read(&lines, 1 << 16).is_err());
        assert!(read(b"data: \xff\n\n", 100).unwrap_err().contains("no UTF-8"));
    }
}
