// Sessions: rows of tokens that are fed, continued, copied and saved.
#ifndef L4EXPORT_SESSION_HPP
#define L4EXPORT_SESSION_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "l4export/engine.hpp"
#include "l4export/generation.hpp"
#include "l4export/images.hpp"

namespace l4export {

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

  const float* at(std::size_t row, std::size_t position = 0) const {
    return values + (row * positions + position) * vocab;
  }
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

  // The same in one call, which `cancel` ends also between two tokens: `on_token(const Token&)` returns whether its row
  // goes on. What it throws ends the call.
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
