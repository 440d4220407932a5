//! What only the program itself may do to its process; compiled into the daemon's binary, not
//! into the library, because tests and other programs must not get it.
//!
//! Runs on main: at the very start, before any thread exists, and at the very end.

#![allow(unsafe_code)]

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
