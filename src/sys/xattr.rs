//! Extended attributes of files, of the file itself and not of what a link leads to.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;

use crate::sys::{is_errno, retry};

/// Longest value that is read, in bytes.
pub const VALUE_MAX: usize = 256;

/// Marks a directory that hides everything below it in an overlay.
pub const OPAQUE: &CStr = c"trusted.overlay.opaque";

/// Value of an attribute; `None` = the file has none of this name, or the file system has none at
/// all.
pub fn get(path: &Path, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut value = vec![0_u8; VALUE_MAX];
    let length = retry(|| {
        // SAFETY: both strings are terminated, and the buffer has the length that is told.
        Errno::result(unsafe {
            let buffer = value.as_mut_ptr().cast();
            libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer, value.len())
        })
    });
    found(value, length)
}

/// As `get`, of an open file or directory.
pub fn get_open(fd: BorrowedFd<'_>, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = vec![0_u8; VALUE_MAX];
    let length = retry(|| {
        // SAFETY: the name is terminated, and the buffer has the length that is told.
        Errno::result(unsafe {
            let buffer = value.as_mut_ptr().cast();
            libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), buffer, value.len())
        })
    });
    found(value, length)
}

fn found(mut value: Vec<u8>, length: io::Result<isize>) -> io::Result<Option<Vec<u8>>> {
    match length {
        Ok(length) => {
            value.truncate(usize::try_from(length).unwrap_or(0));
            Ok(Some(value))
        }
        Err(error) if is_errno(&error, Errno::ENODATA) || is_errno(&error, Errno::EOPNOTSUPP) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Sets an attribute, or replaces its value.
pub fn set(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_encoded_bytes())?;
    retry(|| {
        // SAFETY: both strings are terminated, and the value has the length that is told.
        Errno::result(unsafe {
            let buffer = value.as_ptr().cast();
            libc::lsetxattr(path.as_ptr(), name.as_ptr(), buffer, value.len(), 0)
        })
    })?;
    Ok(())
}

/// As `set`, of an open file or directory.
pub fn set_open(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    retry(|| {
        // SAFETY: the name is terminated, and the value has the length that is told.
        Errno::result(unsafe {
            let buffer = value.as_ptr().cast();
            libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), buffer, value.len(), 0)
        })
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_set_is_read() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(get(dir.path(), OPAQUE).unwrap(), None);
        if set(dir.path(), OPAQUE, b"x").is_err() {
            println!("SKIP what_is_set_is_read: no trusted attributes here");
            return;
        }
        set(dir.path(), OPAQUE, b"y").unwrap();
        assert_eq!(get(dir.path(), OPAQUE).unwrap().as_deref(), Some(&b"y"[..]));
        let open = std::fs::File::open(dir.path()).unwrap();
        assert_eq!(get_open(open.as_fd(), OPAQUE).unwrap().as_deref(), Some(&b"y"[..]));
        set_open(open.as_fd(), OPAQUE, b"z").unwrap();
        assert_eq!(get(dir.path(), OPAQUE).unwrap().as_deref(), Some(&b"z"[..]));
        assert_eq!(get_open(open.as_fd(), c"trusted.other").unwrap(), None);
        let longest = vec![b'v'; VALUE_MAX];
        set(dir.path(), OPAQUE, &longest).unwrap();
        assert_eq!(get(dir.path(), OPAQUE).unwrap(), Some(longest));
        set(dir.path(), OPAQUE, &[0; VALUE_MAX + 1]).unwrap();
        get(dir.path(), OPAQUE).unwrap_err();
        get(&dir.path().join("missing"), OPAQUE).unwrap_err();
    }
}
