#include "onnxruntime/cpu_kernels.hpp"

#include <dlfcn.h>
#include <elf.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

namespace l4 {
namespace {

constexpr const char* kernels_variable = "L4EXPORT_CPU_KERNELS";
constexpr const char* kernels_file = "libl4cpu.so";
constexpr const char* kernels_remedy =
    "; give the path of libl4cpu.so, which is built with this library, in L4EXPORT_CPU_KERNELS, or build the engine "
    "for --target ort-cpu, which needs none";

#if defined(__x86_64__)
constexpr std::uint16_t this_machine = EM_X86_64;
#elif defined(__aarch64__)
constexpr std::uint16_t this_machine = EM_AARCH64;
#else
constexpr std::uint16_t this_machine = EM_NONE;
#endif

std::string machine_name(std::uint16_t machine) {
  if (machine == EM_X86_64) return "x86_64";
  if (machine == EM_AARCH64) return "aarch64";
  return "processor " + std::to_string(machine);
}

Error kernels_lacking(const std::string& why) {
  return environment_lacks("the engine needs l4export's CPU kernels: " + why + kernels_remedy);
}

// The path of the library or program that this code is in; empty where it is not known. dladdr has the one by which it
// was opened, which may be relative to a directory that the process has left since: the working directory, perhaps an
// engine's, would decide what code is run.
std::string own_path() {
  const auto here = reinterpret_cast<std::uintptr_t>(&add_cpu_kernels);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {  // first-behind rights offset device inode path
    std::uintptr_t first = 0, behind = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR, &first, &behind) != 2) continue;
    if (here < first || here >= behind) continue;
    const std::size_t path = line.find('/');
    return path == std::string::npos ? "" : line.substr(path);
  }
  return "";
}

// The path that the variable names, or where the library is; a bare name where only the loader may find it.
std::string library_path() {
  const char* const given = std::getenv(kernels_variable);
  if (given != nullptr && *given != '\0') return given;
  const std::string own = own_path();
  const std::string here = own.substr(0, own.rfind('/') + 1);
  for (const std::string& path : {here + kernels_file, here + "../lib/" + kernels_file}) {
    if (!here.empty() && access(path.c_str(), F_OK) == 0) return path;
  }
  return kernels_file;
}

// The loader says of a library for another processor only that there is none.
void check_machine(const std::string& path) {
  std::FILE* const file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return;
  Elf64_Ehdr header{};
  const bool whole = std::fread(&header, sizeof(header), 1, file) == 1;
  std::fclose(file);
  if (!whole || std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) {
    throw kernels_lacking(printable(path) + " is no library");
  }
  if (header.e_machine != this_machine) {
    throw kernels_lacking(printable(path) + " is for " + machine_name(header.e_machine) + ", and this is " +
                  machine_name(this_machine));
  }
}

}  // namespace

void add_cpu_kernels(const OnnxRuntime& runtime, const SessionOptions& options) {
  const std::string path = library_path();
  if (path.find('/') != std::string::npos) check_machine(path);
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const why = dlerror();
    const std::string reason = printable(why != nullptr ? why : "no reason given", 200);
    throw kernels_lacking(printable(path) + " cannot be opened (" + reason + ")");
  }
  using Register = OrtStatus* (*)(OrtSessionOptions*, const OrtApiBase*);
  const auto register_operators = reinterpret_cast<Register>(dlsym(library, "RegisterCustomOps"));
  if (register_operators == nullptr) {
    throw kernels_lacking(printable(path) + " has no operators for ONNX Runtime");
  }
  try {
    runtime.check(register_operators(options.get(), &runtime.base()));
  } catch (const OnnxRuntimeFailure& failure) {
    throw kernels_lacking(printable(path) + " is not taken by ONNX Runtime " + runtime.version() + " (" +
                          failure.what() + ")");
  }
}

}  // namespace l4
