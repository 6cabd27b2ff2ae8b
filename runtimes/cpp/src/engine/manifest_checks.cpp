// Each check relies on those before it, which found nothing.
#include "engine/manifest_checks.hpp"

#include <algorithm>
#include <set>
#include <unordered_map>

#include "base/error.hpp"
#include "base/shown.hpp"
#include "engine/decoder_interface.hpp"
#include "engine/fields.hpp"
#include "engine/kv_storage.hpp"
#include "engine/vision_interface.hpp"

namespace l4::engine {

namespace {

std::string text(std::int64_t number) { return std::to_string(number); }
std::string text(const Runtime& runtime) { return runtime.name + " " + runtime.provider; }
bool is_same(const Runtime& a, const Runtime& b) { return a.name == b.name && a.provider == b.provider; }

// The slots of a layer, for sequences of up to `max_context` tokens.
std::int64_t slots_of(const Manifest& m, std::size_t layer) {
  const auto chunk = m.model.attention_chunk_size;
  const bool local = m.kv_layout == "chunked" && chunk && m.model.chunked_layers[layer];
  return local ? std::min(*chunk, m.max_context) : m.max_context;
}

// How long sequences are and how they are fed.
void check_sequences(const Manifest& m, const std::string& where) {
  const std::int64_t limit = m.model.max_position_embeddings;
  const auto cut = m.kv_layout == "chunked" ? m.model.attention_chunk_size : std::nullopt;
  if (m.max_context > limit) {
    throw refusal(where, "max_context", "is " + text(m.max_context) + ", and the model takes " + text(limit) + " tokens");
  }
  if (m.prefill_cut != cut) {
    throw refusal(where, "prefill.cut_at_multiples_of",
                  "is " + show(m.prefill_cut) + "; layout " + m.kv_layout + " with attention_chunk_size " +
                      show(m.model.attention_chunk_size) + " has " + show(cut));
  }
  const std::int64_t most = std::min(m.max_context, cut.value_or(m.max_context));
  if (m.prefill_max_tokens > most) {
    throw refusal(where, "prefill.max_tokens_per_call",
                  "is " + text(m.prefill_max_tokens) + "; a call can have " + text(most));
  }
}

// One cache for each layer, of its kind and size.
void check_kv_cache(const Manifest& m, const std::string& where) {
  if (static_cast<std::int64_t>(m.kv_layers.size()) != m.model.num_hidden_layers) {
    throw refusal(where, "kv_cache.layers",
                  "has " + std::to_string(m.kv_layers.size()) + " entries; the model has " +
                      text(m.model.num_hidden_layers) + " layers");
  }
  const KVStorage due = kv_storage_of(m.precision.kv_cache);
  if (m.kv_storage.dtype != due.dtype || m.kv_storage.channels_per_element != due.channels_per_element) {
    throw refusal(where, "kv_cache.storage", "is not that of precision.kv_cache " + m.precision.kv_cache);
  }
  for (std::size_t i = 0; i < m.kv_layers.size(); ++i) {
    const KVLayer& layer = m.kv_layers[i];
    const std::string path = indexed("kv_cache.layers", i), kind = m.model.chunked_layers[i] ? "chunked" : "full";
    if (layer.kind != kind) {
      throw refusal(where, path + ".kind", "is " + layer.kind + "; by model.chunked_layers it is " + kind);
    }
    std::optional<std::int64_t> capacity;
    if (m.kv_layout != "concat") capacity = slots_of(m, i);
    if (layer.capacity != capacity) {
      throw refusal(where, path + ".capacity",
                    "is " + show(layer.capacity) + "; in layout " + m.kv_layout + " it is " + show(capacity));
    }
  }
}

bool is_list_of_texts(const json::Value* value) {
  return value != nullptr && value->is_array() &&
         std::all_of(value->array().begin(), value->array().end(), [](const json::Value& item) { return item.is_string(); });
}

bool is_rule(const json::Value& rule) {
  const json::Value *kind = rule.find("kind"), *as_stored = rule.find("as_stored");
  return kind != nullptr && kind->is_string() && (as_stored == nullptr || as_stored->is_boolean()) &&
         is_list_of_texts(rule.find("weights")) && is_list_of_texts(rule.find("but"));
}

bool is_policy(const json::Value& policy) {
  const json::Value *level = policy.find("accuracy_level"), *rules = policy.find("rules");
  const bool is_level = level != nullptr && level->is_integer() && level->integer() >= 0 && level->integer() <= 4;
  return is_level && rules != nullptr && rules->is_array() &&
         std::all_of(rules->array().begin(), rules->array().end(), is_rule);
}

// Dtypes, and what is quantised.
void check_precision(const Manifest& m, const std::string& where) {
  const std::string &compute = m.precision.compute, &activations = m.precision.activations;
  if (activations != compute && activations != "fp8") {
    throw refusal(where, "precision.activations",
                  "is " + activations + "; expected precision.compute (" + compute + ") or fp8");
  }
  std::set<std::string> kinds;
  if (const json::Value* policy = m.options.find("weights")->find("policy")) {
    if (!is_policy(*policy)) throw refusal(where, "options.weights.policy", "does not have rules and accuracy_level");
    for (const json::Value& rule : policy->find("rules")->array()) kinds.insert(rule.find("kind")->string());
  }
  std::string due;
  for (const std::string& kind : kinds) (due += due.empty() ? "" : ", ") += kind;
  if (due.empty()) due = "none";
  if (m.precision.quant != due) {
    throw refusal(where, "precision.quant", "is " + show(m.precision.quant) + "; by options.weights it is " + show(due));
  }
}

// What holds of every graph, whatever it computes.
void check_graphs(const Manifest& m, const std::string& where) {
  if (m.graphs.find(kDecoder) == nullptr) throw refusal(where, "graphs.decoder", "is missing");
  for (const auto& [name, graph] : m.graphs) {
    const std::string path = "graphs." + name;
    const auto check_listed = [&](const std::string& field, const std::string& file) {
      if (m.files.find(file) == nullptr) {
        throw refusal(where, field, "is " + show(file) + ", which is not among the files");
      }
    };
    check_listed(path + ".file", graph.file);
    for (std::size_t i = 0; i < graph.parts.size(); ++i) {
      check_listed(indexed(path + ".parts", i) + ".graph", graph.parts[i].graph);
      check_listed(indexed(path + ".parts", i) + ".engine", graph.parts[i].engine);
    }
    if (graph.parts.empty() != graph.profiles.empty()) {
      throw refusal(where, path + ".profiles",
                    "do not go with its parts: compiled engines have both, other graphs neither");
    }
    if (graph.runtime.name == "tensorrt" && graph.parts.empty()) {
      throw refusal(where, path + ".parts", "lists no compiled engine, and its runtime is tensorrt");
    }
    if (graph.runtime.name == "onnxruntime" && !graph.parts.empty()) {
      throw refusal(where, path + ".parts", "lists compiled engines, and its runtime is onnxruntime");
    }
  }
}

// Inputs and outputs, and profiles for calls of every size.
void check_decoder(const Manifest& m, const std::string& where) {
  const Graph& decoder = m.decoder();
  DecoderInterface(m, 0, m.model.num_hidden_layers).check(decoder.inputs, decoder.outputs, where, "graphs.decoder");
  std::vector<std::pair<std::int64_t, std::int64_t>> ranges;
  for (std::size_t i = 0; i < decoder.profiles.size(); ++i) {
    const auto tokens = decoder.profiles[i].find("tokens");
    if (tokens == decoder.profiles[i].end()) {
      throw refusal(where, indexed("graphs.decoder.profiles", i) + ".tokens", "is missing");
    }
    ranges.emplace_back(tokens->second.least, tokens->second.most);
  }
  std::sort(ranges.begin(), ranges.end());
  std::int64_t reached = 0;
  for (const auto& [least, most] : ranges) {
    if (least <= reached + 1) reached = std::max(reached, most);
  }
  if (!ranges.empty() && reached < m.prefill_max_tokens) {
    throw refusal(where, "graphs.decoder.profiles",
                  "take no call of " + text(reached + 1) + " tokens; prefill.max_tokens_per_call is " +
                      text(m.prefill_max_tokens));
  }
}

// Parts hold every layer, in order, and each takes what those before it give; a compiled engine has no defaults.
void check_parts(const Manifest& m, const std::string& where) {
  const std::vector<EnginePart>& parts = m.decoder().parts;
  const std::string path = "graphs.decoder.parts";
  std::int64_t reached = 0;
  bool in_order = true;
  for (const EnginePart& part : parts) {
    in_order = in_order && part.first_layer == reached && part.first_layer < part.behind_last;
    reached = part.behind_last;
  }
  if (!parts.empty() && !(in_order && reached == m.model.num_hidden_layers)) {
    throw refusal(where, path,
                  "do not hold each of the layers 0 to " + text(m.model.num_hidden_layers - 1) + " once, in order");
  }
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const EnginePart& part = parts[i];
    DecoderInterface(m, part.first_layer, part.behind_last).check(part.inputs, part.outputs, where, indexed(path, i));
    for (std::size_t number = 0; number < part.inputs.size(); ++number) {
      if (part.inputs[number].optional) {
        throw refusal(where, indexed(indexed(path, i) + ".inputs", number) + ".optional",
                      "is true; a compiled engine needs " + part.inputs[number].name);
      }
    }
  }
}

// It stands for the decoder on a CPU, call by call.
void check_portable(const Manifest& m, const std::string& where) {
  const Graph& decoder = m.decoder();
  const Graph& portable = m.portable();
  if (&portable == &decoder) return;
  if (!is_same(portable.runtime, {"onnxruntime", "cpu"})) {
    throw refusal(where, "graphs.portable.runtime",
                  "is " + text(portable.runtime) + "; a portable graph is for onnxruntime cpu");
  }
  const char* problem = "are not those of graphs.decoder";
  if (!same(portable.inputs, decoder.inputs)) throw refusal(where, "graphs.portable.inputs", problem);
  if (!same(portable.outputs, decoder.outputs)) throw refusal(where, "graphs.portable.outputs", problem);
}

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

// Each lies within a file, in an order that its shape has, and a CPU has a graph without it.
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
      for (const std::int64_t size : weight.shape) (shape += shape.empty() ? "" : " x ") += text(size);
      throw refusal(where, path + ".shape",
                    "is " + shape + ", which " + weight.layout + " of " + text(weight.bits) + " bits has not");
    }
    const storage::FileRecord* file = m.files.find(weight.file);
    if (file == nullptr) {
      throw refusal(where, path + ".file", "is " + show(weight.file) + ", which is not among the files");
    }
    if (!lies_within(weight, file->bytes)) {
      throw refusal(where, path + ".offset",
                    "is " + text(weight.offset) + ", and the weight goes beyond the end of " + weight.file);
    }
  }
}

