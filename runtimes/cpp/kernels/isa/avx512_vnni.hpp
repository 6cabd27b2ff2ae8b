// AVX-512 with VNNI, whose dot products of bytes cannot overflow: high nibbles need not be shifted down. To be included
// by files of isa/ only.
#pragma once

#include "isa/avx512.hpp"

namespace l4::cpu {
namespace {

struct Avx512Vnni : Avx512 {
  static constexpr int high_shift = 4;
  static I high_nibbles(I a) { return _mm512_and_si512(a, _mm512_set1_epi8(static_cast<char>(0xf0))); }
  static I dot_bytes(I sum, I codes, I quad) { return _mm512_dpbusd_epi32(sum, codes, quad); }
  static I dot_nibbles(I sum, I codes, I quad) { return _mm512_dpbusd_epi32(sum, codes, quad); }
};

}  // namespace
}  // namespace l4::cpu
