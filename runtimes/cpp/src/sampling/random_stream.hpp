// The random numbers of sampling: a function of seed, stream and number, which any language computes alike.
#pragma once

#include <array>
#include <cstdint>

namespace l4::sampling {

// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011) of a counter and a key.
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

// Number `draw` of a stream of a seed, one of the 2^53 multiples of 2^-53 in [0, 1): with the seed as key and draw and
// stream as counter, low words first, ((word 1 << 32 | word 0) >> 11) * 2^-53.
double uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t draw);

// A seed that nobody can foresee. Raises Error (L4_ENVIRONMENT) where the system gives no random bytes.
std::uint64_t fresh_seed();

}  // namespace l4::sampling
