#include "engine/model_config.hpp"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <set>

#include "base/error.hpp"
#include "base/shown.hpp"
#include "engine/fields.hpp"

namespace l4::engine {

namespace {

constexpr std::int64_t power(int exponent) { return std::int64_t{1} << exponent; }

// Typed, bounded access to one JSON object that describes a model; every field that is asked for must be there.
class ConfigFields {
 public:
  ConfigFields(const json::Value& raw, std::string where) : raw_(raw), where_(std::move(where)) {
    if (!raw.is_object()) throw bad_input(where_ + ": expected a JSON object, found " + show(raw) + "; " + kBuildAgain);
  }

  const std::string& where() const { return where_; }

  [[noreturn]] void refuse(const std::string& name, const std::string& problem) const {
    throw bad_input(where_ + ": " + name + " " + problem + "; " + kBuildAgain);
  }

  void refuse_if(bool broken, const std::string& name, const std::string& problem) const {
    if (broken) refuse(name, problem);
  }

  const json::Value& value(const std::string& name) const {
    const json::Value* found = raw_.find(name);
    if (found == nullptr) refuse(name, "is missing");
    return *found;
  }

  std::int64_t integer(const std::string& name, std::int64_t low, std::int64_t high) const {
    return integer_of(name, value(name), low, high);
  }

  std::optional<std::int64_t> integer_or_null(const std::string& name, std::int64_t low, std::int64_t high) const {
    if (value(name).is_null()) return std::nullopt;
    return integer(name, low, high);
  }

  // A finite number above 0, or 0 for `attn_scale`: no temperature; the other numbers are divisors and bases.
  double number(const std::string& name) const {
    const json::Value& found = value(name);
    const double number = found.is_number() ? found.number() : -1;
    if (!(number > 0 && number < 1e30) && !(number == 0 && name == "attn_scale")) {
      refuse(name, "is " + show(found) + "; expected a finite number above 0");
    }
    return number;
  }

  bool flag(const std::string& name) const { return flag_of(name, value(name)); }

  std::vector<std::int64_t> integers(const std::string& name) const {
    std::vector<std::int64_t> found;
    for (const json::Value& item : array(name)) {
      found.push_back(integer_of(name + "[" + std::to_string(found.size()) + "]", item, 0, power(24)));
    }
    return found;
  }

  std::vector<bool> flags(const std::string& name) const {
    std::vector<bool> found;
    for (const json::Value& item : array(name)) {
      found.push_back(flag_of(name + "[" + std::to_string(found.size()) + "]", item));
    }
    return found;
  }

 private:
  const json::Array& array(const std::string& name) const {
    const json::Value& found = value(name);
    if (!found.is_array()) refuse(name, "is " + show(found) + "; expected an array");
    return found.array();
  }

  // JSON does not distinguish 64.0 from 64, and some programs write one for the other.
  std::int64_t integer_of(const std::string& name, const json::Value& value, std::int64_t low,
                          std::int64_t high) const {
    const double number = value.is_number() ? value.number() : -1;  // below every `low`
    if (!(number >= static_cast<double>(low) && number <= static_cast<double>(high)) || number != std::floor(number)) {
      refuse(name, "is " + show(value) + "; expected an integer from " + std::to_string(low) + " to " +
                       std::to_string(high));
    }
    return static_cast<std::int64_t>(number);  // exact: every `high` is far below 2^53
  }

  bool flag_of(const std::string& name, const json::Value& value) const {
    if (!value.is_boolean()) refuse(name, "is " + show(value) + "; expected true or false");
    return value.boolean();
  }

