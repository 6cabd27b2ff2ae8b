// l4export.hpp - the native runtime in C++17: owners instead of handles, exceptions instead of status codes, and ranges of
// tokens. A header alone, upon l4export.h, which says what everything means; nothing else is needed but the library.
//
//   l4export::Engine engine("engine");
//   l4export::Tokenizer tokenizer("engine");
//   l4export::Session session(engine);
//   l4export::GenerateOptions options;
//   options.tokenizer = &tokenizer;
//   for (const l4export::Token& token : session.generate(tokenizer.encode("In the beginning"), options)) {
//     std::cout << token.text << std::flush;
//   }
//
// Objects are moved, not copied. They may go in any order; but what a Generation yields, logits of an append and texts of a
// TextStream are good until the next call on the same object.
#ifndef L4EXPORT_HPP
#define L4EXPORT_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "l4export.h"

namespace l4export {

// What went wrong: one line, and the status of the call.
class Error : public std::runtime_error {
 public:
  Error(l4_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  l4_status status() const noexcept { return status_; }

 private:
  l4_status status_;
};

// Throws Error unless a call of the C ABI has succeeded.
inline void check(l4_status status) {
  if (status != L4_OK) throw Error(status, l4_last_error());
}

namespace detail {

template <auto Close>
struct Closer {
  template <typename T>
  void operator()(T* handle) const noexcept {
    Close(handle);
  }
};

template <typename T, auto Close>
using Handle = std::unique_ptr<T, Closer<Close>>;

// What a call gives into a buffer: `call(buffer, capacity, &count)`. `guess` elements are tried first.
template <typename Container, typename Call>
Container collected(std::size_t guess, Call call) {
  Container values(guess, {});
  std::size_t count = 0;
  check(call(values.data(), values.size(), &count));
  if (count > values.size()) {
    values.resize(count);
    check(call(values.data(), values.size(), &count));
  }
  values.resize(count);
  return values;
}

}  // namespace detail

using Ids = std::vector<std::int32_t>;

inline std::string version() { return l4_version(); }

// Compare every file of an engine with its manifest. Throws Error (L4_VERIFICATION_FAILED names the first other one).
inline void verify(const std::string& directory) { check(l4_verify(directory.c_str())); }

inline std::uint64_t fresh_seed() {
  std::uint64_t seed = 0;
  check(l4_fresh_seed(&seed));
  return seed;
}

// ---- Sampling ---------------------------------------------------------------------------------------------------------

// How a row's tokens are chosen; see l4_sampling.
struct Sampling {
  // Changes the scores [vocab] of a row in place; `ids` are its tokens so far. What it throws ends the call that chose.
  using Processor = std::function<void(const std::int32_t* ids, std::size_t count, float* scores, std::size_t vocab)>;

  double temperature = 0;
  double top_p = 1;
  double min_p = 0;
  double repetition_penalty = 1;
  std::int64_t top_k = 0;
  std::optional<std::uint64_t> seed = std::nullopt;  // none: one that nobody can foresee
  std::uint64_t stream = 0;
  Processor processor = nullptr;
};

namespace detail {

// A Sampling as the C ABI takes it; it must stay where it is while it is used.
class CSampling {
 public:
  explicit CSampling(Sampling sampling) : processor_(std::move(sampling.processor)) {
    c_.temperature = sampling.temperature;
    c_.top_p = sampling.top_p;
    c_.min_p = sampling.min_p;
    c_.repetition_penalty = sampling.repetition_penalty;
    c_.top_k = sampling.top_k;
    c_.has_seed = sampling.seed.has_value();
    c_.seed = sampling.seed.value_or(0);
    c_.stream = sampling.stream;
    if (processor_) c_.processor = &CSampling::process, c_.user = this;
  }
  CSampling(const CSampling&) = delete;
  CSampling& operator=(const CSampling&) = delete;

  const l4_sampling* c() const { return &c_; }

