//! Archives made bit by bit, right or wrong.

const BLOCK: usize = 512;

/// A member, bit by bit.
pub(super) struct Raw {
    header: [u8; BLOCK],
    content: Vec<u8>,
}

impl Raw {
    pub(super) fn new(name: &[u8], kind: u8, content: &[u8]) -> Self {
        let mut header = [0; BLOCK];
        header[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000001");
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        Self { header, content: content.to_vec() }
    }

    pub(super) fn at(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.header[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(super) fn link(self, target: &[u8]) -> Self {
        self.at(157, target)
    }

    pub(super) fn bytes(mut self) -> Vec<u8> {
        self.header[148..156].fill(b' ');
        let sum: u32 = self.header.iter().map(|byte| u32::from(*byte)).sum();
        self.header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut bytes = self.header.to_vec();
        bytes.extend(self.content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }
}

pub(super) fn file(name: &[u8], content: &[u8]) -> Vec<u8> {
    Raw::new(name, b'0', content).bytes()
}

pub(super) fn symlink(name: &[u8], target: &[u8]) -> Vec<u8> {
    Raw::new(name, b'2', b"").link(target).bytes()
}

pub(super) fn hard(name: &[u8], target: &[u8]) -> Vec<u8> {
    Raw::new(name, b'1', b"").link(target).bytes()
}

pub(super) fn dir(name: &[u8]) -> Vec<u8> {
    Raw::new(name, b'5', b"").at(100, b"0000755").bytes()
}

/// PAX records for the next member.
pub(super) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        content.extend(format!("{length} {key}=").as_bytes());
        content.extend(*value);
        content.push(b'\n');
    }
    Raw::new(b"pax", b'x', &content).bytes()
}

pub(super) fn gnu_long(kind: u8, text: &[u8]) -> Vec<u8> {
    Raw::new(b"././@LongLink", kind, text).bytes()
}

pub(super) fn tar(members: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = members.concat();
    bytes.extend([0; 2 * BLOCK]);
    bytes
}
