// AVX2 with VNNI, of processors without AVX-512.
#include "isa/avx2.hpp"
#include "isa/tables.hpp"
#include "kernel/table.hpp"

namespace l4::cpu {
namespace {

struct Avx2Vnni : Avx2 {
  static constexpr int high_shift = 4;
  static I high_nibbles(I a) { return _mm256_and_si256(a, _mm256_set1_epi8(static_cast<char>(0xf0))); }
  static I dot_nibbles(I sum, I codes, I quad) { return _mm256_dpbusd_avx_epi32(sum, codes, quad); }
  static I dot_bytes(I sum, I codes, I quad) { return _mm256_dpbusd_avx_epi32(sum, codes, quad); }
};

}  // namespace

constexpr Kernels avx2_vnni_kernels = table<Avx2Vnni>("avx2-vnni");

}  // namespace l4::cpu
