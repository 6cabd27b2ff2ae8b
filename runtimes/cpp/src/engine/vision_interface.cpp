#include "engine/vision_interface.hpp"

#include <algorithm>

#include "engine/decoder_interface.hpp"
#include "engine/fields.hpp"
#include "engine/kv_storage.hpp"

namespace l4::engine {

namespace {

void check_claims(const Manifest& m, const std::string& where) {
  const auto& features = m.requires_features;
  const std::pair<const char*, bool> claims[] = {
      {"requires", std::find(features.begin(), features.end(), kVision) != features.end()},
      {"precision.vision", m.precision.vision.has_value()},
      {"graphs.vision", m.graphs.find(kVision) != nullptr},
  };
  for (const auto& [field, claimed] : claims) {
    if (claimed == m.vision.has_value()) continue;
    throw refusal(
        where, field,
        std::string(claimed ? "has" : "lacks") + " vision, which the manifest " + (claimed ? "lacks" : "has"));
  }
}

// The only tensor, as Python writes it.
std::string only(const TensorSpec& tensor) {
  std::string shape;
  for (const Dimension& dimension : tensor.shape) {
    (shape += shape.empty() ? "" : ", ") +=
        dimension.name.empty() ? std::to_string(dimension.size) : show(dimension.name);
  }
  return "are not " + tensor.name + " alone, " + tensor.dtype + " [" + shape + "]";
}

}  // namespace

void check_tower(const Manifest& m, const std::string& where) {
  check_claims(m, where);
  if (!m.vision) return;
  const Graph& tower = *m.graphs.find(kVision);
  const std::string path = "graphs.vision";
  if (m.vision->image_token_id >= m.model.vocab_size) {
    throw refusal(where, "vision.image_token_id",
                  "is " + std::to_string(m.vision->image_token_id) + ", outside the vocabulary of " +
                      std::to_string(m.model.vocab_size) + " tokens");
  }
  const std::int64_t side = m.vision->image_size;
  const std::vector<TensorSpec> inputs = {{"pixel_values", "float32", {{0, "tiles"}, {3, ""}, {side, ""}, {side, ""}}}};
  const std::vector<TensorSpec> outputs = {
      {"image_features", kv_storage_of(m.precision.compute).dtype, {{0, "rows"}, {m.model.hidden_size, ""}}}};
  const auto check = [&](const auto& declared, const std::string& at) {
    if (!same(declared.inputs, inputs)) throw refusal(where, at + ".inputs", only(inputs[0]));
    if (!same(declared.outputs, outputs)) throw refusal(where, at + ".outputs", only(outputs[0]));
  };
  check(tower, path);
  for (std::size_t i = 0; i < tower.parts.size(); ++i) {
    check(tower.parts[i], path + ".parts[" + std::to_string(i) + "]");
  }
  for (std::size_t i = 0; i < tower.profiles.size(); ++i) {
    if (tower.profiles[i].count("tiles") == 0) {
      throw refusal(where, path + ".profiles[" + std::to_string(i) + "].tiles", "is missing");
    }
  }
  if (tower.parts.size() > 1) throw refusal(where, path + ".parts", "are several; a tower is one engine");
}

}  // namespace l4::engine
