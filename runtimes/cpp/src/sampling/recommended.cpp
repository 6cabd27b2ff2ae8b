#include "sampling/recommended.hpp"

#include <cmath>
#include <vector>

#include "base/error.hpp"
#include "base/shown.hpp"
#include "sampling/sampler.hpp"
#include "storage/files.hpp"
#include "storage/json_document.hpp"

namespace l4::sampling {

namespace {

constexpr std::uint64_t kMostBytes = 16 << 20;

// Settings that change which token is chosen and that this library does not have, with the values that change nothing.
// null and what is empty change nothing either.
struct Neutral {
  const char* name;
  std::vector<double> values;
};

const std::vector<Neutral>& neutral_settings() {
  static const std::vector<Neutral> settings = {
      {"assistant_confidence_threshold", {}},
      {"bad_words_ids", {}},
      {"begin_suppress_tokens", {}},
      {"constraints", {}},
      {"diversity_penalty", {0.0}},
      {"encoder_no_repeat_ngram_size", {0}},
      {"encoder_repetition_penalty", {1.0}},
      {"epsilon_cutoff", {0.0, 1.0}},
      {"eta_cutoff", {0.0, 1.0}},
      {"exponential_decay_length_penalty", {}},
      {"force_words_ids", {}},
      {"forced_bos_token_id", {}},
      {"forced_eos_token_id", {}},
      {"guidance_scale", {1.0}},
      {"min_length", {0}},
      {"min_new_tokens", {0}},
      {"no_repeat_ngram_size", {0}},
      {"num_beam_groups", {1}},
      {"num_beams", {1}},
      {"penalty_alpha", {0.0}},
      {"sequence_bias", {}},
      {"suppress_tokens", {}},
      {"top_h", {}},
      {"typical_p", {1.0}},
      {"watermarking_config", {}},
  };
  return settings;
}

// Whether a value changes nothing. As in Python, true is 1 and false is 0.
bool changes_nothing(const json::Value& value, const Neutral& neutral) {
  if (value.is_null()) return true;
  if (value.is_array()) return value.array().empty();
  if (value.is_object()) return value.object().size() == 0;
  if (!value.is_number() && !value.is_boolean()) return false;
  const double number = value.is_boolean() ? value.boolean() : value.number();
  for (const double each : neutral.values) {
    if (number == each) return true;
  }
  return false;
}

// A member that is there and not null; nullptr otherwise.
const json::Value* found(const json::Value& document, const char* name) {
  const json::Value* value = document.find(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

double number_of(const json::Value& document, const Setting& setting, double otherwise) {
  const json::Value* value = found(document, setting.name);
  if (value == nullptr) return otherwise;
  if (!value->is_number() || !std::isfinite(value->number()) || !setting.fits(value->number())) {
    throw bad_input(std::string(setting.name) + " is " + shown(*value) + ": give " + setting.wanted);
  }
  return value->number();
}

std::int64_t top_k_of(const json::Value& document, std::int64_t otherwise) {
  const json::Value* value = found(document, kTopK.name);
  if (value == nullptr) return otherwise;
  if (!value->is_integer() || value->integer() < 0) {
    throw bad_input(std::string(kTopK.name) + " is " + shown(*value) + ": give " + kTopK.wanted);
  }
  return value->integer();
}

l4_sampling read_settings(const json::Value& document) {
  l4_sampling settings = kGreedy;
  const json::Value* do_sample = found(document, "do_sample");
  if (do_sample != nullptr && !do_sample->is_boolean()) {
    throw bad_input("do_sample is neither true nor false; correct it");
  }
  // what transformers' `generate` takes where a file with `do_sample` says nothing: temperature 1 and 50 tokens
  if (do_sample != nullptr && do_sample->boolean()) {
    settings.temperature = number_of(document, kTemperature, 1.0);
    settings.top_p = number_of(document, kTopP, 1.0);
    settings.min_p = number_of(document, kMinP, 0.0);
  }
  settings.repetition_penalty = number_of(document, kPenalty, 1.0);
  if (do_sample != nullptr && do_sample->boolean()) settings.top_k = top_k_of(document, 50);
  return settings;
}

}  // namespace

l4_sampling recommended_sampling(const std::string& directory) {
  const std::string path = storage::in_directory(directory, "generation_config.json");
  if (!storage::is_there(path)) return kGreedy;
  const std::string text = storage::read_small(path, kMostBytes, "copy it from the checkpoint again");
  const json::Value document = storage::parse_json_object(text, path);
  for (const Neutral& neutral : neutral_settings()) {
    const json::Value* value = found(document, neutral.name);
    if (value != nullptr && !changes_nothing(*value, neutral)) {
      throw bad_input(path + ": has " + neutral.name +
                      ", which this runtime does not do; give the sampling yourself, or take it out");
    }
  }
  try {
    return read_settings(document);
  } catch (const Error& error) {
    throw bad_input(path + ": " + error.what());
  }
}

}  // namespace l4::sampling
