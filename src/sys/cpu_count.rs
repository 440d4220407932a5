//! The number of CPUs as gRPC's C-core sees it.
//!
//! C-core makes threads and timer lists for each CPU. The daemon needs one of each, so the build
//! script wraps two functions of C-core in the daemon's binary, which defines the wrappers with
//! this macro. They must not be in the library: tests and tools are linked without the wrapping.

/// Defines what C-core calls instead of `gpr_cpu_num_cores` and `gpr_cpu_current_cpu`. The second
/// is an index below the first.
#[macro_export]
macro_rules! one_cpu_for_grpc {
    () => {
        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        extern "C" fn __wrap_gpr_cpu_num_cores() -> u32 {
            1
        }

        #[allow(unsafe_code)]
        #[unsafe(no_mangle)]
        extern "C" fn __wrap_gpr_cpu_current_cpu() -> u32 {
            0
        }
    };
}
