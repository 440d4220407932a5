//! Memory that was needed for a while and is not needed now: pages of code and constants that ran
//! once at start, or while instances were started, and heap that was freed.
//!
//! Owned by a thread that is awake regularly anyway. In: the time. Out: fewer resident pages.
//! Nothing is lost: pages of code and constants are those of the files, are taken from the page
//! cache when they are needed again (a fault maps 16 of them), and free heap is free. Deliberately
//! not here: pages that were written to, and the cache of the kernel, which stays; and a look at
//! what has grown, because asking would cost as much as doing it.

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// Memory is given back this often at most. It takes about 0.2 ms, and as much again for the
/// pages that an idle daemon does need.
pub const PERIOD: Duration = Duration::from_secs(60);

/// Gives back what is not in use from time to time.
#[derive(Debug, Default)]
pub struct Residency {
    next: Duration,
}

impl Residency {
    /// Gives back when it is time for it; the first call finds what only the start has needed.
    /// `now` is of a clock that never goes back.
    pub fn look(&mut self, now: Duration) -> io::Result<()> {
        if self.is_due(now) { give_back() } else { Ok(()) }
    }

    fn is_due(&mut self, now: Duration) -> bool {
        let is_due = self.next <= now;
        if is_due {
            self.next = now + PERIOD;
        }
        is_due
    }
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

    #[test]
    fn is_due_at_first_and_then_once_in_a_period() {
        let mut residency = Residency::default();
        let mut due = |seconds| residency.is_due(Duration::from_secs(seconds));
        let seen = [5, 6, 64, 65, 66, 124, 500, 559, 560].map(&mut due);
        assert_eq!(seen, [true, false, false, true, false, false, true, false, true]);
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
