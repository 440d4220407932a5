//! What one generation of the CM protocol has to translate. Pure, runs on cm-rx and cm-tx.
//!
//! A dialect turns the bytes of one message into a command and a report into bytes; it knows the
//! tolerance rules, state strings and limits of its generation. It keeps no state and sends
//! nothing: the first report of a session, which registers the node, comes from core.

use std::fmt;

use crate::model::command::CmCommand;
use crate::model::status::{CmReport, NodeMonitoring};

/// A message that cannot be translated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("malformed message of {size_bytes} bytes")]
    Malformed {
        size_bytes: usize,
        #[source]
        source: protobuf::Error,
    },
    #[error("{kind} of {size_bytes} bytes is larger than the peer accepts")]
    TooLarge { kind: &'static str, size_bytes: usize },
}

/// One generation of the protocol.
pub trait Dialect: Send + Sync + fmt::Debug {
    /// gRPC path of the stream in both directions.
    fn path(&self) -> &'static str;
    /// `None` = a message that asks nothing of a service manager, or a kind from the future.
    fn decode(&self, message: &[u8]) -> Result<Option<CmCommand>, Error>;
    /// Never longer than the peer's receive limit; long texts are cut.
    fn encode(&self, report: CmReport) -> Result<Vec<u8>, Error>;
    /// `InstantMonitoring`; the sample stays with the caller, who has it filled again.
    fn encode_instant(&self, sample: &NodeMonitoring) -> Result<Vec<u8>, Error>;
}

/// The text, cut at a character boundary to at most `limit` bytes.
pub fn cut(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let mut end = limit;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn texts_are_cut_between_characters() {
        let check = |text: &str, limit: usize, expect: &str| {
            assert_eq!(cut(text.to_owned(), limit), expect);
        };
        check("abc", 3, "abc");
        check("abc", 2, "ab");
        check("aé", 2, "a");
        check("aé", 3, "aé");
        check("日本", 5, "日");
        check("日本", 2, "");
    }
}
