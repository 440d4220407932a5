//! The parsers of the daemon without the daemon: modules of its sources under the paths by which
//! they know each other, and nothing that needs gRPC.

#![allow(dead_code)]

#[path = "../../src/model/mod.rs"]
pub mod model;
#[path = "../../src/ports.rs"]
pub mod ports;
#[path = "../../src/document/mod.rs"]
pub mod document;
#[path = "../../src/calendar.rs"]
pub mod calendar;
#[path = "../../src/image/mod.rs"]
pub mod image;
#[path = "../../src/network/mod.rs"]
pub mod network;
#[path = "../../src/sys/mod.rs"]
pub mod sys;

pub mod cm;

pub mod rpc {
    /// As the daemon parses messages.
    pub fn parse<M: protobuf::Message>(message: &[u8]) -> protobuf::Result<M> {
        let mut stream = protobuf::CodedInputStream::from_bytes(message);
        stream.push_limit(message.len() as u64)?;
        let mut parsed = M::new();
        parsed.merge_from(&mut stream)?;
        Ok(parsed)
    }
}
