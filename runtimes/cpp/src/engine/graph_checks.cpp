#include "engine/graph_checks.hpp"

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "base/shown.hpp"
#include "engine/decoder_interface.hpp"
#include "engine/fields.hpp"

namespace l4::engine {

namespace {

std::string called(const Runtime& runtime) { return runtime.name + " " + runtime.provider; }
bool is_same(const Runtime& a, const Runtime& b) { return a.name == b.name && a.provider == b.provider; }

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

}  // namespace

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
                  "take no call of " + std::to_string(reached + 1) + " tokens; prefill.max_tokens_per_call is " +
                      std::to_string(m.prefill_max_tokens));
  }
}

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
    throw refusal(
        where, path,
        "do not hold each of the layers 0 to " + std::to_string(m.model.num_hidden_layers - 1) + " once, in order");
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

void check_portable(const Manifest& m, const std::string& where) {
  const Graph& decoder = m.decoder();
  const Graph& portable = m.portable();
  if (&portable == &decoder) return;
  if (!is_same(portable.runtime, {"onnxruntime", "cpu"})) {
    throw refusal(where, "graphs.portable.runtime",
                  "is " + called(portable.runtime) + "; a portable graph is for onnxruntime cpu");
  }
  const char* problem = "are not those of graphs.decoder";
  if (!same(portable.inputs, decoder.inputs)) throw refusal(where, "graphs.portable.inputs", problem);
  if (!same(portable.outputs, decoder.outputs)) throw refusal(where, "graphs.portable.outputs", problem);
}

void check_check(const Manifest& m, const std::string& where) {
  const Graph* graph = m.check();
  if (graph == nullptr) return;
  const CheckCalls& check = *graph->check;
  const auto& layers = check.layers;
  const std::int64_t count = m.model.num_hidden_layers;
  const bool rising = std::adjacent_find(layers.begin(), layers.end(), std::greater_equal<>()) == layers.end();
  if (layers.empty() || !rising || layers.back() >= count) {
    throw refusal(where, "graphs.check.layers",
                  "are not some of the layers 0 to " + std::to_string(count - 1) + ", in order");
  }
  __int128 end = check.start;
  for (const std::int64_t tokens : check.calls) end += tokens;
  if (check.calls.empty() || end > m.max_context) {
    throw refusal(where, "graphs.check.calls",
                  "do not lie between position " + std::to_string(check.start) + " and max_context, " +
                      std::to_string(m.max_context));
  }
  if (m.files.find(check.record) == nullptr) {
    throw refusal(where, "graphs.check.record", "is " + show(check.record) + ", which is not among the files");
  }
  if (!is_same(graph->runtime, m.decoder().runtime)) {
    throw refusal(where, "graphs.check.runtime",
                  "is " + called(graph->runtime) + ", and the decoder's is " + called(m.decoder().runtime));
  }
  const Manifest smaller = of_check_layers(m, layers);
  DecoderInterface(smaller, 0, smaller.model.num_hidden_layers)
      .check(graph->inputs, graph->outputs, where, "graphs.check");
}

}  // namespace l4::engine
