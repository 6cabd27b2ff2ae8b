// AMX for many rows of int8 activations; all else as AVX-512 with VNNI has it.
#include "isa/avx512_vnni.hpp"
#include "isa/tables.hpp"
#include "kernel/table.hpp"

namespace l4::cpu {
namespace {

using V = Avx512Vnni;

constexpr std::int64_t kSlab = 64;  // columns of a slab of activations: an operand's width

// Eight tiles of 16 rows of 64 bytes. A constant, because gcc 12 takes the operand of ldtilecfg for 8 bytes and drops
// what else is stored there.
struct alignas(64) Configuration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr Configuration kConfiguration{};

// Tiles as they are wanted here; afterwards as they were, for whoever else uses them in this thread.
class ConfiguredTiles {
 public:
  ConfiguredTiles() {
    _tile_storeconfig(&before_);
    _tile_loadconfig(&kConfiguration);
  }
  ~ConfiguredTiles() {
    __asm__ volatile("" ::: "memory");
    if (before_.palette == 0) {
      _tile_release();
    } else {
      _tile_loadconfig(&before_);
    }
  }

 private:
  Configuration before_;
};

// The codes of a block, a byte each, as [groups][2 halves of the rows][16 rows x 4 columns]: so do 8-bit codes lie.
const std::uint8_t* codes_of_block(const std::uint8_t* groups, const Format& format, std::uint8_t* space) {
  if (format.bits == 8) return groups;
  for (std::int64_t g = 0; g < format.block / 4; g++) {
    const __m512i both = V::load_bytes(groups + 64 * g);
    __builtin_prefetch(groups + kPrefetchBytes + 64 * g);
    _mm512_store_si512(space + 128 * g, V::low_nibbles(both));
    _mm512_store_si512(space + 128 * g + 64, V::low_nibbles(_mm512_srli_epi16(both, 4)));
  }
  return space;
}

// Integer sums [16 rows][16 columns of y] of one block: two panels times the two halves of a tile's rows.
struct alignas(64) Sums {
  std::int32_t of[2][2][16][16];
};

// One block of 64 or 128 columns. `second` is false where there is one panel alone.
void multiply_block(const std::uint8_t* codes, std::int64_t slabs, const unsigned char* slab, std::int64_t next_panel,
                    bool second, Sums& sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (std::int64_t k = 0; k < slabs; k++, codes += 32 * kSlab, slab += 16 * kSlab) {
    _tile_loadd(4, slab, 64);
    _tile_loadd(6, codes, 128);
    _tile_loadd(7, codes + 64, 128);
    _tile_dpbsud(0, 4, 6);  // signed activations times unsigned codes
    _tile_dpbsud(1, 4, 7);
    if (second) {
      _tile_loadd(5, slab + next_panel, 64);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, sums.of[0][0], 64);
  _tile_stored(1, sums.of[0][1], 64);
  if (second) {
    _tile_stored(2, sums.of[1][0], 64);
    _tile_stored(3, sums.of[1][1], 64);
  }
}

// The sums of one block go into y [rows][32], as in multiply_int8_rows.
void add_block(const std::uint8_t* block, const Format& format, const Rows& rows, std::int64_t at, std::int64_t count,
               const Sums& sums, TileResults y) {
  for (int half = 0; half < 2; half++) {
    const auto scales = V::load_half(block + 32 * half);
    auto zero = V::set_int(1 << (format.bits - 1));
    if (format.zero_points) zero = V::load_uint16(block + kLineBytes + 32 * half);
    for (std::int64_t m = 0; m < count; m++) {
      const std::int64_t place = at + m / 16 * 16 * rows.blocks() + m % 16;
      const auto sum = _mm512_load_si512(sums.of[m / 16][half][m % 16]);
      const auto dot = V::sub(sum, V::mul(zero, V::set_int(rows.sums[place])));
      float* const out = y + kTileRows * m + 16 * half;
      V::store(out, V::fma(V::to_float(dot), V::mul(scales, V::set(rows.scales[place])), V::load(out)));
    }
  }
}

// All rows block by block, so that codes are unpacked once for all of them.
void multiply_panels(const std::uint8_t* tile, const Format& format, const Rows& rows, std::int64_t first,
                     std::int64_t count, TileResults y) {
  const ConfiguredTiles configured;
  const std::int64_t slabs = format.block / kSlab, next_panel = rows.slabs() * rows.slab_bytes();
  alignas(64) std::uint8_t space[32 * 128];
  Sums sums;
  for (std::int64_t i = 0; i < kTileRows * count; i++) y[i] = 0;
  for (std::int64_t b = 0; b < format.blocks(); b++, tile += format.block_bytes()) {
    const std::uint8_t* const codes = codes_of_block(tile + format.header_bytes(), format, space);
    for (std::int64_t m = 0; m < count; m += 32) {
      const std::int64_t left = count - m < 32 ? count - m : 32;
      const unsigned char* const slab = rows.row(first + m) + b * slabs * rows.slab_bytes();
      multiply_block(codes, slabs, slab, next_panel, left > 16, sums);
      add_block(tile, format, rows, rows.first_block(first + m) + 16 * b, left, sums, y + kTileRows * m);
    }
  }
}

constexpr Kernels vnni = table<V>("");

// Blocks of 16 and 32 columns would leave most of a tile empty, and so would few rows.
void multiply_by_amx(const std::uint8_t* tile, const Format& format, const Rows& rows, std::int64_t first,
                     std::int64_t count, TileResults y) {
  const bool fits = rows.kind == Activations::int8 && rows.panel == 16 && format.block % kSlab == 0 && count > 8;
  (fits ? multiply_panels : vnni.multiply)(tile, format, rows, first, count, y);
}

constexpr Kernels amx = {"amx-int8", vnni.fill, multiply_by_amx, vnni.gate, vnni.sigmoid};

}  // namespace

constexpr Kernels amx_kernels = amx;

}  // namespace l4::cpu
