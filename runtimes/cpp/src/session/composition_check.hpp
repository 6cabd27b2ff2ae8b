// Judges a GPU by an engine's check graph, before it is trusted with the engine: a decoder, the engine's own with fewer
// layers, through the same caches, bindings and calls. Operators that are right one by one can be wrong together.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "cache/kv_cache.hpp"
#include "onnxruntime/inference_session.hpp"
#include "session/verdicts.hpp"

namespace l4 {

// A graph of the engine, loaded on what is judged.
struct TracedDecoder {
  std::shared_ptr<const InferenceSession> session;
  std::shared_ptr<const Decoder> decoder;
};

// Loads a graph; every node that runs is noted in a file whose name begins with `trace`.
using OpenTraced = std::function<TracedDecoder(const engine::Graph& graph, const std::string& trace)>;

// Check an engine's composition, unless it has passed on this installation. `provider` is ONNX Runtime's name of what
// is judged; `installation` names all else that decides the numbers: card, driver, libraries. Failures are not kept:
// what failed may be repaired.
//
// Raises Error: L4_ENVIRONMENT where the provider computes something else than the CPU that built the engine, or has
// not executed a fused operator itself; L4_BAD_INPUT for an engine without a check graph, or with a damaged one.
void check_composition(const std::string& directory, const engine::Manifest& manifest, const std::string& provider,
                       const VerdictKey& installation, const OpenTraced& open);

}  // namespace l4
