#include "choice.hpp"

#include <cstdlib>
#include <vector>

#include "isa/amx.hpp"
#include "isa/tables.hpp"
#include "trial.hpp"

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace l4::cpu {
namespace {

void add_fast_kernels(std::vector<const Kernels*>& found) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c")) return;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    if (__builtin_cpu_supports("avx512vnni")) {
      if (amx_permitted() && same_bits(amx_kernels, avx512_vnni_kernels)) found.push_back(&amx_kernels);
      found.push_back(&avx512_vnni_kernels);
    }
    found.push_back(&avx512_kernels);
  }
  if (__builtin_cpu_supports("avxvnni")) found.push_back(&avx2_vnni_kernels);
  found.push_back(&avx2_kernels);
#elif defined(__aarch64__)
  if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) found.push_back(&neon_kernels);
#endif
}

std::vector<const Kernels*> find_runnable() {
  std::vector<const Kernels*> found;
  add_fast_kernels(found);
  found.push_back(&scalar_kernels);
  found.push_back(nullptr);
  return found;
}

}  // namespace

const Kernels* const* runnable_kernels() {
  static const std::vector<const Kernels*> runnable = find_runnable();
  return runnable.data();
}

const Kernels* chosen_kernels(std::string& error) {
  const char* const wanted = std::getenv("L4_CPU_ISA");
  const Kernels* const* all = runnable_kernels();
  if (wanted == nullptr || *wanted == '\0') return all[0];
  std::string names;
  for (; *all != nullptr; all++) {
    if ((*all)->name == std::string(wanted)) return *all;
    names += names.empty() ? "" : ", ";
    names += (*all)->name;
  }
  error = "L4_CPU_ISA is \"" + std::string(wanted) + "\"; this processor runs " + names;
  return nullptr;
}

}  // namespace l4::cpu
