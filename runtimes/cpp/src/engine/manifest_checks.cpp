// Each check relies on those before it, which found nothing.
#include "engine/manifest_checks.hpp"

#include <algorithm>
#include <set>

#include "base/error.hpp"
#include "base/shown.hpp"
#include "engine/fields.hpp"
#include "engine/graph_checks.hpp"
#include "engine/kv_storage.hpp"
#include "engine/packed_weight_checks.hpp"
#include "engine/vision_interface.hpp"

namespace l4::engine {

namespace {

std::string text(std::int64_t number) { return std::to_string(number); }

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
    throw refusal(where, "max_context",
                  "is " + text(m.max_context) + ", and the model takes " + text(limit) + " tokens");
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
         std::all_of(value->array().begin(), value->array().end(),
                     [](const json::Value& item) { return item.is_string(); });
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
    throw refusal(where, "precision.quant",
                  "is " + show(m.precision.quant) + "; by options.weights it is " + show(due));
  }
}

}  // namespace

void check_manifest(const Manifest& manifest, const std::string& where) {
  for (const auto check : {check_sequences, check_kv_cache, check_precision, check_graphs, check_tower, check_decoder,
                           check_parts, check_portable, check_packed_weights, check_check}) {
    check(manifest, where);
  }
}

}  // namespace l4::engine
