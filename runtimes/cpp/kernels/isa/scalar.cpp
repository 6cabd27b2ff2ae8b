// Plain C++, for processors that nothing else fits: what the other instruction sets must give, to the bit.
#include "isa/tables.hpp"
#include "kernel/table.hpp"

namespace l4::cpu {
namespace {

template <class T>
struct Four {
  T at[4];
};

template <class F>
auto each(F&& f) {
  return Four<decltype(f(0))>{{f(0), f(1), f(2), f(3)}};
}

template <class T, class Pointer>
T read(Pointer p) {
  T value;
  __builtin_memcpy(&value, p, sizeof value);
  return value;
}

float from_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude < 0x400) {  // zero or subnormal: magnitude * 2^-24
    const float value = static_cast<float>(magnitude) * 5.9604644775390625e-8f;
    return sign ? -value : value;
  }
  const std::uint32_t exponent = magnitude >= 0x7c00 ? 0x70000000 : 0x38000000;  // infinity and NaN keep theirs
  const std::uint32_t bits = sign | ((magnitude << 13) + exponent);
  return read<float>(&bits);
}

struct Scalar {
  using F = Four<float>;
  using I = Four<int>;
  static constexpr int lanes = 4, accumulators = 8, high_shift = 0, byte_bias = 0;
  static constexpr bool wide_passes = false;

  static F set(float x) { return {{x, x, x, x}}; }
  static F load(const float* p) { return read<F>(p); }
  static F keep(F a) { return a; }
  static void store(float* p, F a) { __builtin_memcpy(p, &a, sizeof a); }
  static F add(F a, F b) { return each([&](int i) { return a.at[i] + b.at[i]; }); }
  static F sub(F a, F b) { return each([&](int i) { return a.at[i] - b.at[i]; }); }
  static F mul(F a, F b) { return each([&](int i) { return a.at[i] * b.at[i]; }); }
  static F div(F a, F b) { return each([&](int i) { return a.at[i] / b.at[i]; }); }
  static F fma(F a, F b, F c) { return each([&](int i) { return __builtin_fmaf(a.at[i], b.at[i], c.at[i]); }); }
  static F min(F a, F b) { return each([&](int i) { return a.at[i] < b.at[i] ? a.at[i] : b.at[i]; }); }
  static F max(F a, F b) { return each([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; }); }
  static F round(F a) { return each([&](int i) { return __builtin_rintf(a.at[i]); }); }
  static F infinite_above(F x, F limit, F y) {
    return each([&](int i) { return x.at[i] > limit.at[i] ? __builtin_inff() : y.at[i]; });
  }
  static F scale_by_power_of_two(F a, F n) {
    return each([&](int i) {
      const int power = (static_cast<int>(n.at[i]) + 127) << 23;
      return a.at[i] * read<float>(&power);
    });
  }
  static F to_float(I a) { return each([&](int i) { return static_cast<float>(a.at[i]); }); }
  static F load_half(const void* p) {
    const auto halves = read<Four<std::uint16_t>>(p);
    return each([&](int i) { return from_half(halves.at[i]); });
  }

  static I zero_int() { return {{0, 0, 0, 0}}; }
  static I set_int(int x) { return {{x, x, x, x}}; }
  static I load_bytes(const std::uint8_t* p) { return read<I>(p); }
  static I load_uint16(const void* p) {
    const auto values = read<Four<std::uint16_t>>(p);
    return each([&](int i) { return static_cast<int>(values.at[i]); });
  }
  static void store_bytes(signed char* p, I a) {
    for (int i = 0; i < 4; i++) p[i] = static_cast<signed char>(a.at[i]);
  }
  static I add(I a, I b) { return each([&](int i) { return a.at[i] + b.at[i]; }); }
  static I sub(I a, I b) { return each([&](int i) { return a.at[i] - b.at[i]; }); }
  static I mul(I a, I b) { return each([&](int i) { return a.at[i] * b.at[i]; }); }
  static I max(I a, I b) { return each([&](int i) { return a.at[i] > b.at[i] ? a.at[i] : b.at[i]; }); }
  template <int by>
  static I shift_right(I a) { return each([&](int i) { return a.at[i] >> by; }); }
  static I magnitude_bits(F a) {
    const auto bits = read<I>(&a);
    return each([&](int i) { return bits.at[i] & 0x7fffffff; });
  }
  static I to_int(F a) { return each([&](int i) { return static_cast<int>(__builtin_rintf(a.at[i])); }); }
  static int largest(I a) {
    int most = a.at[0];
    for (int i = 1; i < 4; i++) most = most < a.at[i] ? a.at[i] : most;
    return most;
  }
  static int total(I a) { return a.at[0] + a.at[1] + a.at[2] + a.at[3]; }

  static I low_nibbles(I a) { return each([&](int i) { return a.at[i] & 0x0f0f0f0f; }); }
  static I high_nibbles(I a) { return each([&](int i) { return (a.at[i] >> 4) & 0x0f0f0f0f; }); }
  static I quad(const unsigned char* p) { return set_int(read<int>(p)); }
  static I dot_bytes(I sum, I codes, I quad) {
    return each([&](int i) {
      int dot = sum.at[i];
      for (int j = 0; j < 32; j += 8) dot += (codes.at[i] >> j & 0xff) * static_cast<signed char>(quad.at[i] >> j);
      return dot;
    });
  }
  static I dot_nibbles(I sum, I codes, I quad) { return dot_bytes(sum, codes, quad); }
  template <int at, int bits>
  static F field(I a) {
    return each([&](int i) { return static_cast<float>(a.at[i] >> at & ((1 << bits) - 1)); });
  }
};

}  // namespace

constexpr Kernels scalar_kernels = table<Scalar>("scalar");

}  // namespace l4::cpu
