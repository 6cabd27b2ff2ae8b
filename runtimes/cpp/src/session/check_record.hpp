// What a check graph was fed at build, and what a CPU gave: the file beside it, which is untrusted as the rest. Its
// tensors:
//
//   ids      int32 [n]          the tokens, as the check's calls are fed
//   columns  int32 [m]          some of the vocabulary, in order
//   sampled  float32 [p, m]     the logits of those, at every position of which logits are kept
//   whole    float32 [2, V]     all logits, at the end of the first call and of the last
//   features float16 [i, r, D]  of engines that see images: what stands at the i x r image tokens, image by image
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/manifest.hpp"

namespace l4 {

struct CheckRecord {
  std::vector<std::int32_t> ids, columns;
  std::vector<float> sampled, whole;
  std::vector<std::byte> features;
};

// Read the record of a check graph, whose decoder has the manifest `decoder`. Raises Error: L4_BAD_INPUT for one that
// is damaged or of something else, L4_STORAGE where reading fails.
CheckRecord read_check_record(const std::string& path, const engine::CheckCalls& check,
                              const engine::Manifest& decoder);

// How many positions there are of which logits are kept: all of the first call, one of each other.
std::int64_t kept_positions(const engine::CheckCalls& check);

}  // namespace l4
