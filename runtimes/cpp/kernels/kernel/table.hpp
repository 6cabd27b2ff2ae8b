// The table of one instruction set, from its vector type. To be included by files of isa/ only.
//
// V has, for vectors F of `lanes` floats and I of as many int32 (or 4 times as many bytes): loads and stores, the
// arithmetic that the kernels name, and
//
//   accumulators                   vectors of integer sums that registers hold besides operands
//   wide_passes                    whether they hold 24 vectors of float sums
//   keep(a)                        a, in a register: gcc would rather read it from memory at each use
//   quad(p)                        4 bytes in every lane
//   dot_nibbles(s, codes, quad)    s + the dot product of 4 unsigned codes, as low_ and high_nibbles gives them, and 4
//                                  signed bytes in every lane; high_nibbles gives them times 2^high_shift
//   dot_bytes(s, codes, quad)      s + the same of codes of 8 bits, each less byte_bias
//   field<at, bits>(codes)         the field of `bits` bits at bit `at` of every lane, as float
//
// V is in an unnamed namespace, so that what is made of it belongs to one file, compiled for one instruction set.
#pragma once

#include "kernel/exponential.hpp"
#include "kernel/fill.hpp"
#include "kernel/multiply_decoded.hpp"
#include "kernel/multiply_float.hpp"
#include "kernel/multiply_int8.hpp"

namespace l4::cpu {

template <class V>
static constexpr int most_int8_rows = V::accumulators * V::lanes / 32;
template <class V>
static constexpr int most_float_rows = V::accumulators / 8;  // 4 sums for each of two halves

template <class V, int bits, int count>
[[gnu::always_inline]] static inline void multiply_pass(const std::uint8_t* tile, const Format& format,
                                                        const Rows& rows, std::int64_t first, TileResults y) {
  if (rows.kind == Activations::int8) return multiply_int8_rows<V, bits, count>(tile, format, rows, first, y);
  if constexpr (count <= most_float_rows<V>) multiply_float_rows<V, bits, count>(tile, format, rows, first, y);
}

template <class V, int bits, int limit = most_int8_rows<V>>
static void multiply_rows(std::int64_t count, const std::uint8_t* tile, const Format& format, const Rows& rows,
                          std::int64_t first, TileResults y) {
  if constexpr (limit > 1) {
    if (count < limit) return multiply_rows<V, bits, limit - 1>(count, tile, format, rows, first, y);
  }
  multiply_pass<V, bits, limit>(tile, format, rows, first, y);
}

// As many rows a pass as registers allow, in passes of about the same number; a pass stays in one panel.
template <class V>
static void multiply(const std::uint8_t* tile, const Format& format, const Rows& rows, std::int64_t first,
                     std::int64_t count, TileResults y) {
  const bool is_int8 = rows.kind == Activations::int8;
  const std::int64_t most = is_int8 ? most_int8_rows<V> : most_float_rows<V>;
  if (!is_int8 && count > 2 * most) {
    return (format.bits == 4 ? multiply_decoded<V, 4> : multiply_decoded<V, 8>)(tile, format, rows, first, count, y);
  }
  for (const std::int64_t end = first + count; first < end;) {
    const std::int64_t in_panel = rows.panel - first % rows.panel;
    const std::int64_t left = end - first < in_panel ? end - first : in_panel;
    const std::int64_t passes = (left + most - 1) / most, now = (left + passes - 1) / passes;
    if (format.bits == 4) {
      multiply_rows<V, 4>(now, tile, format, rows, first, y);
    } else {
      multiply_rows<V, 8>(now, tile, format, rows, first, y);
    }
    first += now;
    y += kTileRows * now;
  }
}

template <class V>
constexpr Kernels table(const char* name) {
  return {name, fill_row<V>, multiply<V>, gate_unit<V>, sigmoid<V>};
}

}  // namespace l4::cpu
