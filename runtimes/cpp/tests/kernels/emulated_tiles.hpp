// AMX's instructions in plain C++, for processors without them. Included before every file by a compiler's option.
#pragma once

#if defined(__x86_64__) && defined(__cplusplus)
#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#define L4CPU_EMULATED_TILES

namespace emulated_tiles {
namespace {

struct Configuration {
  std::uint8_t palette, start_row, reserved[14];
  std::uint16_t row_bytes[16];
  std::uint8_t rows[16];
};

struct State {
  Configuration configuration;
  std::uint8_t tiles[8][16][64];
};

[[maybe_unused]] State& state() {
  static thread_local State of_this_thread{};
  return of_this_thread;
}

// A processor refuses these, too.
[[maybe_unused]] void expect(bool condition) {
  if (!condition) std::abort();
}

[[maybe_unused]] void load_configuration(const void* from) {
  std::memcpy(&state().configuration, from, 64);
  std::memset(state().tiles, 0, sizeof state().tiles);
  expect(state().configuration.palette == 1 && state().configuration.start_row == 0);
}
[[maybe_unused]] void store_configuration(void* to) { std::memcpy(to, &state().configuration, 64); }
[[maybe_unused]] void release() { state() = State{}; }

[[maybe_unused]] int rows(int tile) {
  expect(state().configuration.palette == 1 && state().configuration.rows[tile] > 0);
  return state().configuration.rows[tile];
}
[[maybe_unused]] int row_bytes(int tile) { return state().configuration.row_bytes[tile]; }

[[maybe_unused]] void zero(int tile) { expect(rows(tile) > 0), std::memset(state().tiles[tile], 0, 16 * 64); }
[[maybe_unused]] void load(int tile, const void* from, long stride) {
  zero(tile);
  for (int r = 0; r < rows(tile); r++)
    std::memcpy(state().tiles[tile][r], static_cast<const char*>(from) + r * stride, row_bytes(tile));
}
[[maybe_unused]] void store(int tile, void* to, long stride) {
  for (int r = 0; r < rows(tile); r++)
    std::memcpy(static_cast<char*>(to) + r * stride, state().tiles[tile][r], row_bytes(tile));
}

// c[m][n] += sum over k and j of a[m][4 k + j] (signed) * b[k][4 n + j] (unsigned)
[[maybe_unused]] void dot(int c, int a, int b) {
  expect(row_bytes(a) == 4 * rows(b) && rows(c) == rows(a) && row_bytes(c) == row_bytes(b));
  for (int m = 0; m < rows(c); m++) {
    for (int n = 0; n < row_bytes(c) / 4; n++) {
      std::int32_t sum;
      std::memcpy(&sum, &state().tiles[c][m][4 * n], 4);
      for (int k = 0; k < rows(b); k++)
        for (int j = 0; j < 4; j++)
          sum += static_cast<std::int8_t>(state().tiles[a][m][4 * k + j]) * state().tiles[b][k][4 * n + j];
      std::memcpy(&state().tiles[c][m][4 * n], &sum, 4);
    }
  }
}

}  // namespace
}  // namespace emulated_tiles

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbsud
#define _tile_loadconfig(p) emulated_tiles::load_configuration(p)
#define _tile_storeconfig(p) emulated_tiles::store_configuration(p)
#define _tile_release() emulated_tiles::release()
#define _tile_zero(t) emulated_tiles::zero(t)
#define _tile_loadd(t, p, s) emulated_tiles::load(t, p, s)
#define _tile_stored(t, p, s) emulated_tiles::store(t, p, s)
#define _tile_dpbsud(c, a, b) emulated_tiles::dot(c, a, b)
#endif
