// The engine directory's manifest: the contract between build and run. Field by field: docs/reference/manifest.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/json.hpp"
#include "engine/model_config.hpp"
#include "storage/sha256.hpp"

namespace l4::engine {

constexpr const char* kManifestFile = "manifest.json";
constexpr const char* kDecoder = "decoder";                   // the graph that every engine has
constexpr const char* kPortable = "portable";                 // the decoder in the form that a CPU can run
constexpr const char* kPackedWeights = "packed_weights";      // weights lie in a device's own order
constexpr const char* kCpuKernels = "cpu_kernels";            // graphs have operators of l4export's own CPU kernels
constexpr const char* kUnpackedWeights = "unpacked-weights";  // the data file that stands for them, which is not there
constexpr const char* kCheck = "check";                       // the graph by which a device is judged
constexpr const char* kVision = "vision";                     // the graph of an engine that sees images

// A number, or the name of a size that differs from call to call.
struct Dimension {
  std::int64_t size = 0;
  std::string name;  // empty: it is `size`
};

// An input or output of a graph.
struct TensorSpec {
  std::string name;
  std::string dtype;  // NumPy's name of it, such as "float32", or "bfloat16"
  std::vector<Dimension> shape;
  bool optional = false;  // of an input: the graph has a default for it
};

// What executes a graph: the library, and its provider of kernels or variant.
struct Runtime {
  std::string name, provider;
  std::string min_version = "";  // the least version of ONNX Runtime that computes it; empty where it is not known
};

// The least that a graph needs of a GPU, as versions such as "7.5".
struct DeviceNeeds {
  std::string compute_capability;
  std::string cuda;  // that the driver must support
};

// Least, likeliest and most in a call.
struct CallRange {
  std::int64_t least, likeliest, most;
};

// One of the compiled engines that make up a graph, run one after the other.
struct EnginePart {
  std::int64_t first_layer, behind_last;
  std::string graph, engine;  // files of the directory
  std::vector<TensorSpec> inputs, outputs;
};

// What the graph `check` has beside what every graph has: the decoder's first layers of every kind.
struct CheckCalls {
  std::vector<std::int64_t> layers;    // which of the decoder's layers they are, in order
  std::vector<std::string> operators;  // the types of its fused operators
  std::int64_t start;                  // position of the first token
  std::vector<std::int64_t> calls;     // new tokens that are appended at a time
  std::string record;                  // the file of the tokens, and of the logits that a CPU gave
  bool rounded;                        // whether the CPU rounded activations to int8 where the device does not
};

struct Graph {
  std::string file;  // the whole graph, in ONNX
  Runtime runtime;   // what it was lowered for
  std::vector<TensorSpec> inputs, outputs;
  std::vector<std::map<std::string, CallRange>> profiles;  // of compiled engines, by the quantity that they limit
  std::vector<EnginePart> parts;                           // none where the runtime reads `file`
  std::optional<DeviceNeeds> needs;
  std::optional<CheckCalls> check;  // of the graph `check` alone
};

// Codes of experts that lie in the order of a device's kernels.
struct PackedWeight {
  std::string name;    // the initializer, in every graph that reads it
  std::string layout;  // "mixed_gemm_sm80"
  std::int64_t bits;   // of one code: 4 or 8
  std::string file;
  std::int64_t offset;              // where the codes begin in it, in bytes
  std::vector<std::int64_t> shape;  // [experts, N, K x bits / 8], in bytes, as if they were not packed
};

// How caches lie in memory: NumPy's name of their dtype, and how many channels share one element of it.
struct KVStorage {
  std::string dtype;
  std::int64_t channels_per_element;
};

// One layer's cache: `kind` is "chunked" or "full" attention; `capacity` in slots, none where it grows.
struct KVLayer {
  std::string kind;
  std::optional<std::int64_t> capacity;
};

struct Precision {
  std::string weights, compute, kv_cache, activations;  // dtypes, such as "fp32"
  std::string quant;
  std::optional<std::string> vision;  // of the tower, where there is one
};

// By names, in the order of the file: what the checks find first is what the Python runtime finds first.
template <typename T>
class Named {
 public:
  void add(std::string name, T value) {
    places_.emplace(name, items_.size());
    items_.emplace_back(std::move(name), std::move(value));
  }
  // nullptr where there is none
  const T* find(const std::string& name) const {
    const auto place = places_.find(name);
    return place == places_.end() ? nullptr : &items_[place->second].second;
  }
  auto begin() const { return items_.begin(); }
  auto end() const { return items_.end(); }
  std::size_t size() const { return items_.size(); }
  const std::pair<std::string, T>& operator[](std::size_t index) const { return items_[index]; }

 private:
  std::vector<std::pair<std::string, T>> items_;
  std::unordered_map<std::string, std::size_t> places_;
};

// Everything a runtime needs to know of an engine, and what it was made from.
struct Manifest {
  std::vector<std::string> requires_features;  // that a runtime must know, or refuse the engine by their names
  std::string generator, target;
  ModelConfig model;
  Precision precision;
  std::int64_t max_context = 0;  // the longest sequence, in tokens, that a session may hold
  std::string kv_layout;         // "static", "chunked" or "concat"
  KVStorage kv_storage;
  std::vector<KVLayer> kv_layers;
  std::int64_t prefill_max_tokens = 0;      // a runtime feeds at most this many tokens of a row in a call
  std::optional<std::int64_t> prefill_cut;  // new tokens of a call must not lie on both sides of a multiple of this
  Named<Graph> graphs;
  json::Value options;  // of the build
  Named<storage::FileRecord> files;  // all of the engine but the manifest
  std::vector<PackedWeight> packed_weights;
  std::optional<VisionConfig> vision;  // none: the engine sees no images

  std::string text;    // the file, as it was read
  std::string sha256;  // of the file: the engine's identity, because it has the digests of all other files

  const Graph& decoder() const { return *graphs.find(kDecoder); }
  const Graph& portable() const;  // the same in the form that a CPU can run: mostly the decoder itself
  const Graph* check() const { return graphs.find(kCheck); }
  bool needs_cpu_kernels() const;  // whether a session on the CPU needs l4export's own kernels
};

// Read an engine directory's manifest, and check that it does not contradict itself.
//
// Raises Error: L4_BAD_INPUT for no such directory or manifest, another format version, a feature that this library
// does not know, a field that is missing, of a wrong type, or contradicts another; L4_STORAGE where reading fails.
Manifest load_manifest(const std::string& directory);

// The same from the file's text; messages begin with `where`.
Manifest read_manifest(std::string text, const std::string& where);

}  // namespace l4::engine