  // Throw what the processor has thrown.
  void rethrow() {
    if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
  }

 private:
  static int process(void* user, const std::int32_t* ids, std::size_t count, float* scores, std::size_t vocab) noexcept {
    auto& self = *static_cast<CSampling*>(user);
    try {
      self.processor_(ids, count, scores, vocab);
      return 0;
    } catch (...) {
      self.thrown_ = std::current_exception();
      return 1;
    }
  }

  l4_sampling c_ = L4_SAMPLING_DEFAULT;
  Sampling::Processor processor_;
  std::exception_ptr thrown_;
};

}  // namespace detail

// What generation_config.json of an engine says of sampling, greedy if nothing.
inline Sampling recommended_sampling(const std::string& directory) {
  l4_sampling found = L4_SAMPLING_DEFAULT;
  check(l4_recommended_sampling(directory.c_str(), &found));
  Sampling sampling;
  sampling.temperature = found.temperature;
  sampling.top_p = found.top_p;
  sampling.min_p = found.min_p;
  sampling.repetition_penalty = found.repetition_penalty;
  sampling.top_k = found.top_k;
  return sampling;
}

// One Sampling for `rows` rows, which share its seed and draw from streams 0, 1, 2, ... of it: what the Python runtime does
// with one Sampling for a batch. Rows with settings of their own draw from stream 0, as they do alone.
inline std::vector<Sampling> sampling_of_rows(Sampling sampling, std::size_t rows) {
  if (!sampling.seed) sampling.seed = fresh_seed();
  std::vector<Sampling> each(rows, sampling);
  for (std::size_t row = 0; row < rows; ++row) each[row].stream = row;
  return each;
}

// Choose a token for logits [vocab]; `ids` are the row's tokens so far. Without a seed it is 0.
inline std::int32_t sample(const float* logits, std::size_t vocab, const Sampling& sampling, std::uint64_t draw,
                           const Ids& ids = {}) {
  detail::CSampling settings(sampling);
  std::int32_t token = 0;
  const l4_status status = l4_sample(logits, vocab, settings.c(), draw, ids.data(), ids.size(), &token);
  settings.rethrow();
  check(status);
  return token;
}

struct Logprobs {
  double logprob;                // of the token that was asked for
  std::vector<l4_logprob> top;  // the likeliest ones, likeliest first
};

inline Logprobs logprobs(const float* logits, std::size_t vocab, std::int32_t token, std::size_t top) {
  Logprobs found{0, std::vector<l4_logprob>(top)};
  check(l4_logprobs(logits, vocab, token, top, &found.logprob, found.top.data()));
  return found;
}

// ---- Text -------------------------------------------------------------------------------------------------------------

class Tokenizer {
 public:
  explicit Tokenizer(const std::string& directory) {
    l4_tokenizer* made = nullptr;
    check(l4_tokenizer_open(directory.c_str(), &made));
    handle_.reset(made);
  }

  Ids encode(std::string_view text, std::uint32_t flags = L4_ADD_SPECIAL_TOKENS) const {
    return detail::collected<Ids>(text.size() / 2 + 8, [&](std::int32_t* ids, std::size_t capacity, std::size_t* count) {
      return l4_tokenizer_encode(handle_.get(), text.data(), text.size(), flags, ids, capacity, count);
    });
  }

  std::string decode(const Ids& ids, bool skip_special = true) const {
    return detail::collected<std::string>(4 * ids.size(), [&](char* text, std::size_t capacity, std::size_t* bytes) {
      return l4_tokenizer_decode(handle_.get(), ids.data(), ids.size(), skip_special, text, capacity, bytes);
    });
  }

  l4_tokenizer_info info() const {
    l4_tokenizer_info info{};
    info.size = sizeof info;
    check(l4_tokenizer_get_info(handle_.get(), &info));
    return info;
  }

