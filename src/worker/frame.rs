//! Length-prefixed messages: four bytes of length, little-endian, then JSON.

use serde::{Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};

/// The longest message: a rendered source is under a megabyte, samples far less.
pub(super) const MAX_FRAME: usize = 16 << 20;

pub(super) fn send<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    if body.len() > MAX_FRAME {
        return Err(io::Error::other(format!("a message of {} bytes exceeds {MAX_FRAME}", body.len())));
    }
    let mut frame = (body.len() as u32).to_le_bytes().to_vec();
    frame.extend(body);
    to.write_all(&frame)?;
    to.flush()
}

/// The next message; `None` at the end of the stream.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0u8; 4];
    match from.read_exact(&mut length) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::other(format!("a message of {length} bytes exceeds {MAX_FRAME}")));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    serde_json::from_slice(&body).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_and_bad_lengths_are_refused() {
        let mut wire = Vec::new();
        send(&mut wire, &("hello", 7)).unwrap();
        send(&mut wire, &("again", 8)).unwrap();
        let mut from = wire.as_slice();
        assert_eq!(receive::<(String, i32)>(&mut from).unwrap(), Some(("hello".into(), 7)));
        assert_eq!(receive::<(String, i32)>(&mut from).unwrap(), Some(("again".into(), 8)));
        assert_eq!(receive::<(String, i32)>(&mut from).unwrap(), None);
        let huge = u32::MAX.to_le_bytes();
        assert!(receive::<(String, i32)>(&mut huge.as_slice()).is_err());
        let cut = &wire[..wire.len() - 1];
        let mut from = cut;
        receive::<(String, i32)>(&mut from).unwrap();
        assert!(receive::<(String, i32)>(&mut from).is_err());
    }
}
