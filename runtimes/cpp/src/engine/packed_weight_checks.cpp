#include "engine/packed_weight_checks.hpp"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "base/shown.hpp"
#include "engine/fields.hpp"

namespace l4::engine {

namespace {

// Whether codes [n, k] of `bits` bits can lie in the order mixed_gemm_sm80: docs/reference/manifest.md.
bool fits(const PackedWeight& weight) {
  return weight.shape.size() == 3 && weight.shape[1] % 16 == 0 && weight.shape[2] * 8 / weight.bits % 64 == 0;
}

// Whether a weight lies within a file of so many bytes.
bool lies_within(const PackedWeight& weight, std::uint64_t bytes) {
  unsigned __int128 size = 1;
  for (const std::int64_t factor : weight.shape) {
    size *= static_cast<std::uint64_t>(factor);
    if (size > bytes) return false;
  }
  return static_cast<std::uint64_t>(weight.offset) + static_cast<std::uint64_t>(size) <= bytes;  // each below 2^53
}

}  // namespace

void check_packed_weights(const Manifest& m, const std::string& where) {
  const std::vector<PackedWeight>& packed = m.packed_weights;
  const auto& features = m.requires_features;
  if (packed.empty() && std::find(features.begin(), features.end(), kPackedWeights) != features.end()) {
    throw refusal(where, kPackedWeights, "is empty, and the engine requires it");
  }
  if (packed.empty()) return;
  if (m.graphs.find(kPortable) == nullptr) {
    throw refusal(where, "graphs.portable", "is missing, and weights are packed");
  }
  if (m.files.find(kUnpackedWeights) != nullptr) {
    throw refusal(where, std::string("files.") + kUnpackedWeights,
                  "is there; it stands for weights that lie packed in other files");
  }
  std::unordered_map<std::string, int> counts;
  for (const PackedWeight& weight : packed) ++counts[weight.name];
  for (const PackedWeight& weight : packed) {
    if (const int count = counts[weight.name]; count > 1) {
      throw refusal(where, kPackedWeights, "has " + std::to_string(count) + " weights called " + show(weight.name));
    }
  }
  for (std::size_t i = 0; i < packed.size(); ++i) {
    const PackedWeight& weight = packed[i];
    const std::string path = indexed(kPackedWeights, i);
    if (!fits(weight)) {
      std::string shape;
      for (const std::int64_t size : weight.shape) (shape += shape.empty() ? "" : " x ") += std::to_string(size);
      throw refusal(
          where, path + ".shape",
          "is " + shape + ", which " + weight.layout + " of " + std::to_string(weight.bits) + " bits has not");
    }
    const storage::FileRecord* file = m.files.find(weight.file);
    if (file == nullptr) {
      throw refusal(where, path + ".file", "is " + show(weight.file) + ", which is not among the files");
    }
    if (!lies_within(weight, file->bytes)) {
      throw refusal(where, path + ".offset",
                    "is " + std::to_string(weight.offset) + ", and the weight goes beyond the end of " + weight.file);
    }
  }
}

}  // namespace l4::engine
