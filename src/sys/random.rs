//! Random numbers of the kernel.

use std::io;

use nix::errno::Errno;

/// Fills the buffer. Blocks only while the kernel's generator is not yet seeded, early at boot.
pub fn fill(buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        let count = super::retry(|| {
            // SAFETY: `rest` is a live, writable slice and the length passed is its own.
            Errno::result(unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) })
        })?;
        filled += usize::try_from(count).unwrap_or(0);
    }
    Ok(())
}

/// A random UUID (version 4) in lower case.
pub fn uuid_v4() -> io::Result<String> {
    let mut bytes = [0; 16];
    fill(&mut bytes)?;
    Ok(uuid_text(bytes))
}

fn uuid_text(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_version_and_variant() {
        assert_eq!(uuid_text([0; 16]), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid_text([0xff; 16]), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_ne!(uuid_v4().unwrap(), uuid_v4().unwrap());
    }
}
