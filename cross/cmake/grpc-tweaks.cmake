# Longer windows of the C-core's two timer systems: every timer shard is visited once per window,
# at most once a second by default, which is the whole idle activity of the library.
# Works on copies of the sources; where the expected text is missing (another release of
# grpcio-sys) the build says so and goes on with the original file.

function(grpc_tweak file) # grpc_tweak(<source> <old> <new> [<old> <new>]...)
  file(READ "${PROJECT_SOURCE_DIR}/${file}" text)
  while(ARGN)
    list(POP_FRONT ARGN old new)
    string(FIND "${text}" "${old}" at)
    if(at EQUAL -1)
      message(WARNING "${file}: expected text not found: '${old}'; built without the tweak, more idle wake-ups")
      return()
    endif()
    string(REPLACE "${old}" "${new}" text "${text}")
  endwhile()
  set(tweaked "${CMAKE_BINARY_DIR}/tweaked/${file}")
  file(CONFIGURE OUTPUT "${tweaked}" CONTENT "${text}" @ONLY)
  get_target_property(sources grpc SOURCES)
  list(TRANSFORM sources REPLACE "^${file}$" "${tweaked}")
  set_target_properties(grpc PROPERTIES SOURCES "${sources}")
endfunction()

function(grpc_tweaks)
  grpc_tweak(src/core/lib/iomgr/timer_generic.cc
    "MIN_QUEUE_WINDOW_DURATION 0.01" "MIN_QUEUE_WINDOW_DURATION 30.0"
    "MAX_QUEUE_WINDOW_DURATION 1.0" "MAX_QUEUE_WINDOW_DURATION 30.0")
  grpc_tweak(src/core/lib/event_engine/posix_engine/timer.cc
    "kMinQueueWindowDuration = 0.01" "kMinQueueWindowDuration = 30.0"
    "kMaxQueueWindowDuration = 1.0" "kMaxQueueWindowDuration = 30.0")
endfunction()

cmake_language(DEFER CALL grpc_tweaks) # after all targets exist; CMake >= 3.19
