set(CMAKE_SYSTEM_NAME Linux)
# abseil and the checksum code of the C-core select their sources by it.
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
# FindOpenSSL asks pkg-config: keep it away from the libraries of the build machine.
set(ENV{PKG_CONFIG_LIBDIR} /usr/lib/aarch64-linux-gnu/pkgconfig)
include("${CMAKE_CURRENT_LIST_DIR}/common.cmake")
