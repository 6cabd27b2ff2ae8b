// Answers that grow a step at a time.
#ifndef L4EXPORT_GENERATION_HPP
#define L4EXPORT_GENERATION_HPP

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "l4export/images.hpp"
#include "l4export/sampling.hpp"
#include "l4export/text.hpp"

namespace l4export {

// A prompt of one row; one without ids takes no part.
struct Prompt {
  Ids ids;
  Sampling sampling = {};
  const Images* images = nullptr;
};

struct GenerateOptions {
  std::int64_t max_new_tokens = 64;
  std::optional<Ids> stop_token_ids = std::nullopt;  // none: the model's end-of-sequence tokens
  const Tokenizer* tokenizer = nullptr;              // for text and stop strings
  std::vector<std::string> stop_strings = {};
  std::int64_t logprobs = -1;  // how many of the likeliest tokens are told with each token; -1: no log probabilities
};

// A token that was chosen; see l4_token. The views are good until the generation's next step.
struct Token {
  std::int32_t row, id;
  std::string_view text;
  std::string_view finish_reason;  // empty: the row goes on
  double logprob;
  const l4_logprob* top;
  std::size_t top_count;
};

namespace detail {

inline Token token_of(const l4_token& token) {
  const std::string_view reason = token.finish_reason == nullptr ? std::string_view() : token.finish_reason;
  return {token.row, token.id, {token.text, token.text_bytes}, reason, token.logprob, token.top, token.top_count};
}

// Prompts and options as the C ABI takes them. The samplings are needed as long as tokens are chosen.
class CRequest {
 public:
  CRequest(const std::vector<Prompt>& prompts, const GenerateOptions& options) {
    for (const Prompt& prompt : prompts) {
      samplings_.push_back(std::make_unique<CSampling>(prompt.sampling));
      const l4_images* images = prompt.images != nullptr ? prompt.images->handle() : nullptr;
      prompts_.push_back({sizeof(l4_prompt), prompt.ids.data(), prompt.ids.size(), images, samplings_.back()->c()});
    }
    for (const std::string& stop : options.stop_strings) stops_.push_back(stop.c_str());
    options_.max_new_tokens = options.max_new_tokens;
    if (options.stop_token_ids) {
      options_.stop_token_ids = options.stop_token_ids->empty() ? &kNone : options.stop_token_ids->data();
      options_.stop_token_count = options.stop_token_ids->size();
    }
    if (options.tokenizer != nullptr) options_.tokenizer = options.tokenizer->handle();
    options_.stop_strings = stops_.data();
    options_.stop_string_count = stops_.size();
    options_.logprobs = options.logprobs;
  }

  const l4_prompt* prompts() const { return prompts_.data(); }
  std::size_t count() const { return prompts_.size(); }
  const l4_generate_options* options() const { return &options_; }
  std::vector<std::unique_ptr<CSampling>> take_samplings() { return std::move(samplings_); }

 private:
  static constexpr std::int32_t kNone = 0;  // an address for no tokens: NULL means those of the model
  std::vector<std::unique_ptr<CSampling>> samplings_;
  std::vector<l4_prompt> prompts_;
  std::vector<const char*> stops_;
  l4_generate_options options_ = L4_GENERATE_OPTIONS_DEFAULT;
};

}  // namespace detail

// Answers that grow a step at a time: a range of tokens, those of a step one row after the other.
class Generation {
 public:
  // Choose a token for every row that runs: none when all have ended. A step that fails can be asked for again.
  const std::vector<Token>& step() {
    const l4_token* tokens = nullptr;
    std::size_t count = 0;
    tokens_.clear();
    const l4_status status = l4_generation_next(handle_.get(), &tokens, &count);
    for (const auto& sampling : samplings_) sampling->rethrow();
    check(status);
    for (std::size_t index = 0; index < count; ++index) tokens_.push_back(detail::token_of(tokens[index]));
    return tokens_;
  }

  // End a row now.
  void stop(std::int32_t row) { check(l4_generation_stop(handle_.get(), row)); }

  class iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = Token;
    using difference_type = std::ptrdiff_t;
    using pointer = const Token*;
    using reference = const Token&;

    iterator() = default;
    explicit iterator(Generation* generation) : generation_(generation) { step(); }
    reference operator*() const { return generation_->tokens_[index_]; }
    pointer operator->() const { return &**this; }
    iterator& operator++() {
      if (++index_ == generation_->tokens_.size()) step();
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const iterator& one, const iterator& other) { return one.generation_ == other.generation_; }
    friend bool operator!=(const iterator& one, const iterator& other) { return !(one == other); }

   private:
    void step() {
      index_ = 0;
      if (generation_->step().empty()) generation_ = nullptr;
    }

    Generation* generation_ = nullptr;
    std::size_t index_ = 0;
  };

  iterator begin() { return iterator(this); }
  iterator end() { return {}; }

 private:
  friend class Session;
  Generation(l4_generation* handle, std::vector<std::unique_ptr<detail::CSampling>> samplings)
      : samplings_(std::move(samplings)), handle_(handle) {}

  std::vector<std::unique_ptr<detail::CSampling>> samplings_;
  detail::Handle<l4_generation, &l4_generation_close> handle_;
  std::vector<Token> tokens_;
};

}  // namespace l4export

#endif