// The manifest of an engine that had the layers of its check graph alone, as far as the decoder's interface goes.
Manifest of_check_layers(const Manifest& m, const std::vector<std::int64_t>& layers) {
  Manifest smaller;
  smaller.model = m.model;
  smaller.model.num_hidden_layers = static_cast<std::int64_t>(layers.size());
  smaller.precision = m.precision;
  smaller.kv_layout = m.kv_layout;
  smaller.vision = m.vision;
  for (const std::int64_t layer : layers) smaller.kv_layers.push_back(m.kv_layers[static_cast<std::size_t>(layer)]);
  return smaller;
}

// A decoder of some layers for the same runtime, and calls that its context has room for.
void check_check(const Manifest& m, const std::string& where) {
  const Graph* graph = m.check();
  if (graph == nullptr) return;
  const CheckCalls& check = *graph->check;
  const auto& layers = check.layers;
  const std::int64_t count = m.model.num_hidden_layers;
  const bool rising = std::adjacent_find(layers.begin(), layers.end(), std::greater_equal<>()) == layers.end();
  if (layers.empty() || !rising || layers.back() >= count) {
    throw refusal(where, "graphs.check.layers", "are not some of the layers 0 to " + text(count - 1) + ", in order");
  }
  __int128 end = check.start;
  for (const std::int64_t tokens : check.calls) end += tokens;
  if (check.calls.empty() || end > m.max_context) {
    throw refusal(where, "graphs.check.calls",
                  "do not lie between position " + text(check.start) + " and max_context, " + text(m.max_context));
  }
  if (m.files.find(check.record) == nullptr) {
    throw refusal(where, "graphs.check.record", "is " + show(check.record) + ", which is not among the files");
  }
  if (!is_same(graph->runtime, m.decoder().runtime)) {
    throw refusal(where, "graphs.check.runtime",
                  "is " + text(graph->runtime) + ", and the decoder's is " + text(m.decoder().runtime));
  }
  const Manifest smaller = of_check_layers(m, layers);
  DecoderInterface(smaller, 0, smaller.model.num_hidden_layers)
      .check(graph->inputs, graph->outputs, where, "graphs.check");
}

}  // namespace

void check_manifest(const Manifest& manifest, const std::string& where) {
  for (const auto check : {check_sequences, check_kv_cache, check_precision, check_graphs, check_tower, check_decoder,
                           check_parts, check_portable, check_packed_weights, check_check}) {
    check(manifest, where);
  }
}

}  // namespace l4::engine
