// aarch64 with dot products of signed bytes (Armv8.2 and later, where they are optional).
#include <arm_neon.h>

#include "isa/tables.hpp"
#include "kernel/table.hpp"

namespace l4::cpu {
namespace {

struct Neon {
  using F = float32x4_t;
  using I = int32x4_t;
  static constexpr int lanes = 4, accumulators = 16, high_shift = 0, byte_bias = 128;
  static constexpr bool wide_passes = true;

  static F set(float x) { return vdupq_n_f32(x); }
  static F load(const float* p) { return vld1q_f32(p); }
  static F keep(F a) {
    __asm__("" : "+w"(a));
    return a;
  }
  static void store(float* p, F a) { vst1q_f32(p, a); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F min(F a, F b) { return vminq_f32(a, b); }
  static F max(F a, F b) { return vmaxq_f32(a, b); }
  static F round(F a) { return vrndnq_f32(a); }
  static F infinite_above(F x, F limit, F y) { return vbslq_f32(vcgtq_f32(x, limit), set(__builtin_inff()), y); }
  static F scale_by_power_of_two(F a, F n) {
    const I power = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), set_int(127)), 23);
    return mul(a, vreinterpretq_f32_s32(power));
  }
  static F to_float(I a) { return vcvtq_f32_s32(a); }
  static F load_half(const void* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(load_four(p)));
  }

  static I zero_int() { return vdupq_n_s32(0); }
  static I set_int(int x) { return vdupq_n_s32(x); }
  static I load_bytes(const std::uint8_t* p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
  static I load_uint16(const void* p) { return vreinterpretq_s32_u32(vmovl_u16(load_four(p))); }
  static void store_bytes(signed char* p, I a) {
    const int16x4_t words = vmovn_s32(a);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    __builtin_memcpy(p, &bytes, 4);
  }
  static I add(I a, I b) { return vaddq_s32(a, b); }
  static I sub(I a, I b) { return vsubq_s32(a, b); }
  static I mul(I a, I b) { return vmulq_s32(a, b); }
  static I max(I a, I b) { return vmaxq_s32(a, b); }
  template <int by>
  static I shift_right(I a) {
    static_assert(by == 0);
    return a;
  }
  static I magnitude_bits(F a) { return vandq_s32(vreinterpretq_s32_f32(a), set_int(0x7fffffff)); }
  static I to_int(F a) { return vcvtnq_s32_f32(a); }
  static int largest(I a) { return vmaxvq_s32(a); }
  static int total(I a) { return vaddvq_s32(a); }

  static I low_nibbles(I a) { return vandq_s32(a, set_int(0x0f0f0f0f)); }
  static I high_nibbles(I a) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(a), 4)); }
  static I quad(const unsigned char* p) {
    int four;
    __builtin_memcpy(&four, p, sizeof four);
    return set_int(four);
  }
  static I dot_nibbles(I sum, I codes, I quad) {
    return vdotq_s32(sum, vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(quad));
  }
  static I dot_bytes(I sum, I codes, I quad) {  // unsigned codes less 128
    return dot_nibbles(sum, veorq_s32(codes, set_int(static_cast<int>(0x80808080))), quad);
  }
  template <int at, int bits>
  static F field(I a) {
    return to_float(vandq_s32(vshlq_s32(a, set_int(-at)), set_int((1 << bits) - 1)));
  }

 private:
  static uint16x4_t load_four(const void* p) {
    uint16x4_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return four;
  }
};

}  // namespace

constexpr Kernels neon_kernels = table<Neon>("neon-dotprod");

}  // namespace l4::cpu
