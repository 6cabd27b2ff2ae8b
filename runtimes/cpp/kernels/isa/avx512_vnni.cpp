// AVX-512 with VNNI, whose dot products of bytes cannot overflow: high nibbles need not be shifted down.
#include "isa/avx512.hpp"
#include "isa/tables.hpp"
#include "kernel/table.hpp"

namespace l4::cpu {
namespace {

struct Avx512Vnni : Avx512 {
  static constexpr int high_shift = 4;
  static I high_nibbles(I a) { return _mm512_and_si512(a, _mm512_set1_epi8(static_cast<char>(0xf0))); }
  static I dot_bytes(I sum, I codes, I quad) { return _mm512_dpbusd_epi32(sum, codes, quad); }
  static I dot_nibbles(I sum, I codes, I quad) { return _mm512_dpbusd_epi32(sum, codes, quad); }
};

}  // namespace

constexpr Kernels avx512_vnni_kernels = table<Avx512Vnni>("avx512-vnni");

}  // namespace l4::cpu
