// AVX-512 with VNNI.
#include "isa/avx512_vnni.hpp"

#include "isa/tables.hpp"
#include "kernel/table.hpp"

namespace l4::cpu {

constexpr Kernels avx512_vnni_kernels = table<Avx512Vnni>("avx512-vnni");

}  // namespace l4::cpu
