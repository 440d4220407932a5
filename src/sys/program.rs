//! What only the program itself may do to its process; compiled into the daemon's binary, not
//! into the library, because tests and other programs must not get it.
//!
//! Runs on main: at the very start, before any thread exists, and at the very end.

#![allow(unsafe_code)]

#[cfg(target_env = "gnu")]
use std::{
    env,
    ffi::{CString, OsStr, OsString},
    os::unix::ffi::OsStringExt,
};

/// Settings of glibc, read when a program is executed.
#[cfg(target_env = "gnu")]
const TUNABLES: &str = "GLIBC_TUNABLES";
#[cfg(target_env = "gnu")]
const NO_THREAD_CACHES: &str = "glibc.malloc.tcache_count=0";
/// Says that the program has been executed once more, for whatever effect.
#[cfg(target_env = "gnu")]
const EXECUTED: &str = "AOS_SM_EXECUTED";

/// Switches off what glibc's malloc keeps for each thread: with twenty threads that is half a
/// megabyte in the end, and keeps pages all over the heap from being given back. Since glibc takes
/// this only from the environment of a new program, the process executes its program once more,
/// with the same arguments. Where that fails it goes on as it is. What it starts later gets the
/// environment that it was given.
#[cfg(target_env = "gnu")]
pub(super) fn without_thread_caches() {
    let given = env::var_os(TUNABLES);
    if env::var_os(EXECUTED).is_some() {
        let text = given.unwrap_or_default().into_string().unwrap_or_default();
        let rest = text.strip_suffix(NO_THREAD_CACHES).unwrap_or(&text).trim_end_matches(':');
        set(TUNABLES, (!rest.is_empty()).then_some(OsStr::new(rest)));
        return set(EXECUTED, None);
    }
    let mut tunables = given.clone().unwrap_or_default();
    if !tunables.is_empty() {
        tunables.push(":");
    }
    tunables.push(NO_THREAD_CACHES);
    set(TUNABLES, Some(&tunables));
    set(EXECUTED, Some("1".as_ref()));
    // The path and not the link: the name of the process comes from it. Not by `Command`, which
    // would have a shell look at a program that the kernel cannot execute, as under emulation.
    let text = |text: OsString| CString::new(text.into_vec()).ok();
    let program = std::fs::read_link("/proc/self/exe").ok().and_then(|path| text(path.into()));
    let arguments: Option<Vec<CString>> = env::args_os().map(text).collect();
    if let (Some(program), Some(arguments)) = (program, arguments) {
        let _ = nix::unistd::execv(&program, &arguments);
    }
    set(TUNABLES, given.as_deref());
    set(EXECUTED, None);
}

/// Another C library has other caches, if any.
#[cfg(not(target_env = "gnu"))]
pub(super) fn without_thread_caches() {}

#[cfg(target_env = "gnu")]
fn set(name: &str, value: Option<&OsStr>) {
    // SAFETY: no other thread exists yet, so nobody reads the environment at the same time.
    unsafe {
        match value {
            Some(value) => env::set_var(name, value),
            None => env::remove_var(name),
        }
    }
}

/// gRPC's C-core sizes its thread pools and timer shards by the number of CPUs and polls idle
/// channels every few seconds. Here it counts one CPU, through the functions below, and does not
/// poll: each channel of ours has a call on it or lives only for one.
pub(super) fn one_cpu_for_grpc() {
    // SAFETY: no other thread exists yet, so nobody reads the environment at the same time.
    unsafe { std::env::set_var("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "0") };
}

/// Takes the place of C-core's `gpr_cpu_num_cores` (linker option `--wrap`, see `proto/build.rs`).
#[unsafe(no_mangle)]
extern "C" fn __wrap_gpr_cpu_num_cores() -> u32 {
    1
}

/// Takes the place of C-core's `gpr_cpu_current_cpu`; must be below the number of CPUs.
#[unsafe(no_mangle)]
extern "C" fn __wrap_gpr_cpu_current_cpu() -> u32 {
    0
}

/// Ends the process at once. The static destructors of C-core, OpenSSL and PKCS#11 modules must
/// not run while C-core's threads are still there.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: ends the process without returning; nothing can observe a broken invariant.
    unsafe { libc::_exit(code) }
}
