// AVX-512 (F, BW, DQ, VL) but for the dot products, which its files bring. To be included by files of isa/ only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace l4::cpu {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  static constexpr int lanes = 16, accumulators = 16, byte_bias = 0;
  static constexpr bool wide_passes = true;

  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F keep(F a) {
    __asm__("" : "+v"(a));
    return a;
  }
  static void store(float* p, F a) { _mm512_storeu_ps(p, a); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F infinite_above(F x, F limit, F y) {
    return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, limit, _CMP_GT_OQ), set(__builtin_inff()));
  }
  static F scale_by_power_of_two(F a, F n) {
    const I power = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), set_int(127)), 23);
    return mul(a, _mm512_castsi512_ps(power));
  }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static F load_half(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }

  static I zero_int() { return _mm512_setzero_si512(); }
  static I set_int(int x) { return _mm512_set1_epi32(x); }
  static I load_bytes(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
  static I load_uint16(const void* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  }
  static void store_bytes(signed char* p, I a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a));
  }
  static I add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I mul(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static I max(I a, I b) { return _mm512_max_epi32(a, b); }
  template <int by>
  static I shift_right(I a) { return _mm512_srai_epi32(a, by); }
  static I magnitude_bits(F a) { return _mm512_and_si512(_mm512_castps_si512(a), set_int(0x7fffffff)); }
  static I to_int(F a) { return _mm512_cvtps_epi32(a); }
  static int largest(I a) { return _mm512_reduce_max_epi32(a); }
  static int total(I a) { return _mm512_reduce_add_epi32(a); }

  static I low_nibbles(I a) { return _mm512_and_si512(a, _mm512_set1_epi8(0x0f)); }
  static I quad(const unsigned char* p) {
    int four;
    __builtin_memcpy(&four, p, sizeof four);
    return set_int(four);
  }
  template <int at, int bits>
  static F field(I a) {
    if constexpr (bits == 4) {  // the lowest 4 bits of a lane are an index
      const F numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      return _mm512_permutexvar_ps(_mm512_srli_epi32(a, at), numbers);
    } else {
      return to_float(_mm512_and_si512(_mm512_srli_epi32(a, at), set_int((1 << bits) - 1)));
    }
  }
};

}  // namespace
}  // namespace l4::cpu
