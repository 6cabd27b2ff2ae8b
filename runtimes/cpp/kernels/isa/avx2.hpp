// AVX2 with FMA and F16C but for the dot products, which its files bring. To be included by files of isa/ only.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace l4::cpu {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  static constexpr int lanes = 8, accumulators = 8, high_shift = 0, byte_bias = 0;
  static constexpr bool wide_passes = false;

  static F set(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static F keep(F a) {
    __asm__("" : "+x"(a));
    return a;
  }
  static void store(float* p, F a) { _mm256_storeu_ps(p, a); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F infinite_above(F x, F limit, F y) {
    return _mm256_blendv_ps(y, set(__builtin_inff()), _mm256_cmp_ps(x, limit, _CMP_GT_OQ));
  }
  static F scale_by_power_of_two(F a, F n) {
    const I power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), set_int(127)), 23);
    return mul(a, _mm256_castsi256_ps(power));
  }
  static F to_float(I a) { return _mm256_cvtepi32_ps(a); }
  static F load_half(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }

  static I zero_int() { return _mm256_setzero_si256(); }
  static I set_int(int x) { return _mm256_set1_epi32(x); }
  static I load_bytes(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static I load_uint16(const void* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)));
  }
  static void store_bytes(signed char* p, I a) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  static I add(I a, I b) { return _mm256_add_epi32(a, b); }
  static I sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I mul(I a, I b) { return _mm256_mullo_epi32(a, b); }
  static I max(I a, I b) { return _mm256_max_epi32(a, b); }
  template <int by>
  static I shift_right(I a) {
    return _mm256_srai_epi32(a, by);
  }
  static I magnitude_bits(F a) { return _mm256_and_si256(_mm256_castps_si256(a), set_int(0x7fffffff)); }
  static I to_int(F a) { return _mm256_cvtps_epi32(a); }
  static int largest(I a) {
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1)));
  }
  static int total(I a) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
  }

  static I low_nibbles(I a) { return _mm256_and_si256(a, _mm256_set1_epi8(0x0f)); }
  static I high_nibbles(I a) { return low_nibbles(_mm256_srli_epi16(a, 4)); }
  static I quad(const unsigned char* p) {
    int four;
    __builtin_memcpy(&four, p, sizeof four);
    return set_int(four);
  }
  template <int at, int bits>
  static F field(I a) {
    return to_float(_mm256_and_si256(_mm256_srli_epi32(a, at), set_int((1 << bits) - 1)));
  }
};

}  // namespace
}  // namespace l4::cpu
