// What the processor has and this process may use, beyond what every compiler's __builtin_cpu_supports knows.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace l4::cpu {

#if defined(__x86_64__)
enum class Register { eax, ebx, ecx, edx };

// One bit of the answer to cpuid (Intel's manual, volume 2).
inline bool cpuid_bit(unsigned leaf, unsigned subleaf, Register where, int bit) {
  unsigned answer[4] = {};
  if (__get_cpuid_count(leaf, subleaf, &answer[0], &answer[1], &answer[2], &answer[3]) == 0) return false;
  return (answer[static_cast<int>(where)] >> bit & 1) != 0;
}

inline bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && cpuid_bit(1, 0, Register::ecx, 29);  // F16C
}
inline bool has_avx_vnni() { return has_avx2() && cpuid_bit(7, 1, Register::eax, 4); }
inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
inline bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

// Asks the kernel, too, for the whole process.
inline bool may_use_amx() {
#if defined(L4CPU_EMULATED_TILES)
  return has_avx512_vnni();
#else
  constexpr int request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return has_avx512_vnni() && cpuid_bit(7, 0, Register::edx, 24) && cpuid_bit(7, 0, Register::edx, 25) &&
         syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#endif
}
#elif defined(__aarch64__)
inline bool has_dot_products() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
#endif

}  // namespace l4::cpu
