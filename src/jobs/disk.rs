//! What is used of network file systems.
//!
//! Runs on the fetch thread, because a server that does not answer takes a moment of it.

use std::path::PathBuf;

use crate::jobs::Ports;
use crate::model::job::DiskFigures;

/// Used bytes of the file systems that hold these paths, or why they are not known.
pub fn look_at(ports: &Ports, paths: Vec<PathBuf>) -> DiskFigures {
    let look = |path: PathBuf| {
        let used = ports.data.used_bytes(&path).map_err(|failure| failure.message);
        (path, used)
    };
    paths.into_iter().map(look).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::fake::Fake;

    #[test]
    fn each_path_has_an_answer() {
        let (figures, calls) =
            Fake::default().run(|ports| look_at(ports, vec!["/a".into(), "/silent".into()]));
        let expect = vec![
            (PathBuf::from("/a"), Ok(5)),
            (PathBuf::from("/silent"), Err("made-up silence".to_owned())),
        ];
        assert_eq!((figures, calls.as_str()), (expect, ""));
    }
}
