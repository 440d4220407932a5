//! What is used of network file systems.
//!
//! Runs on the fetch thread, because a server that does not answer makes the call hang: downloads
//! wait then, and nothing else does.

use std::path::PathBuf;

use crate::model::job::DiskFigures;
use crate::sys::usage;

/// Used bytes of the file systems that hold these paths.
pub fn look_at(paths: Vec<PathBuf>) -> DiskFigures {
    let look = |path: PathBuf| {
        let used = usage::file_system_bytes(&path).map_err(|error| error.to_string());
        (path, used)
    };
    paths.into_iter().map(look).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_has_an_answer() {
        let figures = look_at(vec!["/".into(), "/no/such/place".into()]);
        assert_eq!(figures.len(), 2);
        assert!(matches!(&figures[0], (path, Ok(used)) if path.as_os_str() == "/" && *used > 0));
        assert!(matches!(&figures[1], (_, Err(why)) if why.contains("No such file")));
    }
}
