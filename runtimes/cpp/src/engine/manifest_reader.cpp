#include "engine/manifest_reader.hpp"

#include <algorithm>
#include <cmath>

#include "engine/fields.hpp"

namespace l4::engine {

namespace {

constexpr const char* kFormat = "l4export-engine";
constexpr std::int64_t kFormatVersion = 3;
const std::initializer_list<std::string_view> kDtypes = {"float32", "float16", "bfloat16", "int64", "int8", "uint8"};
const std::initializer_list<std::string_view> kFloats = {"fp32", "fp16", "bf16"};

void check_format(const json::Value& raw, const std::string& where) {
  const json::Value *format = raw.find("format"), *number = raw.find("format_version");
  if (format == nullptr || !format->is_string() || format->string() != kFormat) {
    throw bad_input(where + ": not an l4export manifest; build the engine again");
  }
  const std::int64_t version = number != nullptr && number->is_integer() ? number->integer() : 0;
  if (version < 1) throw bad_input(where + ": format_version is not a positive number; build the engine again");
  if (version == kFormatVersion) return;
  const bool older = version < kFormatVersion;
  throw bad_input(where + ": format version " + std::to_string(version) + " is " + (older ? "older" : "newer") +
                  " than this l4export reads (" + std::to_string(kFormatVersion) + "); " +
                  (older ? kBuildAgain : "upgrade l4export"));
}

std::vector<std::string> read_requires(const Fields& fields) {
  std::vector<std::string> names = fields.texts("requires");
  for (const std::string& name : names) {
    if (name != kCpuKernels && name != kPackedWeights && name != kVision) {
      throw bad_input(fields.where() + ": requires " + show(name) +
                      ", which this l4export does not know; upgrade l4export");
    }
  }
  return names;
}

Precision read_precision(const Fields& fields) {
  Precision found;
  if (fields.has(kVision)) found.vision = fields.choice(kVision, kFloats);
  found.weights = fields.choice("weights", kFloats);
  found.compute = fields.choice("compute", kFloats);
  found.kv_cache = fields.choice("kv_cache", {"fp32", "fp16", "bf16", "int8", "int4"});
  found.activations = fields.choice("activations", {"fp32", "fp16", "bf16", "fp8"});
  found.quant = fields.text("quant");
  return found;
}

TensorSpec read_tensor(const Fields& fields) {
  TensorSpec found;
  found.name = fields.text("name");
  found.dtype = fields.choice("dtype", kDtypes);
  found.shape = fields.shape("shape");
  return found;
}

std::vector<TensorSpec> read_inputs(const Fields& fields) {
  std::vector<TensorSpec> found;
  for (const Fields& input : fields.children("inputs")) {
    found.push_back(read_tensor(input));
    found.back().optional = input.flag("optional");
  }
  return found;
}

std::vector<TensorSpec> read_outputs(const Fields& fields) {
  std::vector<TensorSpec> found;
  for (const Fields& output : fields.children("outputs")) found.push_back(read_tensor(output));
  return found;
}

std::map<std::string, CallRange> read_profile(const Fields& fields) {
  std::map<std::string, CallRange> found;
  for (const auto& [quantity, limits] : fields.named()) {
    CallRange range;
    range.least = limits.count("min");
    range.likeliest = limits.count("opt");
    range.most = limits.count("max");
    if (range.least > range.likeliest || range.likeliest > range.most) {
      fields.refuse(quantity, "has not min <= opt <= max");
    }
    found.emplace(quantity, range);
  }
  return found;
}

EnginePart read_part(const Fields& fields) {
  const std::vector<std::int64_t> layers = fields.counts("layers", 0);
  if (layers.size() != 2) fields.refuse("layers", "is not [first, behind the last]");
  EnginePart found;
  found.first_layer = layers[0];
  found.behind_last = layers[1];
  found.graph = fields.file("graph");
  found.engine = fields.file("engine");
  found.inputs = read_inputs(fields);
  found.outputs = read_outputs(fields);
  return found;
}

// A version such as 7.5, of at most three digits each.
bool is_version(const std::string& text) {
  const std::size_t dot = text.find('.');
  const auto digits = [](std::string_view part) {
    return !part.empty() && part.size() <= 3 && part.find_first_not_of("0123456789") == std::string_view::npos;
  };
  return dot != std::string::npos && digits(std::string_view(text).substr(0, dot)) &&
         digits(std::string_view(text).substr(dot + 1));
}

std::string read_version(const Fields& fields, const char* name) {
  std::string text = fields.text(name);
  if (!is_version(text)) fields.refuse(name, "is " + show(text) + "; expected a version such as 7.5");
  return text;
}

DeviceNeeds read_needs(const Fields& fields) {
  return {read_version(fields, "compute_capability"), read_version(fields, "cuda")};
}

Runtime read_runtime(const Fields& fields) {
  Runtime found;
  if (fields.has("min_version")) found.min_version = read_version(fields, "min_version");
  found.name = fields.text("name");
  found.provider = fields.text("provider");
  return found;
}

Graph read_graph(const Fields& fields) {
  Graph found;
  found.file = fields.file("file");
  found.runtime = read_runtime(fields.child("runtime"));
  found.inputs = read_inputs(fields);
  found.outputs = read_outputs(fields);
  for (const Fields& profile : fields.children("profiles")) found.profiles.push_back(read_profile(profile));
  for (const Fields& part : fields.children("parts")) found.parts.push_back(read_part(part));
  if (!fields.value("needs").is_null()) found.needs = read_needs(fields.child("needs"));
  return found;
}

Graph read_check(const Fields& fields) {
  Graph found = read_graph(fields);
  CheckCalls check;
  check.layers = fields.counts("layers", 0);
  check.operators = fields.texts("operators");
  check.start = fields.count("start", 0);
  check.calls = fields.counts("calls", 1);
  check.record = fields.file("record");
  check.rounded = fields.flag("rounded");
  found.check = std::move(check);
  return found;
}

Named<Graph> read_graphs(const Fields& fields) {
  Named<Graph> found;
  for (const auto& [name, graph] : fields.named()) {
    found.add(name, name == kCheck ? read_check(graph) : read_graph(graph));
  }
  return found;
}

bool is_finite(const json::Value& value) {
  if (value.is_array()) return std::all_of(value.array().begin(), value.array().end(), is_finite);
  if (value.is_object()) {
    const auto& members = value.object().members();
    return std::all_of(members.begin(), members.end(), [](const auto& member) { return is_finite(member.second); });
  }
  return !value.is_number() || std::isfinite(value.number());
}

json::Value read_options(const Fields& fields) {
  const Fields groups = fields.child("options");
  groups.child("weights");
  groups.child("decoder");
  if (!is_finite(groups.raw())) fields.refuse("options", "holds what is no JSON");
  return groups.raw();
}

storage::FileRecord read_record(const Fields& fields) {
  storage::FileRecord record;
  record.bytes = static_cast<std::uint64_t>(fields.count("bytes", 0));
  record.sha256 = fields.text("sha256");
  if (record.sha256.size() != 64 || record.sha256.find_first_not_of("0123456789abcdef") != std::string::npos) {
    fields.refuse("sha256", "is not 64 hexadecimal digits");
  }
  return record;
}

Named<storage::FileRecord> read_records(const Fields& fields) {
  Named<storage::FileRecord> found;
  for (const auto& [name, record] : fields.files()) found.add(name, read_record(record));
  return found;
}

PackedWeight read_packed_weight(const Fields& fields) {
  const json::Value& bits = fields.value("bits");
  if (!bits.is_number() || (bits.number() != 4 && bits.number() != 8)) {
    fields.refuse("bits", "is " + show(bits) + "; expected 4 or 8");
  }
  PackedWeight found;
  found.name = fields.text("name");
  found.layout = fields.choice("layout", {"mixed_gemm_sm80"});
  found.bits = fields.count("bits");
  found.file = fields.file("file");
  found.offset = fields.count("offset", 0);
  found.shape = fields.counts("shape", 1);
  return found;
}

}  // namespace

Manifest read_fields(const json::Value& raw, const std::string& where) {
  check_format(raw, where);
  const Fields fields(raw, "", where);
  const Fields kv_cache = fields.child("kv_cache"), prefill = fields.child("prefill");
  Manifest m;
  m.requires_features = read_requires(fields);
  const auto needs = [&](const char* feature) {
    return std::find(m.requires_features.begin(), m.requires_features.end(), feature) != m.requires_features.end();
  };
  std::vector<Fields> packed;
  if (needs(kPackedWeights)) packed = fields.children(kPackedWeights);
  m.generator = fields.text("generator");
  m.target = fields.text("target");
  m.model = read_model_config(fields.child("model").raw(), where + ": model");
  m.precision = read_precision(fields.child("precision"));
  m.max_context = fields.count("max_context");
  m.kv_layout = kv_cache.choice("layout", {"concat", "static", "chunked"});
  const Fields storage = kv_cache.child("storage");
  m.kv_storage.dtype = storage.choice("dtype", kDtypes);
  m.kv_storage.channels_per_element = storage.count("channels_per_element");
  for (const Fields& layer : kv_cache.children("layers")) {
    std::string kind = layer.choice("kind", {"chunked", "full"});
    m.kv_layers.push_back({std::move(kind), layer.count_or_null("capacity")});
  }
  m.prefill_max_tokens = prefill.count("max_tokens_per_call");
  m.prefill_cut = prefill.count_or_null("cut_at_multiples_of");
  m.graphs = read_graphs(fields.child("graphs"));
  fields.texts("passes");
  m.options = read_options(fields);
  read_records(fields.child("source"));
  m.files = read_records(fields.child("files"));
  for (const Fields& weight : packed) m.packed_weights.push_back(read_packed_weight(weight));
  if (fields.has(kVision)) m.vision = read_vision_config(fields.child(kVision).raw(), where + ": " + kVision);
  return m;
}

}  // namespace l4::engine