  // The id of a token as it stands in the vocabulary; none if there is none.
  std::optional<std::int32_t> token_id(const std::string& token) const {
    std::int32_t id = -1;
    check(l4_tokenizer_token_id(handle_.get(), token.c_str(), &id));
    return id < 0 ? std::nullopt : std::optional<std::int32_t>(id);
  }

  // `chat` is JSON, see l4_tokenizer_render_chat.
  std::string render_chat(std::string_view chat) const {
    return detail::collected<std::string>(2 * chat.size(), [&](char* text, std::size_t capacity, std::size_t* bytes) {
      return l4_tokenizer_render_chat(handle_.get(), chat.data(), chat.size(), text, capacity, bytes);
    });
  }

  Ids encode_chat(std::string_view chat, std::uint32_t flags = 0) const {
    return detail::collected<Ids>(chat.size(), [&](std::int32_t* ids, std::size_t capacity, std::size_t* count) {
      return l4_tokenizer_encode_chat(handle_.get(), chat.data(), chat.size(), flags, ids, capacity, count);
    });
  }

  const l4_tokenizer* handle() const { return handle_.get(); }

 private:
  detail::Handle<l4_tokenizer, &l4_tokenizer_close> handle_;
};

// Text from tokens that come one at a time, up to the first stop string.
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer, const std::vector<std::string>& stop_strings = {}) {
    std::vector<const char*> stops;
    for (const std::string& stop : stop_strings) stops.push_back(stop.c_str());
    l4_text_stream* made = nullptr;
    check(l4_text_stream_create(tokenizer.handle(), stops.data(), stops.size(), &made));
    handle_.reset(made);
  }

  // Take a token: what it completes.
  std::string_view push(std::int32_t token) {
    const char* text = nullptr;
    std::size_t bytes = 0;
    check(l4_text_stream_push(handle_.get(), token, &text, &bytes, &stopped_));
    return {text, bytes};
  }

  // No more tokens come: what was held back.
  std::string_view flush() {
    const char* text = nullptr;
    std::size_t bytes = 0;
    check(l4_text_stream_flush(handle_.get(), &text, &bytes, &stopped_));
    return {text, bytes};
  }

  // The index of the stop string that ended the text; -1: none has.
  std::int32_t stopped() const { return stopped_; }

 private:
  detail::Handle<l4_text_stream, &l4_text_stream_close> handle_;
  std::int32_t stopped_ = -1;
};

// ---- Images -----------------------------------------------------------------------------------------------------------

struct Picture {
  const std::uint8_t* rgb;  // [height, width, 3]
  std::int64_t width, height;
};

class Images {
 public:
  // `max_tiles`: the most tiles into which an image is cut, 0: as the checkpoint says.
  Images(const std::string& directory, const std::vector<Picture>& pictures, std::int32_t max_tiles = 0) {
    std::vector<l4_picture> each;
    for (const Picture& picture : pictures) each.push_back({sizeof(l4_picture), picture.rgb, picture.width, picture.height});
    l4_images* made = nullptr;
    check(l4_images_create(directory.c_str(), each.data(), each.size(), max_tiles, &made));
    handle_.reset(made);
  }

  std::size_t size() const { return l4_images_count(handle_.get()); }

  l4_image_info info(std::size_t index) const {
    l4_image_info info{};
    info.size = sizeof info;
    check(l4_images_get_info(handle_.get(), index, &info));
    return info;
  }

  // The ids with each <|image|> replaced by the tokens of its image, in order.
  Ids expand(const Tokenizer& tokenizer, const Ids& ids) const {
    return detail::collected<Ids>(ids.size(), [&](std::int32_t* expanded, std::size_t capacity, std::size_t* count) {
      return l4_images_expand(handle_.get(), tokenizer.handle(), ids.data(), ids.size(), expanded, capacity, count);
    });
  }

  const l4_images* handle() const { return handle_.get(); }

 private:
  detail::Handle<l4_images, &l4_images_close> handle_;
};

