//! Text to token ids and back: the `tokenizer.json` of a folder or the metadata of a GGUF file, and the model's chat template.

mod chat;
mod gguf;
mod vocabulary;

pub use chat::Message;
pub use vocabulary::Vocabulary;

use crate::backend::mapped::Mapped;
use crate::file;
use crate::gguf::Header;
use crate::limits::MAX_MODEL_TEXT_BYTES;
use chat::Template;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why text cannot be read or written as tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{path}: {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A text that cannot be encoded, or ids that cannot be decoded.
    #[error("tokenizer: {0}")]
    Tokens(String),
    /// A model without a chat template.
    #[error("the model has no chat template; --raw takes the prompt as it is")]
    NoTemplate,
    /// A chat template that refuses the messages, or is wrong.
    #[error("the model's chat template: {0}")]
    Template(String),
    /// A chat template that takes too much time or memory.
    #[error(
        "the model's chat template takes more time or memory for this chat than any should; ask with fewer or shorter \
         messages, or check the template"
    )]
    TemplateTooLong,
}

/// A model's tokenizer.
pub struct Tokenizer {
    tokens: tokenizers::Tokenizer,
    /// Put before what is encoded, where the tokenizer itself does not.
    first: Option<u32>,
    template: Option<Template>,
}

impl Tokenizer {
    /// The tokenizer of a folder, or of a GGUF file.
    pub fn open(path: &Path) -> Result<Tokenizer, TokenizerError> {
        if path.is_dir() {
            return Tokenizer::of_folder(path);
        }
        let bytes = Mapped::open(path).map_err(|source| TokenizerError::Io { path: path.into(), source })?;
        let bad = |why: String| TokenizerError::File { path: path.into(), why };
        let header = Header::read(&bytes).map_err(|e| bad(e.to_string()))?;
        let tokens = gguf::tokenizer(&header, &bytes).map_err(bad)?;
        let first = header.flag("tokenizer.ggml.add_bos_token").map_err(bad)?;
        // Files with pieces of SentencePiece that do not say are older than the key.
        let first = first.unwrap_or(header.text("tokenizer.ggml.model").map_err(bad)? == Some("llama"));
        let id = |key: &str| header.int(key).map_err(bad).map(|id| id.and_then(|id| u32::try_from(id).ok()));
        let ids = [id("tokenizer.ggml.bos_token_id")?, id("tokenizer.ggml.eos_token_id")?];
        let special = ids.map(|id| id.and_then(|id| tokens.id_to_token(id)).unwrap_or_default());
        let first = ids[0].filter(|_| first);
        let template = header.text("tokenizer.chat_template").map_err(bad)?.map(|text| Template::new(text, special));
        Ok(Tokenizer { tokens, first, template })
    }

    fn of_folder(folder: &Path) -> Result<Tokenizer, TokenizerError> {
        let file = folder.join("tokenizer.json");
        let text = file::text(&file, MAX_MODEL_TEXT_BYTES)
            .map_err(|source| TokenizerError::Io { path: file.clone(), source })?;
        let bad = |e: tokenizers::Error| TokenizerError::File { path: file.clone(), why: e.to_string() };
        let tokens = tokenizers::Tokenizer::from_bytes(text.as_bytes()).map_err(bad)?;
        Ok(Tokenizer { tokens, first: None, template: chat::of_folder(folder)? })
    }

    /// The ids of a text. Special tokens in it are read as such; with `begin` the tokenizer puts those around it that begin a
    /// text, as a prompt that no template made needs.
    pub fn encode(&self, text: &str, begin: bool) -> Result<Vec<i32>, TokenizerError> {
        let encoded = self.tokens.encode(text, begin).map_err(|e| TokenizerError::Tokens(e.to_string()))?;
        let first = self.first.filter(|first| begin && encoded.get_ids().first() != Some(first));
        Ok(first.iter().chain(encoded.get_ids()).map(|id| *id as i32).collect())
    }

    /// The text of ids, without special tokens.
    pub fn decode(&self, ids: &[i32]) -> Result<String, TokenizerError> {
        let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
        self.tokens.decode(&ids, true).map_err(|e| TokenizerError::Tokens(e.to_string()))
    }

    /// The text of one token as it is, special or not; of a part of a character, the sign that stands for what is none.
    pub fn token(&self, id: i32) -> Result<String, TokenizerError> {
        self.tokens.decode(&[id as u32], false).map_err(|e| TokenizerError::Tokens(e.to_string()))
    }

    /// The bytes of one token's text; of a part of a character those that it is.
    pub fn bytes(&self, id: i32) -> Result<Vec<u8>, TokenizerError> {
        let text = self.token(id)?;
        let name = if text.contains('\u{fffd}') { self.tokens.id_to_token(id as u32) } else { None };
        Ok(name.and_then(|name| gguf::bytes_of(&name)).unwrap_or_else(|| text.into_bytes()))
    }

