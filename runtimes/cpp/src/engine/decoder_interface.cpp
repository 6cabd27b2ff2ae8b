#include "engine/decoder_interface.hpp"

#include <algorithm>
#include <utility>

#include "engine/fields.hpp"
#include "engine/kv_storage.hpp"

namespace l4::engine {

namespace {

// Inputs of every call beside the caches, all int64, with their shapes.
const std::vector<std::pair<std::string, std::vector<Dimension>>>& call_inputs() {
  static const std::vector<std::pair<std::string, std::vector<Dimension>>> inputs = {
      {"input_ids", {{0, "batch"}, {0, "sequence"}}},
      {"attention_mask", {{0, "batch"}, {0, "total"}}},
      {"logits_to_keep", {}},
      {"mask_start", {{0, "batch_or_1"}}},
      {"cache_start", {{0, "batch_or_1"}}},
  };
  return inputs;
}

bool may_be_optional(const std::string& name) {
  return name == "logits_to_keep" || name == "mask_start" || name == "cache_start" || name == "image_features";
}

std::string listed(const std::vector<Dimension>& shape) {
  std::string text = "[";
  for (const Dimension& dimension : shape) {
    if (text.size() > 1) text += ", ";
    text += dimension.name.empty() ? std::to_string(dimension.size) : dimension.name;
  }
  return (text + "]").substr(0, 100);
}

std::string without(const std::string& name, std::string_view prefix) {
  return name.compare(0, prefix.size(), prefix) == 0 ? name.substr(prefix.size()) : name;
}


}  // namespace

bool same(const std::vector<Dimension>& a, const std::vector<Dimension>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Dimension& x, const Dimension& y) { return x.size == y.size && x.name == y.name; });
}

bool same(const std::vector<TensorSpec>& a, const std::vector<TensorSpec>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const TensorSpec& x, const TensorSpec& y) {
    return x.name == y.name && x.dtype == y.dtype && same(x.shape, y.shape) && x.optional == y.optional;
  });
}

void DecoderInterface::Side::add(std::string name, std::string dtype, std::vector<Dimension> shape) {
  index.emplace(name, tensors.size());
  tensors.push_back({std::move(name), std::move(dtype), std::move(shape)});
}

DecoderInterface::DecoderInterface(const Manifest& manifest, std::int64_t first_layer, std::int64_t behind_last)
    : manifest_(manifest), first_layer_(first_layer), behind_last_(behind_last) {
  const ModelConfig& model = manifest.model;
  const std::string compute = kv_storage_of(manifest.precision.compute).dtype;
  const bool is_last = behind_last == model.num_hidden_layers;
  const auto hidden_states = [&](Side& side, std::int64_t layer) {
    side.add("hidden_states." + std::to_string(layer), compute,
             {{0, "batch"}, {0, "sequence"}, {model.hidden_size, ""}});
  };
  for (const auto& [name, shape] : call_inputs()) {
    inputs_.add(name, "int64", shape);
    if ((first_layer != 0 || !is_last) && !(first_layer == 0 && name == "input_ids")) spared_.insert(name);
  }
  if (first_layer != 0) hidden_states(inputs_, first_layer);
  if (manifest.vision && first_layer == 0) {
    inputs_.add("image_features", compute, {{0, "image_tokens"}, {model.hidden_size, ""}});
  }
  add_caches(inputs_, "past_key_values", "past");
  if (is_last) {
    outputs_.add("logits", "float32", {{0, "batch"}, {0, "logits_sequence"}, {model.vocab_size, ""}});
  } else {
    hidden_states(outputs_, behind_last);
  }
  add_caches(outputs_, "present", "present");
}

// Keys and values of every layer; `growing` is the name of the number of slots in layout concat.
void DecoderInterface::add_caches(Side& side, const std::string& prefix, const std::string& growing) {
  const KVStorage storage = kv_storage_of(manifest_.precision.kv_cache);
  const std::int64_t heads = manifest_.model.num_key_value_heads;
  const std::int64_t width = manifest_.model.head_dim / storage.channels_per_element;
  for (std::int64_t layer = first_layer_; layer < behind_last_; ++layer) {
    const bool local = manifest_.kv_layout == "chunked" && manifest_.kv_layers[layer].kind == "chunked";
    const std::string slots = manifest_.kv_layout == "concat" ? growing : local ? "chunk_capacity" : "capacity";
    for (const char* kind : {".key", ".value"}) {
      side.add(prefix + "." + std::to_string(layer) + kind, storage.dtype,
               {{0, "batch"}, {heads, ""}, {0, slots}, {width, ""}});
    }
  }
}

