#include "session/session.hpp"

#include <algorithm>
#include <new>
#include <utility>

#include "session/rewinding.hpp"

namespace l4 {
namespace {

constexpr std::int64_t most_rows = std::int64_t{1} << 20;
constexpr std::size_t small_logits = std::size_t{16} << 20;  // floats that a session may keep unused

std::int64_t checked_rows(std::int64_t rows) {
  if (rows >= 1 && rows <= most_rows) return rows;
  throw bad_input("rows is " + std::to_string(rows) + ": give a whole number, 1 to " + std::to_string(most_rows));
}

SessionState first_state(const engine::Manifest& manifest, std::int64_t rows, std::int64_t capacity,
                         std::vector<std::int64_t> starts) {
  const std::int64_t limit = manifest.max_context;
  if (capacity < 0) throw bad_input("capacity is " + std::to_string(capacity) + ": give a whole number, 0 or more");
  if (capacity > limit) {
    throw bad_input("capacity is " + std::to_string(capacity) + ": this engine was built for 1 to " +
                    std::to_string(limit) + " tokens (--max-context)");
  }
  if (starts.empty()) starts.assign(static_cast<std::size_t>(rows), 0);
  for (const std::int64_t start : starts) {
    if (start >= 0 && start < limit) continue;
    throw bad_input("start is " + std::to_string(start) + ": this engine has positions 0 to " +
                    std::to_string(limit - 1) + " (--max-context)");
  }
  const std::int64_t room = capacity != 0 ? capacity : limit - *std::min_element(starts.begin(), starts.end());
  return SessionState::empty(room, starts, manifest.prefill_cut.value_or(0));
}

FeedingLimits limits_of(const engine::Manifest& manifest, std::int64_t capacity) {
  // attention of ort-cuda engines is told the capacity, not the longest row, and sees no first call of many rows
  const bool together = manifest.decoder().runtime.provider != "cuda";
  return {manifest.prefill_max_tokens, capacity, manifest.max_context, manifest.model.vocab_size, together};
}

Error refused(const std::string& why) { return bad_input("the engine refused the call: " + why); }

}  // namespace

Session::Call::Call(Session& session, const char* method) : in_use_(session.one_caller_, method), session_(session) {
  session.cancellation_.arm();
}

Session::Session(SessionParts parts, std::int64_t rows, std::int64_t capacity, std::vector<std::int64_t> starts)
    : parts_(std::move(parts)),
      one_caller_("the session", "use a session for each thread, or wait for that call to end"),
      cancellation_(parts_.decoder->runtime()),
      state_(first_state(*parts_.manifest, checked_rows(rows), capacity, std::move(starts))),
      stepped_(static_cast<std::size_t>(rows)) {
  const engine::Manifest& manifest = *parts_.manifest;
  try {
    cache_ = parts_.decoder->new_cache(manifest, rows, state_.capacity);
    losing_.reserve(static_cast<std::size_t>(rows));
  } catch (const std::bad_alloc&) {
    throw bad_input("no memory for " + std::to_string(rows) + " x " + std::to_string(state_.capacity) +
                    " tokens of keys and values; give a smaller capacity or fewer rows");
  }
  feeding_.emplace(*cache_, limits_of(manifest, state_.capacity), chunks(), FeatureInput::of(manifest));
}

void Session::check(NewTokens& tokens) const {
  tokens.check_tokens(state_, *parts_.manifest);
  // a graph alone takes any ids as text
  const auto& vision = parts_.manifest->vision;
  tokens.check_images(state_, parts_.features && vision ? &*vision : nullptr);
}

Logits Session::append(NewTokens& tokens, bool last_only) {
  check_whole();
  check(tokens);
  std::optional<std::vector<FeatureRows>> features = features_of(tokens);
  return feed(tokens, last_only, features ? &*features : nullptr);
}

Logits Session::step(const std::int32_t* tokens) {
  check_whole();
  stepped_.clear();
  for (std::size_t row = 0; row < state_.rows(); ++row) {
    if (tokens[row] != -1) stepped_.set(row, tokens + row, 1);
  }
  stepped_.check_tokens(state_, *parts_.manifest);
  return feed(stepped_, true, nullptr);
}

// Feed checked tokens; see `append`.
Logits Session::feed(NewTokens& tokens, bool last_only, std::vector<FeatureRows>* features) {
  feeding_->begin(state_);
  losing_.clear();
  for (std::size_t row = 0; row < state_.rows(); ++row) {
    const Chunks& now = feeding_->chunks();
    const std::int64_t end = state_.end(row), count = static_cast<std::int64_t>(tokens.rows()[row].size());
    if (now.loses(end, count)) losing_.emplace_back(row, now.used(row, end));
  }
  const std::size_t room = feeding_->room(tokens.rows(), last_only);
  float* logits = logits_memory(room);
  reserve(tokens);
  cache_->mark(losing_);
  is_whole_ = false;
  try {
    feeding_->feed(tokens.rows(), last_only, features, cancellation_, logits);
    cancellation_.check();
  } catch (const OnnxRuntimeFailure& failure) {
    undo(failure.what());
    cancellation_.check();
    throw refused(failure.what());
  } catch (const Error& error) {
    undo(error.what());
    throw;
  } catch (const std::bad_alloc&) {
    undo("out of memory");
    throw refused("out of memory");
  }
  commit(tokens);
  const auto vocab = static_cast<std::size_t>(parts_.manifest->model.vocab_size);
  return {logits, rows(), static_cast<std::int64_t>(room / vocab / state_.rows()), static_cast<std::int64_t>(vocab)};
}

// The features of each row's new images; none where no row has any.
std::optional<std::vector<FeatureRows>> Session::features_of(const NewTokens& tokens) {
  if (!parts_.features || !tokens.any_images()) return std::nullopt;
  std::vector<FeatureRows> rows;
  try {
    for (const Images& images : tokens.images()) {
      std::vector<std::shared_ptr<const Features>> of_row;
      for (std::size_t index = 0; images && index < images->images.size(); ++index) {
        cancellation_.check();
        of_row.push_back(parts_.features->of(*images, index, cancellation_.options()));
      }
      rows.emplace_back(std::move(of_row));
    }
  } catch (const Error&) {
    cancellation_.check();  // the tower was told to end
    throw;
  }
  return rows;
}

// Memory for so many floats: as it is where they fit, but not much larger than it must be.
float* Session::logits_memory(std::size_t count) {
  if (count > logits_room_ || (logits_room_ > small_logits && logits_room_ / 8 > count)) {
    logits_.reset();
    logits_room_ = 0;
    logits_.reset(new float[count]);
    logits_room_ = count;
  }
  return logits_.get();
}

// So that `commit` allocates nothing. A row's ids get all the room that they can need at its first append, and later
// ones allocate nothing; the system provides it as it is used.
void Session::reserve(const NewTokens& tokens) {
  for (std::size_t row = 0; row < state_.rows(); ++row) {
    std::vector<std::int64_t>& ids = state_.ids[row];
    const std::size_t due = ids.size() + tokens.rows()[row].size();
    if (due > ids.capacity()) ids.reserve(static_cast<std::size_t>(capacity()));
    state_.images[row].reserve(state_.images[row].size() + tokens.placed()[row].size());
  }
}

void Session::commit(NewTokens& tokens) noexcept {
  cache_->forget();
  for (std::size_t row = 0; row < state_.rows(); ++row) {
    const auto& ids = tokens.rows()[row];
    state_.ids[row].insert(state_.ids[row].end(), ids.begin(), ids.end());
    for (PlacedImage& image : tokens.placed()[row]) state_.images[row].push_back(std::move(image));
    state_.lengths[row] = feeding_->lengths()[row];
    state_.held[row] = feeding_->chunks().held()[row];
  }
  ++version_;
  is_whole_ = true;
}

// Go back to the state before an append that failed.
void Session::undo(const std::string& why) {
  // of rows whose chunk was over, that chunk is written over
  for (std::size_t row = 0; row < state_.rows(); ++row) {
    const bool losing =
        std::any_of(losing_.begin(), losing_.end(), [&](const LosingRow& each) { return each.first == row; });
    if (!losing) state_.held[row] = feeding_->chunks().held()[row];
  }
  ++version_;
  try {
    cache_->restore();
  } catch (const std::exception& second) {
    throw bad_input("a call failed (" + why + ") and could not be undone (" + printable(second.what()) +
                    "); reset the session or start a new one");
  }
  is_whole_ = true;
}

void Session::rewind(const std::vector<std::int64_t>& tokens) {
  check_whole();
  const Chunks now = chunks();
  for (std::size_t row = 0; row < state_.rows(); ++row) check_rewind(row, state_, tokens[row], now);
  for (std::size_t row = 0; row < state_.rows(); ++row) l4::rewind_row(row, state_, tokens[row]);
  ++version_;
}

void Session::rewind_row(std::int64_t row, std::int64_t tokens) {
  check_whole();
  const std::size_t index = checked_row(row, "row");
  check_rewind(index, state_, tokens, chunks());
  l4::rewind_row(index, state_, tokens);
  ++version_;
}

void Session::reset() {
  is_whole_ = false;
  cache_->reset();
  state_ = SessionState::empty(capacity(), state_.starts, parts_.manifest->prefill_cut.value_or(0));
  ++version_;
  is_whole_ = true;
}

// Which chunk's keys each row holds, as the state has it.
Chunks Session::chunks() const { return {parts_.manifest->prefill_cut.value_or(0), state_.starts, state_.held}; }

std::size_t Session::checked_row(std::int64_t row, const char* name) const {
  if (row >= 0 && row < rows()) return static_cast<std::size_t>(row);
  throw bad_input(std::string(name) + " is " + std::to_string(row) + ": give a whole number, 0 to " +
                  std::to_string(rows() - 1));
}

void Session::check_whole() const {
  if (!is_whole_) {
    throw bad_input("the session is unusable: a call was left half done; reset it or start a new one");
  }
}

}  // namespace l4
