#include "sampling/sampler.hpp"

#include <algorithm>
#include <cmath>

#include "base/error.hpp"
#include "base/shown.hpp"
#include "sampling/random_stream.hpp"

namespace l4::sampling {

namespace {

void check(const Setting& setting, const json::Value& value) {
  const double number = value.number();
  if (!std::isfinite(number) || !setting.fits(number)) {
    throw bad_input(std::string(setting.name) + " is " + shown(value) + ": give " + setting.wanted);
  }
}

void check_ids(const std::int32_t* ids, std::size_t count, std::size_t vocab) {
  const auto strange = [&](std::int32_t id) { return id < 0 || static_cast<std::size_t>(id) >= vocab; };
  if (std::any_of(ids, ids + count, strange)) {
    const json::Array some(ids, ids + std::min<std::size_t>(count, 60));  // more would not be shown
    throw bad_input("token_ids are " + shown(some) + ": give a flat sequence of ids of 0 to " +
                    std::to_string(vocab - 1));
  }
}

}  // namespace

void check(const l4_sampling& settings) {
  check(kTemperature, settings.temperature);
  check(kTopP, settings.top_p);
  check(kMinP, settings.min_p);
  check(kPenalty, settings.repetition_penalty);
  check(kTopK, settings.top_k);
}

float checked_peak(const float* scores, std::size_t vocab, const char* what, const char* remedy) {
  if (vocab == 0) {
    throw bad_input(std::string(what) + " have the shape [0]: give [vocab], those of one row's last position");
  }
  const float peak = peak_of(scores, vocab);
  if (!std::isfinite(peak)) {
    const char* found = std::isnan(peak) ? "contain NaN" : peak > 0 ? "contain +inf" : "are all -inf";
    throw bad_input(std::string(what) + " " + found + ": no token can be chosen; " + remedy);
  }
  return peak;
}

Sampler::Sampler(const l4_sampling& settings) : settings_(settings) {
  check(settings_);
  if (settings_.has_seed == 0) settings_.seed = 0;
}

std::int32_t Sampler::choose(const float* logits, std::size_t vocab, std::uint64_t draw, const std::int32_t* ids,
                             std::size_t count, Workspace& workspace) const {
  float peak = checked_peak(logits, vocab, "logits", kCheckTheEngine);
  const float* scores = logits;
  if (settings_.repetition_penalty != 1 || settings_.processor != nullptr) {
    scores = changed(logits, vocab, ids, count, workspace);
    peak = peak_of(scores, vocab);
  }
  if (settings_.temperature == 0) return static_cast<std::int32_t>(std::find(scores, scores + vocab, peak) - scores);
  const auto top_k = static_cast<std::uint64_t>(settings_.top_k);
  const bool some = top_k > 0 && top_k < vocab;
  if (some) {
    keep_largest(scores, vocab, top_k, workspace.tokens, workspace.kept);
    weigh(workspace.kept.data(), workspace.kept.size(), peak, settings_.temperature, workspace.mass);
  } else {
    weigh(scores, vocab, peak, settings_.temperature, workspace.mass);
  }
  const std::uint32_t index = drawn_index(uniform(settings_.seed, settings_.stream, draw), workspace);
  return static_cast<std::int32_t>(some ? workspace.tokens[index] : index);
}

std::uint32_t Sampler::drawn_index(double share, Workspace& workspace) const {
  const double top_p = settings_.top_p, min_p = settings_.min_p;
  if (top_p == 1) {
    if (min_p != 0) keep_at_least(min_p, workspace.mass);
    return drawn(workspace.mass, share);
  }
  keep_nucleus(workspace.mass, top_p, workspace.entries);
  if (min_p != 0) keep_at_least(min_p, workspace.entries);
  return drawn(workspace.entries, share);
}

const float* Sampler::changed(const float* logits, std::size_t vocab, const std::int32_t* ids, std::size_t count,
                              Workspace& workspace) const {
  check_ids(ids, count, vocab);
  std::vector<float>& scores = workspace.scores;
  if (settings_.repetition_penalty != 1) {
    penalize(logits, vocab, ids, count, settings_.repetition_penalty, scores);
    checked_peak(scores.data(), vocab, "logits after the repetition penalty", "give one nearer to 1");
  } else {
    scores.assign(logits, logits + vocab);
  }
  if (settings_.processor != nullptr) {
    const int failed = settings_.processor(settings_.user, ids, count, scores.data(), vocab);
    if (failed != 0) throw bad_input("the logits processor failed with " + std::to_string(failed));
    checked_peak(scores.data(), vocab, "scores of logits processor 0", "it must leave at least one token possible");
  }
  return scores.data();
}

}  // namespace l4::sampling
