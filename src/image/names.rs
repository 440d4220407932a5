//! Names inside archives: split into components and checked before anything is created.
//!
//! Pure; fetch thread. A name is a byte string. What is refused here can never reach the kernel.

/// Longest path below the target directory, in bytes.
pub(super) const MAX_PATH_BYTES: usize = 4095;
/// Longest component, in bytes.
pub(super) const MAX_NAME_BYTES: usize = 255;
/// Prefix of whiteout markers.
const MARKER: &[u8] = b".wh.";
/// Prefix of names that layer tools keep for themselves.
const RESERVED: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why a name is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    #[error("the name is absolute")]
    Absolute,
    #[error("the name leaves the target directory")]
    Escape,
    #[error("the name has an empty or `.` component")]
    EmptyComponent,
    #[error("the name holds a NUL byte")]
    Nul,
    #[error("file names with new lines are not supported")]
    NewLine,
    #[error("the name is too long")]
    TooLong,
    #[error("the directories are nested too deeply")]
    TooDeep,
    #[error("the whiteout marker names nothing")]
    BadWhiteout,
}

/// Checks a member name and returns it normalised: components joined by `/`, without leading `./`
/// and trailing `/`. Empty = the target directory itself.
pub(super) fn normalise(name: &[u8], max_depth: usize) -> Result<Vec<u8>, Refused> {
    if name.starts_with(b"/") {
        return Err(Refused::Absolute);
    }
    if name.contains(&0) {
        return Err(Refused::Nul);
    }
    if name.contains(&b'\n') {
        return Err(Refused::NewLine);
    }
    let mut rest = name;
    while let Some(after) = rest.strip_prefix(b"./") {
        rest = after;
    }
    rest = rest.strip_suffix(b"/").unwrap_or(rest);
    if rest == b"." || rest.is_empty() {
        // `./` and `.` name the target directory; nothing at all names nothing.
        return if name.is_empty() { Err(Refused::EmptyComponent) } else { Ok(Vec::new()) };
    }
    if rest.len() > MAX_PATH_BYTES {
        return Err(Refused::TooLong);
    }
    let mut depth = 0;
    for component in rest.split(|byte| *byte == b'/') {
        depth += 1;
        match component {
            b"" | b"." => return Err(Refused::EmptyComponent),
            b".." => return Err(Refused::Escape),
            _ if component.len() > MAX_NAME_BYTES => return Err(Refused::TooLong),
            _ => {}
        }
    }
    if depth > max_depth { Err(Refused::TooDeep) } else { Ok(rest.to_vec()) }
}

/// Directory part and last component of a normalised, non-empty path.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// Path of an entry in a directory.
pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// What a path means to a layered file system.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    Plain,
    /// Hides everything below the directory in lower layers.
    Opaque,
    /// Hides this path in lower layers.
    Whiteout(Vec<u8>),
    /// Belongs to a layer tool, of no use here.
    Reserved,
}

/// Reads the whiteout notation of a normalised path.
pub(super) fn meaning(path: &[u8]) -> Result<Meaning, Refused> {
    let (directory, name) = split(path);
    for component in directory.split(|byte| *byte == b'/') {
        if component.starts_with(RESERVED) {
            return Ok(Meaning::Reserved);
        }
        if component.starts_with(MARKER) {
            return Err(Refused::BadWhiteout);
        }
    }
    if name == OPAQUE {
        return Ok(Meaning::Opaque);
    }
    if name.starts_with(RESERVED) {
        return Ok(Meaning::Reserved);
    }
    match name.strip_prefix(MARKER) {
        None => Ok(Meaning::Plain),
        Some(b"" | b"." | b"..") => Err(Refused::BadWhiteout),
        Some(hidden) => Ok(Meaning::Whiteout(join(directory, hidden))),
    }
}

/// A name for messages: printable ASCII, not too long.
pub(super) fn shown(name: &[u8]) -> String {
    const SHOWN_BYTES: usize = 200;
    let more = if name.len() > SHOWN_BYTES { "…" } else { "" };
    format!("{}{more}", name[..name.len().min(SHOWN_BYTES)].escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPTH: usize = 4;

    #[test]
    fn names() {
        let check = |name: &[u8], expect: Result<&[u8], Refused>| {
            let got = normalise(name, DEPTH);
            assert_eq!(got.as_deref(), expect.as_ref().copied(), "{}", name.escape_ascii());
        };
        check(b"a", Ok(b"a"));
        check(b"./a/b", Ok(b"a/b"));
        check(b"././a/", Ok(b"a"));
        check(b"./", Ok(b""));
        check(b".", Ok(b""));
        check(b"..a/b..", Ok(b"..a/b.."));
        check(b"\xff\xfe \x1b[0m", Ok(b"\xff\xfe \x1b[0m"));
        check(b"a/b/c/d", Ok(b"a/b/c/d"));
        check(b"a/b/c/d/e", Err(Refused::TooDeep));
        check(b"", Err(Refused::EmptyComponent));
        check(b"/", Err(Refused::Absolute));
        check(b"/a", Err(Refused::Absolute));
        check(b"..", Err(Refused::Escape));
        check(b"../a", Err(Refused::Escape));
        check(b"a/../../b", Err(Refused::Escape));
        check(b"./..", Err(Refused::Escape));
        check(b"a/..", Err(Refused::Escape));
        check(b"a//b", Err(Refused::EmptyComponent));
        check(b"a/./b", Err(Refused::EmptyComponent));
        check(b".//a", Err(Refused::EmptyComponent));
        check(b"a\0b", Err(Refused::Nul));
        check(b"a\nb", Err(Refused::NewLine));
        check(&[b'n'; MAX_NAME_BYTES], Ok(&[b'n'; MAX_NAME_BYTES]));
        check(&[b'n'; MAX_NAME_BYTES + 1], Err(Refused::TooLong));
        let long = b"nnn/".repeat(1024);
        assert_eq!(normalise(&long[..MAX_PATH_BYTES], 2000).map(|path| path.len()), Ok(4095));
        assert_eq!(normalise(&[&long[..], b"n"].concat(), 2000), Err(Refused::TooLong));
    }

    #[test]
    fn meanings() {
        let check = |path: &[u8], expect| assert_eq!(meaning(path), expect);
        check(b"a/b", Ok(Meaning::Plain));
        check(b"a/.wh", Ok(Meaning::Plain));
        check(b".wh..wh..opq", Ok(Meaning::Opaque));
        check(b"d/.wh..wh..opq", Ok(Meaning::Opaque));
        check(b"d/.wh.gone", Ok(Meaning::Whiteout(b"d/gone".to_vec())));
        check(b".wh.gone", Ok(Meaning::Whiteout(b"gone".to_vec())));
        check(b"d/.wh..wh.plnk", Ok(Meaning::Reserved));
        check(b"d/.wh..wh.plnk/1.2", Ok(Meaning::Reserved));
        for path in [&b".wh."[..], b".wh..", b".wh...", b"d/.wh..", b".wh.x/y"] {
            check(path, Err(Refused::BadWhiteout));
        }
    }

    #[test]
    fn messages_stay_short_and_printable() {
        assert_eq!(shown(b"a\x1b[0m\n"), r"a\x1b[0m\n");
        assert!(shown(&[b'x'; 5000]).len() < 250);
    }
}
