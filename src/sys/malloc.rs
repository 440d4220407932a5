//! Memory of the C library: fewer arenas, smaller default stacks. Called once, before threads.

use std::io;

use nix::errno::Errno;

/// Arenas of malloc for all threads together.
pub const ARENAS: i32 = 2;

/// Limits arenas, and the stacks of threads that libraries start without asking us.
pub fn limit() -> io::Result<()> {
    // SAFETY: mallopt takes two numbers and changes settings of the allocator only.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) } != 1 {
        return Err(io::Error::other("mallopt refused M_ARENA_MAX"));
    }
    default_stack(super::thread::STACK_BYTES)
}

/// Bytes that are allocated at the moment, in all arenas. For measurements.
#[cfg(target_env = "gnu")]
pub fn live_bytes() -> usize {
    // SAFETY: mallinfo2 has no arguments and only reads the books of the allocator.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

#[cfg(target_env = "gnu")]
unsafe extern "C" {
    fn pthread_setattr_default_np(attr: *const libc::pthread_attr_t) -> libc::c_int;
}

/// Stack size of threads that are created without attributes (gRPC's).
#[cfg(target_env = "gnu")]
fn default_stack(bytes: usize) -> io::Result<()> {
    let mut attr = std::mem::MaybeUninit::<libc::pthread_attr_t>::uninit();
    // SAFETY: `attr` is memory of the right type which the call initialises.
    check(unsafe { libc::pthread_attr_init(attr.as_mut_ptr()) })?;
    // SAFETY: `attr` was initialised by the call above, which succeeded.
    let size = check(unsafe { libc::pthread_attr_setstacksize(attr.as_mut_ptr(), bytes) });
    let set = size.and_then(|()| {
        // SAFETY: `attr` is initialised; the call copies it.
        check(unsafe { pthread_setattr_default_np(attr.as_ptr()) })
    });
    // SAFETY: `attr` is initialised and not used afterwards.
    unsafe { libc::pthread_attr_destroy(attr.as_mut_ptr()) };
    set
}

#[cfg(not(target_env = "gnu"))]
fn default_stack(_bytes: usize) -> io::Result<()> {
    Ok(())
}

#[cfg(target_env = "gnu")]
fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(Errno::from_raw(code).into()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_c_library_takes_the_limits() {
        super::limit().unwrap();
    }

    #[cfg(target_env = "gnu")]
    #[test]
    fn live_memory_is_counted() {
        let before = super::live_bytes();
        let held = vec![1u8; 8 << 20];
        assert!(super::live_bytes() > before + held.len() / 2);
    }
}
