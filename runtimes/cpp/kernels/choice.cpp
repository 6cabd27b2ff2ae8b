#include "choice.hpp"

#include <cstdlib>
#include <vector>

#include "isa/tables.hpp"
#include "processor.hpp"
#include "trial.hpp"

namespace l4::cpu {
namespace {

std::vector<const Kernels*> find_runnable() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  if (may_use_amx() && same_bits(amx_kernels, avx512_vnni_kernels)) found.push_back(&amx_kernels);
  if (has_avx512_vnni()) found.push_back(&avx512_vnni_kernels);
  if (has_avx512()) found.push_back(&avx512_kernels);
  if (has_avx_vnni()) found.push_back(&avx2_vnni_kernels);
  if (has_avx2()) found.push_back(&avx2_kernels);
#elif defined(__aarch64__)
  if (has_dot_products()) found.push_back(&neon_kernels);
#endif
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