// The same for a prompt without images, where there must be no <|image|> in the ids.
inline Ids expand_without_images(const Tokenizer& tokenizer, const Ids& ids) {
  return detail::collected<Ids>(ids.size(), [&](std::int32_t* expanded, std::size_t capacity, std::size_t* count) {
    return l4_images_expand(nullptr, tokenizer.handle(), ids.data(), ids.size(), expanded, capacity, count);
  });
}

// ---- Engines and sessions ---------------------------------------------------------------------------------------------

struct EngineOptions {
  std::string onnxruntime = {};  // path of libonnxruntime; empty: as l4_engine_options says of NULL
  std::string provider = {};     // "cpu" or "cuda"; empty: the one that the engine was built for
  std::int32_t threads = 0;      // 0: one for each core that the process may use
  bool verify = false;
};

class Engine {
 public:
  explicit Engine(const std::string& directory, const EngineOptions& options = {}) {
    l4_engine_options given = L4_ENGINE_OPTIONS_DEFAULT;
    if (!options.onnxruntime.empty()) given.onnxruntime = options.onnxruntime.c_str();
    if (!options.provider.empty()) given.provider = options.provider.c_str();
    given.threads = options.threads;
    given.verify = options.verify;
    l4_engine* made = nullptr;
    check(l4_engine_open(directory.c_str(), &given, &made));
    handle_.reset(made);
  }

  // What it points to lives as long as the engine.
  l4_engine_info info() const {
    l4_engine_info info{};
    info.size = sizeof info;
    check(l4_engine_get_info(handle_.get(), &info));
    return info;
  }

  std::string manifest() const { return l4_engine_manifest(handle_.get()); }
  void forget_images() const { check(l4_engine_forget_images(handle_.get())); }
  l4_engine* handle() const { return handle_.get(); }

 private:
  detail::Handle<l4_engine, &l4_engine_close> handle_;
};

struct SessionOptions {
  std::int32_t rows = 1;
  std::int64_t capacity = 0;               // tokens that a row can hold; 0: up to the engine's max_context
  std::vector<std::int64_t> starts = {};  // position of each row's first token; empty: 0
};

struct RowTokens {
  std::int32_t row;
  Ids ids;
  const Images* images = nullptr;
};

// Logits float32 [rows, positions, vocab], good until the session's next call.
struct Logits {
  const float* values;
  std::size_t rows, positions, vocab;

  const float* at(std::size_t row, std::size_t position = 0) const { return values + (row * positions + position) * vocab; }
};

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

class Session {
 public:
  explicit Session(const Engine& engine, const SessionOptions& options = {}) {
    l4_session_options given = L4_SESSION_OPTIONS_DEFAULT;
    given.rows = options.rows;
    given.capacity = options.capacity;
    if (!options.starts.empty()) {
      if (options.starts.size() != static_cast<std::size_t>(options.rows)) {
        throw Error(L4_BAD_INPUT, "starts are given for " + std::to_string(options.starts.size()) +
                                      " rows: give one for each of " + std::to_string(options.rows));
      }
      given.starts = options.starts.data();
    }
    l4_session* made = nullptr;
    check(l4_session_create(engine.handle(), &given, &made));
    adopt(made, engine.info().vocab_size);
  }

  static Session load(const Engine& engine, const std::string& path) {
    l4_session* made = nullptr;
    check(l4_session_load(engine.handle(), path.c_str(), &made));
    return Session(made, engine.info().vocab_size);
  }

  l4_session_info info() const {
    l4_session_info info{};
    info.size = sizeof info;
    check(l4_session_get_info(handle_.get(), &info));
    return info;
  }

  l4_row_info row(std::int32_t row) const {
    l4_row_info info{};
    info.size = sizeof info;
    check(l4_session_row(handle_.get(), row, &info));
    return info;
  }

  Ids token_ids(std::int32_t row = 0) const {
    return detail::collected<Ids>(0, [&](std::int32_t* ids, std::size_t capacity, std::size_t* count) {
      return l4_session_token_ids(handle_.get(), row, ids, capacity, count);
    });
  }

