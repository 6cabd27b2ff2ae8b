// The tables of the instruction sets, each in a file that is compiled for it.
#pragma once

#include "kernels.hpp"

namespace l4::cpu {

extern const Kernels scalar_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels, avx2_vnni_kernels, avx512_kernels, avx512_vnni_kernels, amx_kernels;
#elif defined(__aarch64__)
extern const Kernels neon_kernels;
#endif

}  // namespace l4::cpu
