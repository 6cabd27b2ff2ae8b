# Compiles for x86_64 or aarch64 with zig (`pip install ziglang`), for glibc 2.28 and later, with the C++ library linked
# in. Set ZIG to the program and L4EXPORT_ARCHITECTURE to the machine; release_wheels.sh does.
foreach(name ZIG L4EXPORT_ARCHITECTURE)
  if(NOT ${name})
    message(FATAL_ERROR "${name} is not set: -DZIG=/path/to/zig -DL4EXPORT_ARCHITECTURE=x86_64 or aarch64")
  endif()
endforeach()
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG L4EXPORT_ARCHITECTURE)
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${L4EXPORT_ARCHITECTURE})
set(CMAKE_CXX_COMPILER ${ZIG} c++ -target ${L4EXPORT_ARCHITECTURE}-linux-gnu.2.28)
set(CMAKE_SHARED_LINKER_FLAGS_INIT -s)  # the system's strip need not know the machine
set(CMAKE_EXE_LINKER_FLAGS_INIT -s)
