// A session: the KV cache of some rows of tokens, and the calls that extend them.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cache/kv_cache.hpp"
#include "session/cancellation.hpp"
#include "session/feeding.hpp"
#include "session/image_features.hpp"
#include "session/new_tokens.hpp"
#include "session/one_caller.hpp"
#include "session/session_state.hpp"

namespace l4 {

// What sessions are made of: all of it is shared, and lives as long as one of them.
struct SessionParts {
  std::shared_ptr<const Decoder> decoder;
  std::shared_ptr<const engine::Manifest> manifest;
  std::shared_ptr<ImageFeatures> features;  // NULL: sessions see no images
};

// Logits float32 [rows, positions, vocab], in memory of the session: good until its next append or step.
struct Logits {
  const float* values;
  std::int64_t rows, positions, vocab;

  const float* at(std::int64_t row, std::int64_t position = 0) const {
    return values + (row * positions + position) * vocab;
  }
};

// Rows of tokens, each at its own length. Whoever calls a method, other than `cancel`, holds a `Session::Call`.
class Session {
 public:
  // A method that runs: a second caller is refused, and from now on `cancel` counts. While it is held, several methods
  // may be called by who holds it, as a generation does; what cancels one of them cancels all that follow.
  class Call {
   public:
    Call(Session& session, const char* method);  // raises Error (L4_BAD_INPUT): one runs already
    ~Call() { session_.cancellation_.disarm(); }
    void check_cancelled() const { session_.cancellation_.check(); }  // raises Error (L4_CANCELLED)

   private:
    OneCaller::Call in_use_;
    Session& session_;
  };

  // `capacity`: tokens that a row can hold, 0: up to the engine's max_context. `starts`: position of each row's first
  // token, empty: 0. Raises Error (L4_BAD_INPUT): numbers out of range, or buffers that do not fit into memory.
  Session(SessionParts parts, std::int64_t rows, std::int64_t capacity, std::vector<std::int64_t> starts);

  // A session in a given state; `tokens` holds for each row what a session's `tokens` gives. They are copied.
  static std::shared_ptr<Session> restored(SessionParts parts, SessionState state,
                                           const std::vector<RowArrays>& tokens);

  std::int64_t rows() const { return static_cast<std::int64_t>(state_.rows()); }
  std::int64_t capacity() const { return state_.capacity; }
  const SessionState& state() const { return state_; }
  std::uint64_t version() const { return version_; }  // another number whenever the state has changed
  const std::shared_ptr<const engine::Manifest>& manifest() const { return parts_.manifest; }
  const std::shared_ptr<const Decoder>& decoder() const { return parts_.decoder; }
  std::uint64_t kv_bytes() const { return cache_->bytes(); }

  // Raise Error (L4_BAD_INPUT) where `append` would refuse the tokens now; places their images.
  void check(NewTokens& tokens) const;

  // Feed new tokens. With `last_only` there is one position, the logits of each row's last new token; else as many as
  // the row with the most new tokens has. Entries that belong to no new token are NaN.
  //
  // An append that fails or is cancelled leaves the session as it was. If even that fails, as it may on a lost GPU, all
  // further calls are refused but `reset`. Raises Error: L4_BAD_INPUT, L4_CANCELLED.
  Logits append(NewTokens& tokens, bool last_only);

  // Feed one chosen token a row, -1 for a row that goes no further; `tokens` [rows]. Should a model choose the image
  // token itself, that is taken by its embedding. Otherwise as `append`.
  Logits step(const std::int32_t* tokens);

  // Forget the last tokens[row] tokens of every row; see `check_rewind`. The session is as before where it is refused.
  void rewind(const std::vector<std::int64_t>& tokens);
  void rewind_row(std::int64_t row, std::int64_t tokens);
  // Forget every token; the buffers stay.
  void reset();
  // A new session with copies of `rows`.
  std::shared_ptr<Session> fork(const std::vector<std::int64_t>& rows) const;
  // Make a row the copy of a row of this or of another session of the engine, which is only read. Raises
  // Error (L4_BAD_INPUT): no such rows, another engine or another start, or more tokens than this session's capacity.
  // Nothing has changed then; only a GPU that is lost while it copies leaves what an append may leave there.
  void copy_row(std::int64_t row, const Session& source, std::int64_t source_row);
  // One file format for all runtimes. Raises Error (L4_STORAGE).
  void save(const std::string& path) const;

  // End the call that runs, from any thread; without one nothing happens.
  void cancel() noexcept { cancellation_.request(); }

 private:
  Logits feed(NewTokens& tokens, bool last_only, std::vector<FeatureRows>* features);
  std::optional<std::vector<FeatureRows>> features_of(const NewTokens& tokens);
  float* logits_memory(std::size_t count);
  void reserve(const NewTokens& tokens);
  void commit(NewTokens& tokens) noexcept;
  void undo(const std::string& why);
  RowTokens tokens_of(std::size_t row) const;
  Chunks chunks() const;
  std::size_t checked_row(std::int64_t row, const char* name) const;
  void check_whole() const;

  SessionParts parts_;
  OneCaller one_caller_;
  Cancellation cancellation_;
  SessionState state_;
  std::uint64_t version_ = 0;
  std::unique_ptr<KVCache> cache_;
  std::optional<Feeding> feeding_;
  NewTokens stepped_;
  std::vector<LosingRow> losing_;
  std::unique_ptr<float[]> logits_;
  std::size_t logits_room_ = 0;
  bool is_whole_ = true;
};

}  // namespace l4
