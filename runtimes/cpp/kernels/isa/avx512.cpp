// AVX-512 without VNNI. Its product of bytes adds pairs in 16 bits: enough for nibbles, too little for codes of 8 bits.
#include "isa/avx512.hpp"

#include "isa/tables.hpp"
#include "kernel/table.hpp"

namespace l4::cpu {
namespace {

struct Avx512Plain : Avx512 {
  static constexpr int high_shift = 0;
  static I high_nibbles(I a) { return low_nibbles(_mm512_srli_epi16(a, 4)); }
  static I dot_nibbles(I sum, I codes, I quad) {  // pairs are at most 2 * 15 * 127
    return add(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(codes, quad), _mm512_set1_epi16(1)));
  }
  static I dot_bytes(I sum, I codes, I quad) {  // even and odd columns, each as 16 bits
    const I even_codes = _mm512_and_si512(codes, _mm512_set1_epi16(0xff)), odd_codes = _mm512_srli_epi16(codes, 8);
    const I even = _mm512_srai_epi16(_mm512_slli_epi16(quad, 8), 8), odd = _mm512_srai_epi16(quad, 8);
    return add(sum, add(_mm512_madd_epi16(even_codes, even), _mm512_madd_epi16(odd_codes, odd)));
  }
};

}  // namespace

constexpr Kernels avx512_kernels = table<Avx512Plain>("avx512");

}  // namespace l4::cpu