  const json::Value& raw_;
  std::string where_;
};

// RoPE is computed by the graph; its parameters need only be what the Python runtime takes. Whether they are YaRN's.
bool check_rope_scaling(const ConfigFields& rope) {
  const json::Value& kind = rope.value("rope_type");
  const std::string name = kind.is_string() ? kind.string() : "";
  const bool known = name == "linear" || name == "llama3" || name == "yarn";
  if (known) rope.number("factor");
  if (name == "linear") return false;
  rope.value("original_max_position_embeddings");
  if (!known) rope.refuse("rope_type", "is " + show(kind) + "; expected linear, llama3 or yarn");
  const auto numbers = [&](std::initializer_list<const char*> fields) {
    for (const char* field : fields) rope.number(field);
  };
  if (name == "llama3") {
    numbers({"low_freq_factor", "high_freq_factor"});
  } else {
    numbers({"attention_factor", "beta_fast", "beta_slow"});
  }
  rope.integer("original_max_position_embeddings", 1, power(40));
  if (name == "yarn") rope.flag("truncate");
  return name == "yarn";
}

}  // namespace

ModelConfig read_model_config(const json::Value& raw, const std::string& where) {
  const ConfigFields fields(raw, where);
  const json::Value& scaling = fields.value("rope_scaling");
  ModelConfig c;
  c.vocab_size = fields.integer("vocab_size", 1, power(24));
  c.hidden_size = fields.integer("hidden_size", 1, power(20));
  fields.integer("intermediate_size", 1, power(20));
  fields.integer("intermediate_size_mlp", 1, power(20));
  c.num_hidden_layers = fields.integer("num_hidden_layers", 1, 1024);
  c.num_attention_heads = fields.integer("num_attention_heads", 1, power(16));
  c.num_key_value_heads = fields.integer("num_key_value_heads", 1, power(16));
  c.head_dim = fields.integer("head_dim", 2, power(16));
  const std::int64_t experts = fields.integer("num_local_experts", 0, 4096);
  const std::int64_t active = fields.integer("num_experts_per_tok", 0, 4096);
  c.max_position_embeddings = fields.integer("max_position_embeddings", 1, power(40));
  c.attention_chunk_size = fields.integer_or_null("attention_chunk_size", 1, power(40));
  c.bos_token_id = fields.integer_or_null("bos_token_id", 0, power(24));
  c.pad_token_id = fields.integer_or_null("pad_token_id", 0, power(24));
  for (const char* name : {"rms_norm_eps", "floor_scale", "attn_scale"}) fields.number(name);
  for (const char* name : {"use_qk_norm", "attn_temperature_tuning", "tie_word_embeddings"}) fields.flag(name);
  c.eos_token_ids = fields.integers("eos_token_ids");
  const std::vector<std::int64_t> moe = fields.integers("moe_layers");
  const std::vector<bool> rope = fields.flags("rope_layers");
  c.chunked_layers = fields.flags("chunked_layers");
  const double theta = fields.number("rope_theta");
  const bool yarn = !scaling.is_null() && check_rope_scaling(ConfigFields(scaling, where + ": rope_scaling"));

  // What is fine one by one and contradicts each other.
  const auto layers = static_cast<std::size_t>(c.num_hidden_layers);
  const std::string entries = "must have " + std::to_string(layers) + " entries, one a layer";
  const std::int64_t last = moe.empty() ? 0 : *std::max_element(moe.begin(), moe.end());
  const auto outside = [&](std::int64_t token) { return token >= c.vocab_size; };
  fields.refuse_if(c.num_attention_heads % c.num_key_value_heads != 0, "num_key_value_heads",
                   "must divide num_attention_heads");
  fields.refuse_if(c.head_dim % 2 != 0, "head_dim", "is " + std::to_string(c.head_dim) + "; RoPE needs an even one");
  fields.refuse_if(rope.size() != layers, "no_rope_layers (rope_layers)", entries);
  fields.refuse_if(c.chunked_layers.size() != layers, "layer_types (chunked_layers)", entries);
  fields.refuse_if(last >= c.num_hidden_layers, "moe_layers",
                   "names layer " + std::to_string(last) + " of " + std::to_string(layers) + " (from 0)");
  fields.refuse_if(std::set<std::int64_t>(moe.begin(), moe.end()).size() < moe.size(), "moe_layers",
                   "names a layer twice");
  fields.refuse_if(!moe.empty() && experts == 0, "num_local_experts", "is 0, but moe_layers names layers");
  fields.refuse_if(!moe.empty() && (active < 1 || active > experts), "num_experts_per_tok",
                   "is " + std::to_string(active) + "; expected 1 to " + std::to_string(experts) +
                       ", the number of experts");
  fields.refuse_if(yarn && theta == 1, "rope_theta", "is 1, which has no frequencies for rope_type yarn to tell apart");
  fields.refuse_if(!c.attention_chunk_size &&
                       std::find(c.chunked_layers.begin(), c.chunked_layers.end(), true) != c.chunked_layers.end(),
                   "attention_chunk_size", "is null, but chunked_layers names layers");
  fields.refuse_if(outside(c.bos_token_id.value_or(0)) || outside(c.pad_token_id.value_or(0)) ||
                       std::any_of(c.eos_token_ids.begin(), c.eos_token_ids.end(), outside),
                   "bos_token_id, eos_token_id or pad_token_id",
                   "is outside the vocabulary of " + std::to_string(c.vocab_size) + " tokens");
  return c;
}

VisionConfig read_vision_config(const json::Value& raw, const std::string& where) {
  const ConfigFields fields(raw, where);
  const std::int64_t hidden = fields.integer("hidden_size", 4, power(16));
  const std::int64_t intermediate = fields.integer("intermediate_size", 1, power(20));
  fields.integer("num_hidden_layers", 1, 1024);
  const std::int64_t heads = fields.integer("num_attention_heads", 1, power(12));
  VisionConfig c;
  c.image_size = fields.integer("image_size", 1, power(14));
  const std::int64_t patch = fields.integer("patch_size", 1, power(12));
  fields.integer("projector_size", 1, power(20));
  c.image_token_id = fields.integer("image_token_id", 0, power(24));
  const double ratio = fields.number("pixel_shuffle_ratio");
  fields.number("rope_theta");

  const double blocks = std::nearbyint(1 / ratio);
  const bool whole = ratio <= 1 && blocks <= static_cast<double>(power(14)) && ratio == 1 / blocks;
  const std::int64_t block = whole ? static_cast<std::int64_t>(blocks) : 0;
  const std::int64_t grid = c.image_size / patch, width = hidden / heads, inner = hidden * block * block;
  const std::string square = std::to_string(grid) + "x" + std::to_string(grid);
  const auto text = [](std::int64_t number) { return std::to_string(number); };
  fields.refuse_if(hidden % heads != 0, "num_attention_heads",
                   "is " + text(heads) + "; it must divide hidden_size " + text(hidden));
  fields.refuse_if(width % 4 != 0, "hidden_size", "gives heads of " + text(width) + "; 2-D RoPE needs a multiple of 4");
  fields.refuse_if(c.image_size % patch != 0, "image_size",
                   "is " + text(c.image_size) + ", no multiple of patch_size " + text(patch));
  fields.refuse_if(grid * grid > power(16), "image_size",
                   "gives " + square + " patches; expected " + text(power(16)) + " at most");
  fields.refuse_if(block == 0, "pixel_shuffle_ratio",
                   "is " + python_repr(ratio) + "; expected one over a whole number");
  fields.refuse_if(grid % block != 0, "pixel_shuffle_ratio",
                   "is " + python_repr(ratio) + ", which does not cut " + square + " patches into whole blocks");
  fields.refuse_if(
      intermediate != inner, "intermediate_size",
      "is " + text(intermediate) + "; the adapter takes hidden_size / pixel_shuffle_ratio^2 = " + text(inner));
  c.rows_per_tile = (grid / block) * (grid / block);
  return c;
}

}  // namespace l4::engine