  // Feed new tokens of some rows.
  Logits append(const std::vector<RowTokens>& tokens, bool last_only = false) {
    std::vector<l4_row_tokens> rows;
    for (const RowTokens& each : tokens) {
      const l4_images* images = each.images != nullptr ? each.images->handle() : nullptr;
      rows.push_back({sizeof(l4_row_tokens), each.row, each.ids.data(), each.ids.size(), images});
    }
    const float* logits = nullptr;
    std::size_t positions = 0;
    check(l4_session_append(handle_.get(), rows.data(), rows.size(), last_only, &logits, &positions));
    return {logits, static_cast<std::size_t>(info().rows), positions, vocab_};
  }

  void rewind(std::int32_t row, std::int64_t tokens) { check(l4_session_rewind_row(handle_.get(), row, tokens)); }
  void reset() { check(l4_session_reset(handle_.get())); }

  // A new session with copies of `rows`; empty: of all.
  Session fork(const std::vector<std::int32_t>& rows = {}) {
    l4_session* made = nullptr;
    check(l4_session_fork(handle_.get(), rows.empty() ? nullptr : rows.data(), rows.size(), &made));
    return Session(made, vocab_);
  }

  void copy_row(std::int32_t row, Session& source, std::int32_t source_row) {
    check(l4_session_copy_row(handle_.get(), row, source.handle(), source_row));
  }

  void save(const std::string& path) { check(l4_session_save(handle_.get(), path.c_str())); }

  // End the call that runs, from any thread: it throws Error with L4_CANCELLED.
  void cancel() noexcept { l4_session_cancel(handle_.get()); }

  // Continue a prompt for each row. Everything is checked here; tokens are computed as they are asked for.
  Generation generate(const std::vector<Prompt>& prompts, const GenerateOptions& options = {}) {
    detail::CRequest request(prompts, options);
    l4_generation* made = nullptr;
    check(l4_generation_start(handle_.get(), request.prompts(), request.count(), request.options(), &made));
    return Generation(made, request.take_samplings());
  }

  // The same for a session of one row.
  Generation generate(Ids ids, const GenerateOptions& options = {}, Sampling sampling = {}) {
    return generate({Prompt{std::move(ids), std::move(sampling), nullptr}}, options);
  }

  // The same in one call, which `cancel` ends also between two tokens: `on_token(const Token&)` returns whether its row goes
  // on. What it throws ends the call.
  template <typename OnToken>
  void generate(const std::vector<Prompt>& prompts, const GenerateOptions& options, OnToken&& on_token) {
    detail::CRequest request(prompts, options);
    struct Caller {
      OnToken& on_token;
      l4_session* session;
      std::exception_ptr thrown;
    } caller{on_token, handle_.get(), nullptr};
    const l4_on_token hand_on = [](void* user, const l4_token* token) noexcept -> int {
      auto& to = *static_cast<Caller*>(user);
      try {
        if (!to.thrown && to.on_token(detail::token_of(*token))) return L4_CONTINUE;
      } catch (...) {
        to.thrown = std::current_exception();
        l4_session_cancel(to.session);
      }
      return L4_STOP_ROW;
    };
    const l4_status status = l4_session_generate(handle_.get(), request.prompts(), request.count(), request.options(),
                                                 hand_on, &caller);
    if (caller.thrown) std::rethrow_exception(caller.thrown);
    for (const auto& sampling : request.take_samplings()) sampling->rethrow();
    check(status);
  }

  l4_session* handle() const { return handle_.get(); }

 private:
  Session(l4_session* handle, std::size_t vocab) { adopt(handle, vocab); }
  void adopt(l4_session* handle, std::size_t vocab) {
    handle_.reset(handle);
    vocab_ = vocab;
  }

  detail::Handle<l4_session, &l4_session_close> handle_;
  std::size_t vocab_ = 0;
};

}  // namespace l4export

#endif
