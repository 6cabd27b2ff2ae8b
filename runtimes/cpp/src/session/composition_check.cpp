#include "session/composition_check.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <set>
#include <sstream>
#include <string_view>

#include "base/json.hpp"
#include "session/check_record.hpp"
#include "session/session.hpp"
#include "storage/files.hpp"

namespace l4 {
namespace {

constexpr const char* remedy = "use another version of onnxruntime-gpu or of the driver";
constexpr double accepted = 1e-2, accepted_rounded = 3e-2;  // of the largest |logit|; the Python module says why
constexpr double nothing = 6.103515625e-05;  // logits that are no larger count as this large
constexpr std::int64_t rows_of_small_tile = 4;

// A directory that goes with this.
class Scratch {
 public:
  Scratch() {
    std::error_code none;
    std::string pattern = (std::filesystem::temp_directory_path(none) / "l4export-check-XXXXXX").string();
    if (none || mkdtemp(pattern.data()) == nullptr) {
      throw storage_error("no temporary directory can be made; check TMPDIR");
    }
    path_ = pattern;
  }
  ~Scratch() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// The manifest of an engine that had the layers of the check graph alone: sessions run it as any other.
std::shared_ptr<const engine::Manifest> check_decoder(const engine::Manifest& manifest, const engine::Graph& graph) {
  auto decoder = std::make_shared<engine::Manifest>(manifest);
  decoder->kv_layers.clear();
  decoder->model.chunked_layers.clear();
  for (const std::int64_t layer : graph.check->layers) {
    const auto index = static_cast<std::size_t>(layer);
    decoder->kv_layers.push_back(manifest.kv_layers.at(index));
    decoder->model.chunked_layers.push_back(manifest.model.chunked_layers.at(index));
  }
  decoder->model.num_hidden_layers = static_cast<std::int64_t>(graph.check->layers.size());
  decoder->graphs = {};
  decoder->graphs.add(engine::kDecoder, graph);
  if (decoder->vision) {  // a decoder takes any number of rows: tiles of one pixel, which is the image's number
    decoder->vision->image_size = 1;
    decoder->vision->rows_per_tile = rows_of_small_tile;
  }
  return decoder;
}

// A tower that sees the number of an image in its pixels, and gives the recorded features of that one.
class RecordedTower : public Tower {
 public:
  RecordedTower(std::vector<std::byte> features, std::size_t bytes) : features_(std::move(features)), bytes_(bytes) {}

  Features features(const float* tiles, std::size_t, const RunOptions&) const override {
    const auto first = features_.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(*tiles) * bytes_);
    return {{first, first + static_cast<std::ptrdiff_t>(bytes_)}, rows_of_small_tile};
  }

