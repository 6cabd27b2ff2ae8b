#include "generation/generation.hpp"

#include <algorithm>
#include <utility>

#include "base/error.hpp"
#include "sampling/random_stream.hpp"

namespace l4::generation {

namespace {

std::int64_t checked(std::int64_t value, const char* name, std::int64_t least, std::int64_t most) {
  if (value >= least && value <= most) return value;
  throw bad_input(std::string(name) + " is " + std::to_string(value) + ": give a whole number, " +
                  std::to_string(least) + " to " + std::to_string(most));
}

std::int64_t checked_count(std::int64_t max_new_tokens) {
  if (max_new_tokens >= 1) return max_new_tokens;
  throw bad_input("max_new_tokens is " + std::to_string(max_new_tokens) + ": give a whole number, 1 or more");
}

std::vector<std::int32_t> checked_stops(const Options& options, const engine::Manifest& manifest) {
  const auto& eos = manifest.model.eos_token_ids;
  if (!options.has_stop_tokens) return {eos.begin(), eos.end()};
  for (const std::int32_t token : options.stop_tokens) {
    checked(token, "a token of stop_token_ids", 0, manifest.model.vocab_size - 1);
  }
  return options.stop_tokens;
}

void check_text(const Options& options) {
  text::check_stop_strings(options.stop_strings);
  if (!options.stop_strings.empty() && options.tokenizer == nullptr) {
    throw bad_input("stop_strings are looked for in the text, which needs a tokenizer: give one");
  }
}

NewTokens new_tokens(const std::vector<Prompt>& prompts) {
  NewTokens tokens(prompts.size());
  for (std::size_t row = 0; row < prompts.size(); ++row) {
    tokens.set(row, prompts[row].ids, prompts[row].count, prompts[row].images);
  }
  return tokens;
}

// The same with a seed: its own or, as it has none, a fresh one.
l4_sampling seeded(l4_sampling settings) {
  if (settings.has_seed == 0) settings.seed = sampling::fresh_seed(), settings.has_seed = 1;
  return settings;
}

}  // namespace

Generation::Generation(std::shared_ptr<Session> session, const std::vector<Prompt>& prompts, const Options& options)
    : session_(std::move(session)),
      prompts_(new_tokens(prompts)),
      max_new_tokens_(checked_count(options.max_new_tokens)),
      version_(session_->version()),
      fed_(prompts.size(), -1) {
  const engine::Manifest& manifest = *session_->manifest();
  stop_tokens_ = checked_stops(options, manifest);
  check_text(options);
  const auto empty = [](const Prompt& prompt) { return prompt.count == 0; };
  if (std::all_of(prompts.begin(), prompts.end(), empty)) throw bad_input("a prompt is empty: give at least one token");
  for (const Prompt& prompt : prompts) sampling::check(prompt.sampling);
  if (options.logprobs != -1) {
    choosing_.likeliest = static_cast<std::size_t>(checked(options.logprobs, "logprobs", 0, manifest.model.vocab_size));
  }
  session_->check(prompts_);
  rows_.reserve(prompts.size());
  for (std::size_t row = 0; row < prompts.size(); ++row) {
    const auto& held = session_->state().ids[row];
    std::vector<std::int32_t> ids(held.begin(), held.end());
    ids.insert(ids.end(), prompts[row].ids, prompts[row].ids + prompts[row].count);
    std::optional<text::SpokenText> spoken;
    if (options.tokenizer != nullptr) spoken.emplace(options.tokenizer, options.stop_strings);
    rows_.emplace_back(std::move(ids), prompts[row].count != 0, seeded(prompts[row].sampling), std::move(spoken));
  }
  tokens_.reserve(prompts.size());
}

const std::vector<l4_token>& Generation::step(const Session::Call& call) {
  tokens_.clear();
  if (std::none_of(rows_.begin(), rows_.end(), [](const GeneratedRow& row) { return row.runs(); })) return tokens_;
  if (session_->version() != version_) {
    throw bad_input("the session was changed while this generation ran; start another generation");
  }
  call.check_cancelled();
  if (logits_ == nullptr) feed();
  for (std::size_t row = 0; row < rows_.size(); ++row) {
    if (rows_[row].runs()) rows_[row].pick(logits_ + row * vocab_, vocab_, choosing_);
  }
  call.check_cancelled();
  logits_ = nullptr;
  for (std::size_t row = 0; row < rows_.size(); ++row) {
    if (!rows_[row].runs()) continue;
    rows_[row].take(reason(row));
    tokens_.push_back(rows_[row].told(static_cast<std::int32_t>(row)));
  }
  return tokens_;
}

// Feed the prompts, or else the tokens that were chosen last.
void Generation::feed() {
  Logits logits{};
  try {
    if (is_begun_) {
      for (std::size_t row = 0; row < rows_.size(); ++row) fed_[row] = rows_[row].runs() ? rows_[row].last() : -1;
      logits = session_->step(fed_.data());
    } else {
      logits = session_->append(prompts_, true);
      prompts_ = NewTokens(0);  // the caller may close their images, which then go
    }
  } catch (...) {  // an append that fails is undone, which makes another state
    version_ = session_->version();
    throw;
  }
  version_ = session_->version();
  is_begun_ = true;
  logits_ = logits.values;
  vocab_ = static_cast<std::size_t>(logits.vocab);
}

// Why the token that was picked is the last one of its row; NULL: it is not.
const char* Generation::reason(std::size_t row) const {
  const SessionState& state = session_->state();
  const std::int32_t token = rows_[row].picked();
  if (std::find(stop_tokens_.begin(), stop_tokens_.end(), token) != stop_tokens_.end()) return "stop token";
  if (rows_[row].count() + 1 >= max_new_tokens_) return "max_new_tokens";
  const bool full = state.lengths[row] >= state.capacity || state.end(row) >= session_->manifest()->max_context;
  return full ? "max_context" : nullptr;
}

void Generation::stop(std::int32_t row) {
  rows_[static_cast<std::size_t>(checked(row, "row", 0, static_cast<std::int64_t>(rows_.size()) - 1))].stop();
}

}  // namespace l4::generation
