// Choosing the next token of a row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "l4export.h"
#include "sampling/filters.hpp"

namespace l4::sampling {

constexpr l4_sampling kGreedy = L4_SAMPLING_DEFAULT;

// A setting that is a number, and what messages say of one out of its range.
struct Setting {
  const char* name;
  bool (*fits)(double);  // of finite numbers
  const char* wanted;
};

constexpr Setting kTemperature{"temperature", [](double x) { return x >= 0; }, "a finite number, 0 (greedy) or more"};
constexpr Setting kTopP{"top_p", [](double x) { return x > 0 && x <= 1; },
                        "a number above 0 and up to 1 (1 keeps every token)"};
constexpr Setting kMinP{"min_p", [](double x) { return x >= 0 && x <= 1; }, "a number of 0 (keeps every token) to 1"};
constexpr Setting kPenalty{"repetition_penalty", [](double x) { return x > 0; },
                           "a number above 0 (1 changes nothing)"};
constexpr Setting kTopK{"top_k", [](double x) { return x >= 0; }, "a whole number, 0 or more"};

// Whether the settings are within their ranges. Raises Error (L4_BAD_INPUT) by name.
void check(const l4_sampling& settings);

// What a choice needs of memory; samplers of rows that are looked at in turn can share it.
struct Workspace {
  std::vector<float> scores, kept;
  std::vector<std::uint32_t> tokens;
  std::vector<double> mass;
  std::vector<Entry> entries;
};

// Turns the logits of a row into a token, as its settings say. The same settings, seed, stream, number and logits
// always give the same token: the first whose cumulative probability exceeds `uniform(seed, stream, draw)` of all that
// may be drawn. They are added up in float64, likeliest first (equals by index) or, where `top_p` is 1, by index.
class Sampler {
 public:
  // Without `has_seed` the seed is 0. Raises Error (L4_BAD_INPUT) for settings out of their ranges.
  explicit Sampler(const l4_sampling& settings);

  // The token for logits [vocab]; a logit of -inf forbids its token. `draw` is the number of the random number: token i
  // of an answer takes number i. `ids` are the prompt and what has been said, for penalty and processor.
  //
  // Raises Error (L4_BAD_INPUT): logits that hold NaN or +inf, or nothing but -inf, from the engine or from the
  // processor; a processor that fails; ids of no tokens.
  std::int32_t choose(const float* logits, std::size_t vocab, std::uint64_t draw, const std::int32_t* ids,
                      std::size_t count, Workspace& workspace) const;

  const l4_sampling& settings() const { return settings_; }

 private:
  // After penalty and processor, where there are any.
  const float* changed(const float* logits, std::size_t vocab, const std::int32_t* ids, std::size_t count,
                       Workspace& workspace) const;
  // Of the weights in the workspace, the index of the one that a share of all falls upon.
  std::uint32_t drawn_index(double share, Workspace& workspace) const;

  l4_sampling settings_;
};

// The largest of some scores. Raises Error (L4_BAD_INPUT) where that is not finite; `what` and `remedy` are for the
// message.
float checked_peak(const float* scores, std::size_t vocab, const char* what, const char* remedy);

// The remedy for logits of an engine.
constexpr const char* kCheckTheEngine = "check the engine with `l4export parity`";

}  // namespace l4::sampling