 private:
  std::vector<std::byte> features_;
  std::size_t bytes_;  // of an image
};

// The images whose tokens are among some ids, numbered from `first` on.
Images numbered_images(std::int64_t count, std::size_t first) {
  if (count == 0) return nullptr;
  auto images = std::make_shared<images::ProcessedImages>();
  images->side = 1;
  images->rows_of_a_tile = static_cast<std::size_t>(rows_of_small_tile);
  for (std::size_t index = 0; index < static_cast<std::size_t>(count); ++index) {
    const std::size_t number = first + index;
    images->tiles.insert(images->tiles.end(), 3, static_cast<float>(number));
    images::ProcessedImage image{};
    image.digest = std::to_string(number);
    image.first_tile = index;
    image.tile_count = 1;
    image.feature_rows = static_cast<std::size_t>(rows_of_small_tile);
    images->images.push_back(image);
  }
  return images;
}

// Append the tokens call by call; float32 [p, V], every token's logits of the first call, then one of each.
std::vector<float> feed(Session& session, const engine::CheckCalls& check, const std::vector<std::int32_t>& ids) {
  const Session::Call call(session, "append");
  std::vector<float> logits;
  NewTokens tokens(1);
  const std::int32_t* from = ids.data();
  std::size_t shown = 0;
  const auto& vision = session.manifest()->vision;
  for (std::size_t number = 0; number < check.calls.size(); ++number) {
    const auto count = static_cast<std::size_t>(check.calls[number]);
    const std::int64_t seen = vision ? std::count(from, from + count, vision->image_token_id) / rows_of_small_tile : 0;
    tokens.set(0, from, count, numbered_images(seen, shown));
    const Logits given = session.append(tokens, number > 0);
    logits.insert(logits.end(), given.values, given.values + given.positions * given.vocab);
    from += count;
    shown += static_cast<std::size_t>(seen);
  }
  return logits;
}

// The largest difference at each position, as a part of the largest |logit|.
std::vector<double> differences(const engine::CheckCalls& check, const CheckRecord& record,
                                const std::vector<float>& logits, std::int64_t vocab) {
  double scale = nothing;
  for (const auto* values : {&record.sampled, &record.whole}) {
    for (const float value : *values) scale = std::max(scale, std::abs(static_cast<double>(value)));
  }
  std::vector<double> found(static_cast<std::size_t>(kept_positions(check)), 0.0);
  const auto compare = [&](std::size_t at, std::int64_t column, float expected) {
    const double got = logits[at * static_cast<std::size_t>(vocab) + static_cast<std::size_t>(column)];
    const double difference = std::abs(got - static_cast<double>(expected)) / scale;
    if (!(difference <= found[at])) found[at] = difference;  // NaN too, and it stays
  };
  for (std::size_t at = 0; at < found.size(); ++at) {
    for (std::size_t index = 0; index < record.columns.size(); ++index) {
      compare(at, record.columns[index], record.sampled[at * record.columns.size() + index]);
    }
  }
  const std::size_t ends[] = {static_cast<std::size_t>(check.calls[0]) - 1, found.size() - 1};
  for (std::size_t end = 0; end < 2; ++end) {
    for (std::int64_t column = 0; column < vocab; ++column) {
      compare(ends[end], column,
              record.whole[end * static_cast<std::size_t>(vocab) + static_cast<std::size_t>(column)]);
    }
  }
  return found;
}

// The position of the token whose logits have that index.
std::int64_t position_of(const engine::CheckCalls& check, std::size_t index) {
  const std::int64_t at = static_cast<std::int64_t>(index), later = at - check.calls[0] + 1;
  if (later < 0) return check.start + at;
  return check.start + std::accumulate(check.calls.begin(), check.calls.begin() + later + 1, std::int64_t{0}) - 1;
}

std::string joined(const std::vector<std::int64_t>& numbers) {
  std::string text;
  for (const std::int64_t number : numbers) text += (text.empty() ? "" : ", ") + std::to_string(number);
  return text;
}

void check_numbers(const std::string& directory, const engine::CheckCalls& check, const std::string& provider,
                   const std::vector<double>& found) {
  for (std::size_t at = 0; at < found.size(); ++at) {
    if (found[at] <= (check.rounded ? accepted_rounded : accepted)) continue;
    char difference[32];
    const auto end = std::to_chars(difference, std::end(difference), found[at], std::chars_format::general, 2).ptr;
    throw environment_lacks(directory + ": " + provider + " computes the layers " + joined(check.layers) +
                            " differently from the CPU that built the engine, by " + std::string(difference, end) +
                            " of the largest logit at position " + std::to_string(position_of(check, at)) + "; " +
                            remedy);
  }
}

// The trace of a session, which ends it.
std::string trace_of(const InferenceSession& session) {
  const OnnxRuntime& runtime = *session.runtime();
  OrtAllocator* allocator = nullptr;
  runtime.check(runtime.api().GetAllocatorWithDefaultOptions(&allocator));
  char* name = nullptr;
  runtime.check(runtime.api().SessionEndProfiling(session.get(), allocator, &name));
  std::ifstream file(name, std::ios::binary);
  runtime.check(runtime.api().AllocatorFree(allocator, name));
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string text_in(const json::Value* object, const char* name) {
  const json::Value* value = object != nullptr ? object->find(name) : nullptr;
  return value != nullptr && value->is_string() ? value->string() : "";
}

// ONNX Runtime gives nodes that a provider has no kernel for to the CPU, and says nothing.
void check_placement(const std::string& directory, const engine::CheckCalls& check, const std::string& provider,
                     const std::string& trace) {
  constexpr std::string_view suffix = "_kernel_time";
  const json::Value events = json::parse(trace, directory + ": the trace of its check graph", {100'000'000, 64});
  std::set<std::string> missing(check.operators.begin(), check.operators.end());
  for (const json::Value& event : events.array()) {
    std::string name = text_in(&event, "name");
    if (text_in(&event, "cat") != "Node" || name.size() < suffix.size() ||
        name.compare(name.size() - suffix.size(), suffix.size(), suffix) != 0) {
      continue;
    }
    name.resize(name.size() - suffix.size());
    const std::string op = text_in(event.find("args"), "op_name"), by = text_in(event.find("args"), "provider");
    missing.erase(op);
    const bool fused = std::find(check.operators.begin(), check.operators.end(), op) != check.operators.end();
    if (fused && by != provider) {
      throw environment_lacks(directory + ": " + op + " " + name + " is executed by " + by + " instead of " + provider +
                              "; " + remedy);
    }
  }
  if (!missing.empty()) {
    throw environment_lacks(directory + ": " + provider + " has executed no " + *missing.begin() + "; " + remedy);
  }
}

void judge(const std::string& directory, const engine::Manifest& manifest, const std::string& provider,
           const OpenTraced& open) {
  const engine::Graph* graph = manifest.check();
  if (graph == nullptr || !graph->check) {
    throw bad_input(directory + ": has no check graph, by which a GPU is judged; build the engine again");
  }
  const engine::CheckCalls& check = *graph->check;
  const auto decoder = check_decoder(manifest, *graph);
  CheckRecord record = read_check_record(storage::in_directory(directory, check.record), check, *decoder);
  const Scratch scratch;
  const TracedDecoder traced = open(*graph, (scratch.path() / "check").string());
  std::shared_ptr<ImageFeatures> features;
  if (!record.features.empty()) {
    const auto bytes = static_cast<std::size_t>(rows_of_small_tile * manifest.model.hidden_size) * 2;
    features =
        std::make_shared<ImageFeatures>(std::make_unique<const RecordedTower>(std::move(record.features), bytes));
  }
  const std::int64_t tokens = std::accumulate(check.calls.begin(), check.calls.end(), std::int64_t{0});
  std::vector<float> logits;
  try {
    // more slots than the check fills, where the context allows it, as in most sessions
    Session session({traced.decoder, decoder, features}, 1, std::min(manifest.max_context, 2 * tokens), {check.start});
    logits = feed(session, check, record.ids);
  } catch (const Error& error) {
    throw environment_lacks(directory + ": " + provider + " does not execute the check graph: " + error.what() + "; " +
                            remedy);
  }
  check_placement(directory, check, provider, trace_of(*traced.session));
  check_numbers(directory, check, provider, differences(check, record, logits, manifest.model.vocab_size));
}

}  // namespace

void check_composition(const std::string& directory, const engine::Manifest& manifest, const std::string& provider,
                       const VerdictKey& installation, const OpenTraced& open) {
  VerdictKey key = installation;
  key["engine"] = manifest.sha256;
  key["provider"] = provider;
  key["runtime"] = "libl4export";
  if (has_passed(key)) return;
  judge(directory, manifest, provider, open);
  keep_pass(key);
}

}  // namespace l4
