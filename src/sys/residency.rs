//! Memory that was needed for a while and is not needed now: pages of code and constants that ran
//! once at start, or while instances were started, and heap that was freed.
//!
//! Owned by a thread that is awake regularly anyway. In: nothing, it reads `/proc/self/statm`.
//! Out: fewer resident pages. Nothing is lost: pages of code and constants are those of the files,
//! are taken from the page cache when they are needed again (a fault maps 16 of them), and free
//! heap is free. Deliberately not here: pages that were written to, and the cache of the kernel,
//! which stays.

use std::ffi::CStr;
use std::fs;
use std::io;

use nix::unistd::{SysconfVar, sysconf};

/// How much more than after the last time must be resident before something is given back.
pub const SLACK_BYTES: u64 = 512 * 1024;

/// Watches how much of the process is resident.
#[derive(Debug)]
pub struct Residency {
    /// What an idle process needs; `None` = to be seen at the next look.
    settled_bytes: Option<u64>,
}

impl Default for Residency {
    /// The first look finds what was needed at start only.
    fn default() -> Self {
        Self { settled_bytes: Some(0) }
    }
}

impl Residency {
    /// Gives back what is not in use when much was added since the last time. Takes about 0.2 ms
    /// then, and the time of one small read otherwise.
    pub fn look(&mut self) -> io::Result<()> {
        let resident = resident_bytes()?;
        if self.is_due(resident) {
            give_back()?;
        }
        Ok(())
    }

    /// The look after one that was due tells what is needed while nothing happens: right after it
    /// less is resident than that.
    fn is_due(&mut self, resident: u64) -> bool {
        let Some(settled) = self.settled_bytes else {
            self.settled_bytes = Some(resident);
            return false;
        };
        let is_due = resident > settled + SLACK_BYTES;
        if is_due {
            self.settled_bytes = None;
        }
        is_due
    }
}

fn resident_bytes() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/statm")?;
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| io::Error::other(format!("unexpected statm {text:?}")))?;
    Ok(pages * page_bytes() as u64)
}

fn page_bytes() -> usize {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| usize::try_from(size).ok()).unwrap_or(4096)
}

/// Lets go of all pages of code and constants, and of free heap.
fn give_back() -> io::Result<()> {
    let mut result = Ok(());
    for_each_constant_segment(|start, length| {
        // SAFETY: the range is a segment of a loaded object that the linker maps from a file and
        // never lets anybody write to; the kernel reads it from there again on the next access.
        let code = unsafe { libc::madvise(start as *mut _, length, libc::MADV_DONTNEED) };
        if code != 0 {
            result = Err(io::Error::last_os_error());
        }
    });
    trim_heap();
    result
}

/// Calls `each` with start and length of the segments without write permission. What the linker
/// protects after relocation lies in segments with it.
fn for_each_constant_segment(mut each: impl FnMut(usize, usize)) {
    type Each<'a> = &'a mut dyn FnMut(usize, usize);

    unsafe extern "C" fn visit(
        info: *mut libc::dl_phdr_info,
        _size: usize,
        data: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the C library passes a valid description, and `data` as it was given below.
        let (info, each) = unsafe { (&*info, &mut *data.cast::<Each<'_>>()) };
        // SAFETY: the name is a C string for as long as the object is loaded.
        let is_kernel = !info.dlpi_name.is_null()
            && unsafe { CStr::from_ptr(info.dlpi_name) }.to_bytes().starts_with(b"linux-vdso");
        if is_kernel || info.dlpi_phdr.is_null() {
            return 0;
        }
        // SAFETY: the headers are an array of `dlpi_phnum` items in the loaded object.
        let headers =
            unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
        for header in headers {
            if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
                let page = page_bytes();
                #[allow(clippy::cast_possible_truncation)] // addresses of this process
                let start = info.dlpi_addr.wrapping_add(header.p_vaddr) as usize;
                #[allow(clippy::cast_possible_truncation)] // as above
                let end = start.saturating_add(header.p_memsz as usize);
                let first = start / page * page;
                each(first, end.next_multiple_of(page) - first);
            }
        }
        0
    }

    let mut each: Each<'_> = &mut each;
    // SAFETY: `visit` is called before this returns only, with the pointer to `each`, whose type
    // it knows.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut each).cast()) };
}

#[cfg(target_env = "gnu")]
fn trim_heap() {
    // SAFETY: takes a number and gives free pages of the heap back; memory in use stays.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim_heap() {}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Resident sizes at successive looks, in units of half the slack; `!` = given back.
    fn check(sizes: &[u64], expect: &str) {
        let mut residency = Residency::default();
        let due = |&size: &u64| residency.is_due(size * SLACK_BYTES / 2);
        let seen: String = sizes.iter().map(due).map(|due| if due { '!' } else { '.' }).collect();
        assert_eq!(seen, expect, "{sizes:?}");
    }

    #[test]
    fn is_due_once_after_much_was_added() {
        check(&[20, 9, 9, 9], "!...");
        check(&[20, 9, 11, 9], "!...");
        check(&[20, 9, 12, 10, 10], "!.!..");
        check(&[20, 9, 12, 10, 12, 13, 11], "!.!..!.");
        check(&[20, 9, 4, 11, 11], "!....");
        check(&[1, 2, 3, 3], "..!.");
    }

    static WRITTEN: AtomicU32 = AtomicU32::new(1);
    static CONSTANT: &[&str] = &["relocated", "constant"];

    #[test]
    fn nothing_is_lost() {
        WRITTEN.store(7, Ordering::SeqCst);
        let heap = vec![String::from("heap"); 1000];
        give_back().unwrap();
        assert_eq!(WRITTEN.load(Ordering::SeqCst), 7);
        assert_eq!(CONSTANT.concat(), "relocatedconstant");
        assert!(heap.iter().all(|text| text == "heap"));
        assert!(resident_bytes().unwrap() > 0);
    }

    #[test]
    fn the_program_and_its_libraries_are_found() {
        let here = nothing_is_lost as fn() as usize;
        let (mut segments, mut has_this) = (0, false);
        for_each_constant_segment(|start, length| {
            segments += 1;
            has_this |= (start..start + length).contains(&here);
            assert!(!(start..start + length).contains(&(WRITTEN.as_ptr() as usize)));
        });
        assert!(segments > 2 && has_this, "{segments} segments");
    }
}
