#include "sampling/random_stream.hpp"

#include <unistd.h>

#include "base/error.hpp"

namespace l4::sampling {

std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  auto [c0, c1, c2, c3] = counter;
  auto [k0, k1] = key;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t even = std::uint64_t{0xD2511F53} * c0, odd = std::uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<std::uint32_t>(odd >> 32) ^ c1 ^ k0;
    c2 = static_cast<std::uint32_t>(even >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(odd);
    c3 = static_cast<std::uint32_t>(even);
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return {c0, c1, c2, c3};
}

double uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t draw) {
  const auto low = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
  const auto high = [](std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); };
  const auto words = philox({low(draw), high(draw), low(stream), high(stream)}, {low(seed), high(seed)});
  return static_cast<double>((std::uint64_t{words[1]} << 32 | words[0]) >> 11) * 0x1p-53;
}

std::uint64_t fresh_seed() {
  std::uint64_t seed = 0;
  if (getentropy(&seed, sizeof seed) != 0) throw environment_lacks("the system gives no random bytes: give a seed");
  return seed;
}

}  // namespace l4::sampling
