// The operators for tests and benchmarks, by ctypes: one thread, nothing checked. No interface for anyone else.
#include <cstring>

#include "choice.hpp"
#include "linear.hpp"
#include "moe.hpp"

#define L4CPU_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace l4::cpu;

const Kernels* named(const char* name) {
  for (const Kernels* const* all = runnable_kernels(); *all != nullptr; all++)
    if (std::strcmp((*all)->name, name) == 0) return *all;
  return nullptr;
}

}  // namespace

// A matrix's shape and coding, as ctypes has it.
struct l4cpu_format {
  std::int64_t rows, columns, bits, block, zero_points;
};

static Format format_of(const l4cpu_format& f) { return {f.rows, f.columns, f.bits, f.block, f.zero_points != 0}; }

// The name of the i-th instruction set that this processor runs, the fastest first; NULL behind the last.
L4CPU_EXPORT const char* l4cpu_isa(int i) {
  const Kernels* const* all = runnable_kernels();
  while (i > 0 && *all != nullptr) i--, all++;
  return *all == nullptr ? nullptr : (*all)->name;
}

L4CPU_EXPORT void l4cpu_linear(const char* isa, const l4cpu_format* format, int int8_activations,
                               const std::uint8_t* tiles, const float* x, std::int64_t rows, const float* bias,
                               float* y) {
  Serial serial;
  const Activations activations = int8_activations != 0 ? Activations::int8 : Activations::float32;
  linear(*named(isa), {format_of(*format), activations}, tiles, x, rows, bias, y, serial);
}

// `formats` and `tiles`: gate_up and down of the experts, gate_up and down of the shared expert (tiles NULL: none).
L4CPU_EXPORT void l4cpu_moe(const char* isa, const l4cpu_format* formats, int int8_activations, std::int64_t experts,
                            std::int64_t k, const std::uint8_t* const* tiles, const float* x, const float* logits,
                            std::int64_t rows, float* y) {
  Serial serial;
  Moe m;
  m.expert = {format_of(formats[0]), format_of(formats[1])};
  m.shared = {format_of(formats[2]), format_of(formats[3])};
  m.experts = experts, m.k = k;
  m.activations = int8_activations != 0 ? Activations::int8 : Activations::float32;
  moe(*named(isa), m, {tiles[0], tiles[1]}, {tiles[2], tiles[3]}, x, logits, rows, y, serial);
}

// h[i] = silu(gate[i]) * up[i]; `count` is a multiple of 16.
L4CPU_EXPORT void l4cpu_gate(const char* isa, const float* gate, const float* up, std::int64_t count, float* h) {
  for (std::int64_t i = 0; i < count; i += 16) named(isa)->gate(gate + i, up + i, h + i);
}

// Reads `lines` of 64 bytes once, front to back, and does next to nothing with them: a kernel cannot be faster.
L4CPU_EXPORT std::uint64_t l4cpu_read(const std::uint64_t* memory, std::int64_t lines) {
  std::uint64_t sums[8] = {};
  for (std::int64_t line = 0; line < lines; line++, memory += 8) {
    __builtin_prefetch(memory + 512);
    for (int i = 0; i < 8; i++) sums[i] ^= memory[i];
  }
  std::uint64_t all = 0;
  for (std::uint64_t sum : sums) all ^= sum;
  return all;
}
