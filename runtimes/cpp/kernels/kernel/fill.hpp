// One row of activations, scaled and stored for the kernels. To be included by files of isa/ only.
#pragma once

#include "rows.hpp"

namespace l4::cpu {

static constexpr int kTinyMagnitude = (127 - 119) << 23;  // bits of 2^-119
static constexpr int kInfinity = 0x7f800000;

// One block: codes to `codes`, which all lie in one slab; see `Rows` for the formula.
template <class V>
[[gnu::always_inline]] static inline void quantise_piece(const float* x, int n, typename V::F factor,
                                                         typename V::F inverse, signed char* codes,
                                                         typename V::I& sum) {
  for (int i = 0; i < n; i += V::lanes) {
    const auto code = V::to_int(V::mul(V::mul(V::load(x + i), factor), inverse));
    V::store_bytes(codes + i, code);
    sum = V::add(sum, code);
  }
}

template <class V>
static void fill_int8(const Rows& rows, std::int64_t r, const float* x, float by) {
  const auto factor = V::set(by);
  unsigned char* const row = rows.row(r);
  const std::int64_t slab = rows.slab_bytes();
  std::int64_t at = rows.first_block(r);
  for (std::int64_t k = 0; k < rows.columns; k += rows.block, at += rows.panel) {
    auto most = V::zero_int();
    for (std::int64_t i = 0; i < rows.block; i += V::lanes) {
      most = V::max(most, V::magnitude_bits(V::mul(V::load(x + k + i), factor)));
    }
    const int bits = V::largest(most);
    float scale = 0, inverse = 0;
    if (bits >= kInfinity) {
      scale = __builtin_nanf("");
    } else if (bits >= kTinyMagnitude) {
      float a;
      __builtin_memcpy(&a, &bits, sizeof a);
      scale = a / 127.0f;
      inverse = 127.0f / a;
    }
    auto sum = V::zero_int();
    for (std::int64_t i = k; i < k + rows.block; i += 16) {
      auto* const codes = reinterpret_cast<signed char*>(row + i / 64 * slab + i % 64);
      if (inverse == 0) {
        __builtin_memset(codes, 0, 16);
      } else {
        quantise_piece<V>(x + i, 16, factor, V::set(inverse), codes, sum);
      }
    }
    rows.scales[at] = scale;
    rows.sums[at] = V::total(sum);
  }
}

template <class V>
static void fill_float(const Rows& rows, std::int64_t r, const float* x, float by) {
  const auto factor = V::set(by);
  unsigned char* const row = rows.row(r);
  for (std::int64_t k = 0; k < rows.columns; k += 16) {
    auto* const slab = reinterpret_cast<float*>(row + k / 16 * rows.slab_bytes());
    for (int i = 0; i < 16; i += V::lanes) V::store(slab + i, V::mul(V::load(x + k + i), factor));
  }
}

template <class V>
static void fill_row(const Rows& rows, std::int64_t r, const float* x, float factor) {
  return rows.kind == Activations::int8 ? fill_int8<V>(rows, r, x, factor) : fill_float<V>(rows, r, x, factor);
}

}  // namespace l4::cpu
