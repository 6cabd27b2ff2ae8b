// AVX2 without VNNI. Its product of bytes adds pairs in 16 bits: enough for nibbles, too little for codes of 8 bits.
#include "isa/avx2.hpp"
#include "isa/tables.hpp"
#include "kernel/table.hpp"

namespace l4::cpu {
namespace {

struct Avx2Plain : Avx2 {
  static I dot_nibbles(I sum, I codes, I quad) {  // pairs are at most 2 * 15 * 127
    return add(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, quad), _mm256_set1_epi16(1)));
  }
  static I dot_bytes(I sum, I codes, I quad) {  // even and odd columns, each as 16 bits
    const I even_codes = _mm256_and_si256(codes, _mm256_set1_epi16(0xff)), odd_codes = _mm256_srli_epi16(codes, 8);
    const I even = _mm256_srai_epi16(_mm256_slli_epi16(quad, 8), 8), odd = _mm256_srai_epi16(quad, 8);
    return add(sum, add(_mm256_madd_epi16(even_codes, even), _mm256_madd_epi16(odd_codes, odd)));
  }
};

}  // namespace

constexpr Kernels avx2_kernels = table<Avx2Plain>("avx2");

}  // namespace l4::cpu
