// Products and experts with several threads, for the thread sanitizer: ONNX Runtime's threads are not built for it, and
// hide how work is handed over. Ends with 1 where a result is not that of one thread, to the bit.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "isa/tables.hpp"
#include "linear.hpp"
#include "moe.hpp"

namespace {

using namespace l4::cpu;

// Three threads that claim pieces as those of a session do.
class ThreeThreads : public Parallel {
 public:
  void run(std::int64_t count, const std::function<void(std::int64_t)>& piece) override {
    std::atomic<std::int64_t> next{0};
    const auto work = [&] {
      for (std::int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) piece(i);
    };
    std::thread one(work), other(work);
    work();
    one.join();
    other.join();
  }
};

std::mt19937 random_bits;

// Codes of any value, and scales of 2^-10: float16 has them as 0x1400.
std::vector<std::uint8_t> tiles_of(const Format& format, std::int64_t experts) {
  std::vector<std::uint8_t> tiles(static_cast<std::size_t>(experts * format.bytes()));
  for (std::uint8_t& byte : tiles) byte = static_cast<std::uint8_t>(random_bits());
  for (std::size_t block = 0; block < tiles.size(); block += static_cast<std::size_t>(format.block_bytes())) {
    for (std::size_t i = 0; i < 64; i += 2) tiles[block + i] = 0x00, tiles[block + i + 1] = 0x14;
  }
  return tiles;
}

std::vector<float> floats(std::int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(random_bits);
  return values;
}

// Whether f(threads, y) makes the same of y [count] with one thread and with three.
template <class F>
bool agrees(std::int64_t count, F&& f) {
  std::vector<float> alone(static_cast<std::size_t>(count), 1.0f), together(alone.size(), 2.0f);
  Serial serial;
  ThreeThreads three;
  f(serial, alone.data());
  f(three, together.data());
  return std::memcmp(alone.data(), together.data(), alone.size() * sizeof(float)) == 0;
}

bool linear_agrees(Activations activations, std::int64_t rows) {
  const Format format{1000, 256, 4, 32, false};
  const auto tiles = tiles_of(format, 1);
  const auto x = floats(rows * format.columns), bias = floats(format.rows);
  return agrees(rows * format.rows, [&](Parallel& threads, float* y) {
    linear(scalar_kernels, {format, activations}, tiles.data(), x.data(), rows, bias.data(), y, threads);
  });
}

bool moe_agrees(Activations activations, std::int64_t rows) {
  Moe m;
  m.experts = 8, m.k = 2, m.activations = activations;
  m.expert = m.shared = {{512, 128, 4, 32, false}, {128, 256, 8, 64, false}};
  const auto gate_up = tiles_of(m.expert.gate_up, 8), down = tiles_of(m.expert.down, 8);
  const auto shared_gate_up = tiles_of(m.shared.gate_up, 1), shared_down = tiles_of(m.shared.down, 1);
  const auto x = floats(rows * 128), logits = floats(rows * m.experts);
  return agrees(rows * 128, [&](Parallel& threads, float* y) {
    moe(scalar_kernels, m, {gate_up.data(), down.data()}, {shared_gate_up.data(), shared_down.data()}, x.data(),
        logits.data(), rows, y, threads);
  });
}

}  // namespace

int main() {
  bool good = true;
  for (const Activations activations : {Activations::int8, Activations::float32}) {
    for (const std::int64_t rows : {1, 3, 40, 200}) {
      good = linear_agrees(activations, rows) && moe_agrees(activations, rows) && good;
    }
  }
  std::puts(good ? "equal" : "different");
  return good ? 0 : 1;
}