    /// The most bytes of text that one token stands for, or more: texts of so many times as many bytes have more tokens.
    pub fn longest(&self) -> usize {
        self.tokens.get_vocab(true).keys().map(String::len).max().unwrap_or(1)
    }

    /// The text that a chat's messages are to the model, up to where its answer begins.
    pub fn chat(&self, messages: &[Message]) -> Result<String, TokenizerError> {
        self.template.as_ref().ok_or(TokenizerError::NoTemplate)?.render(messages)
    }
}

/// Tokens that a character may take, and then some: whatever is not whole after as many is said as it is.
const PENDING: usize = 16;

/// Text as it comes, token by token.
pub struct Stream {
    tokenizer: Arc<Tokenizer>,
    /// The last tokens; those before have been said and are of no more use.
    ids: Vec<i32>,
    /// How many of them are said. What they say went into deciding what the next ones do.
    said: usize,
}

impl Stream {
    /// A text that begins.
    pub fn new(tokenizer: &Arc<Tokenizer>) -> Stream {
        Stream { tokenizer: Arc::clone(tokenizer), ids: Vec::new(), said: 0 }
    }

    /// The text of one token by itself.
    #[cfg(feature = "serve")]
    pub(crate) fn own(&self, id: i32) -> Result<String, TokenizerError> {
        self.tokenizer.token(id)
    }

    /// What is known of the text with one more token: nothing as long as a character is not complete. A token's text depends on
    /// what stands before it, so it is what the tokens since the last whole piece add.
    pub fn push(&mut self, id: i32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let before = self.tokenizer.decode(&self.ids[..self.said])?;
        let now = self.tokenizer.decode(&self.ids)?;
        let long = self.ids.len() - self.said > PENDING;
        match now.strip_prefix(&before) {
            Some(new) if !new.is_empty() && (long || !new.ends_with('\u{fffd}')) => {
                let new = new.to_string();
                self.ids.drain(..self.said);
                self.said = self.ids.len();
                Ok(new)
            }
            // Tokens without a text, such as special ones, or such that are no text at all.
            _ if long => {
                self.ids.drain(..self.said);
                self.said = self.ids.len();
                Ok(String::new())
            }
            _ => Ok(String::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_alone() -> Arc<Tokenizer> {
        // Every byte is a token of its own, as byte-level tokenizers name them; then a token that begins texts.
        let names = gguf::byte_names();
        let vocab: serde_json::Map<String, serde_json::Value> =
            names.iter().enumerate().map(|(byte, name)| (name.to_string(), byte.into())).collect();
        let begin = [(256, "<begin>".to_string())];
        let json = gguf::json(vocab, &[], &begin, "gpt-2").unwrap();
        let tokens = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
        Arc::new(Tokenizer { tokens, first: Some(256), template: None })
    }

    #[test]
    fn a_stream_says_whole_characters() {
        let tokenizer = bytes_alone();
        let text = "naïve 猫 🦀, é";
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(ids.len(), text.len());
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        let mut stream = Stream::new(&tokenizer);
        let pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().all(|p| !p.contains('\u{fffd}') && p.chars().count() <= 1), "{pieces:?}");
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.bytes(*id).unwrap()).collect();
        assert_eq!(bytes, text.as_bytes());
        assert_eq!(gguf::bytes_of("<0xE2>"), Some(vec![0xe2]));
        assert_eq!(gguf::bytes_of("<0xE2"), Some(b"<0xE2".to_vec()));
        assert_eq!(gguf::bytes_of("猫"), None);
    }

    #[test]
    fn what_never_becomes_text_is_not_kept() {
        let mut stream = Stream::new(&bytes_alone());
        // Tokens without a text, then bytes that are no text.
        assert!((0..1000).all(|_| stream.push(256).unwrap().is_empty() && stream.ids.len() < 3 * PENDING));
        let pieces: Vec<String> = (0..1000).map(|_| stream.push(0xff).unwrap()).collect();
        assert!(
            pieces.concat().chars().count() > 1000 - 3 * PENDING && pieces.concat().chars().all(|c| c == '\u{fffd}')
        );
        assert!(stream.ids.len() < 3 * PENDING);
        assert_eq!((97..=99).map(|id| stream.push(id).unwrap()).collect::<String>().trim_matches('\u{fffd}'), "abc");
    }

    #[test]
    fn a_text_begins_once() {
        let tokenizer = bytes_alone();
        assert_eq!(tokenizer.encode("a", true).unwrap(), [256, 97]);
        assert_eq!(tokenizer.encode("a", false).unwrap(), [97]);
        assert_eq!(tokenizer.encode("<begin>a", true).unwrap(), [256, 97], "and not twice");
        assert_eq!(tokenizer.decode(&[256, 97]).unwrap(), "a");
    }
}
