# Settings of the C-core of gRPC for every target.
# libsystemd would be linked when the build machine has it; only servers use it.
set(CMAKE_DISABLE_FIND_PACKAGE_systemd TRUE)
# Plugins that are not registered are dropped by the linker: 1.7 MiB of xDS and RLS.
add_compile_definitions(GRPC_NO_XDS GRPC_NO_RLS)
# The daemon aborts on panic, nothing unwinds through the C-core.
add_compile_options(
  $<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions>
  -fno-asynchronous-unwind-tables -fno-unwind-tables -fvisibility=hidden)
set(CMAKE_PROJECT_grpc_INCLUDE "${CMAKE_CURRENT_LIST_DIR}/grpc-tweaks.cmake")
