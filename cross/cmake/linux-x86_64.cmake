# Native build: no CMAKE_SYSTEM_NAME, so CMake keeps the compilers of the machine.
include("${CMAKE_CURRENT_LIST_DIR}/common.cmake")