// The shape of a cache that the build has given its number of slots; other shapes as they are.
std::vector<Dimension> DecoderInterface::fixed(const TensorSpec& expected) const {
  std::vector<Dimension> shape = expected.shape;
  if (shape.size() != 4 || manifest_.kv_layout == "concat") return shape;
  const std::size_t dot = expected.name.find('.');
  shape[2] = {*manifest_.kv_layers[std::stoul(expected.name.substr(dot + 1))].capacity, ""};
  return shape;
}

void DecoderInterface::check(const std::vector<TensorSpec>& inputs, const std::vector<TensorSpec>& outputs,
                             const std::string& where, const std::string& path) const {
  std::unordered_map<std::string, int> counts;
  for (const auto* side : {&inputs, &outputs}) {
    for (const TensorSpec& tensor : *side) ++counts[tensor.name];
  }
  for (const auto* side : {&inputs, &outputs}) {
    for (const TensorSpec& tensor : *side) {
      const int count = counts[tensor.name];
      if (count > 1) {
        throw refusal(where, path, "has " + std::to_string(count) + " inputs and outputs called " + show(tensor.name));
      }
    }
  }
  check_side(inputs, inputs_, where, path + ".inputs");
  check_side(outputs, outputs_, where, path + ".outputs");
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    if (inputs[i].optional && !may_be_optional(inputs[i].name)) {
      throw refusal(where, indexed(path + ".inputs", i) + ".optional",
                    "is true, and nothing can stand in for " + inputs[i].name);
    }
  }
  check_in_place(inputs, outputs, where, path);
}

void DecoderInterface::check_side(const std::vector<TensorSpec>& declared, const Side& expected,
                                  const std::string& where, const std::string& path) const {
  std::unordered_set<std::string> names;
  for (std::size_t i = 0; i < declared.size(); ++i) {
    const TensorSpec& tensor = declared[i];
    const auto found = expected.index.find(tensor.name);
    if (found == expected.index.end()) {
      throw refusal(where, indexed(path, i) + ".name",
                    "is " + show(tensor.name) + ", which a decoder of these layers does not have");
    }
    const TensorSpec& due = expected.tensors[found->second];
    if (tensor.dtype != due.dtype) {
      throw refusal(where, indexed(path, i) + ".dtype",
                    "of " + tensor.name + " is " + tensor.dtype + "; expected " + due.dtype);
    }
    if (!same(tensor.shape, due.shape) && !same(tensor.shape, fixed(due))) {
      throw refusal(where, indexed(path, i) + ".shape",
                    "of " + tensor.name + " is " + listed(tensor.shape) + "; expected " + listed(due.shape));
    }
    names.insert(tensor.name);
  }
  for (const TensorSpec& due : expected.tensors) {
    if (names.count(due.name) == 0 && spared_.count(due.name) == 0) throw refusal(where, path, "lack " + due.name);
  }
}

// A cache that stays where it is has one shape, as input and as output.
void DecoderInterface::check_in_place(const std::vector<TensorSpec>& inputs, const std::vector<TensorSpec>& outputs,
                                      const std::string& where, const std::string& path) const {
  if (manifest_.kv_layout == "concat") return;
  std::unordered_map<std::string, const std::vector<Dimension>*> past;
  for (const TensorSpec& tensor : inputs) past[without(tensor.name, "past_key_values.")] = &tensor.shape;
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const std::string cache = without(outputs[i].name, "present.");
    const auto found = past.find(cache);
    if (found != past.end() && !same(*found->second, outputs[i].shape)) {
      throw refusal(where, indexed(path + ".outputs", i) + ".shape",
                    "of " + outputs[i].name + " is not that of past_key_values." + cache);
    }
  }
}

}  // namespace l4::engine
