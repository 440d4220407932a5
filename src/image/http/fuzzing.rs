//! Entrance for fuzzing: the answer of a server, from its status line to the end of its content.

use super::*;

/// Reads an answer as a download does.
pub fn answer(input: &[u8]) {
    let limit = Duration::from_secs(60);
    let halt = || false;
    let clock = Clock { stall: limit, total: limit, end: sys::time::now() + limit, halt: &halt };
    let mut wire = Wire::new(Stream::Made(io::Cursor::new(input.to_vec())), clock);
    let Ok(Head { mut framing, range, .. }) = wire.head() else { return };
    assert!(range.is_none_or(|(first, size)| first < size));
    let (mut buffer, mut content) = ([0; 256], 0);
    while let Ok(read @ 1..) = read_framed(&mut wire, &mut framing, &mut buffer) {
        content += read;
    }
    assert!(content <= input.len());
}
