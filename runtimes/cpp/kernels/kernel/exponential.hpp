// exp(x) by the same operations in every instruction set. To be included by files of isa/ only.
#pragma once

namespace l4::cpu {

// n = round(x * log2(e)); r = (x - n ln2_high) - n ln2_low by two fma; 2^n * polynomial(r), Horner's scheme by fma.
// Within 2 units in the last place of exp(x) for -87 <= x <= 88; e^-87 below; infinity above 88. NaN gives any number.
template <class V>
[[gnu::always_inline]] static inline typename V::F exponential(typename V::F x) {
  using F = typename V::F;
  const F clamped = V::max(V::min(x, V::set(88.0f)), V::set(-87.0f));
  const F n = V::round(V::mul(clamped, V::set(1.44269504f)));
  F r = V::fma(n, V::set(-0.693359375f), clamped);
  r = V::fma(n, V::set(2.12194440e-4f), r);
  F p = V::set(1.98756912e-4f);
  const float lower[] = {1.39819994e-3f, 8.33345205e-3f, 4.16657962e-2f, 1.66666660e-1f, 0.5f, 1.0f, 1.0f};
  for (float c : lower) p = V::fma(p, r, V::set(c));
  return V::infinite_above(x, V::set(88.0f), V::scale_by_power_of_two(p, n));
}

template <class V>
static void gate_unit(const float* gate, const float* up, float* h) {
  for (int i = 0; i < 16; i += V::lanes) {
    const auto g = V::load(gate + i);
    const auto e = exponential<V>(V::sub(V::set(0.0f), g));
    V::store(h + i, V::mul(V::div(g, V::add(V::set(1.0f), e)), V::load(up + i)));
  }
}

template <class V>
static float sigmoid(float x) {
  const auto one = V::set(1.0f);
  float values[V::lanes];
  V::store(values, V::div(one, V::add(one, exponential<V>(V::set(-x)))));
  return x != x ? x : values[0];
}

}  // namespace l4::cpu
