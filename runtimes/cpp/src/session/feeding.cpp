#include "session/feeding.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "base/error.hpp"

namespace l4 {
namespace {

std::int64_t longest(const std::vector<std::vector<std::int64_t>>& rows) {
  std::size_t most = 0;
  for (const auto& row : rows) most = std::max(most, row.size());
  return static_cast<std::int64_t>(most);
}

void fill_with_nan(float* from, std::int64_t count) {
  std::fill_n(from, count, std::numeric_limits<float>::quiet_NaN());
}

}  // namespace

std::optional<FeatureInput> FeatureInput::of(const engine::Manifest& manifest) {
  if (!manifest.vision) return std::nullopt;
  for (const engine::TensorSpec& input : manifest.decoder().inputs) {
    if (input.name == "image_features") {
      return FeatureInput{manifest.vision->image_token_id, manifest.model.hidden_size, element_type(input.dtype)};
    }
  }
  return std::nullopt;
}

Feeding::Feeding(KVCache& cache, const FeedingLimits& limits, Chunks chunks, std::optional<FeatureInput> input)
    : cache_(cache), limits_(limits), chunks_(std::move(chunks)), input_(std::move(input)),
      filler_(input_ && input_->token == 0), lengths_(chunks_.starts().size()), done_(lengths_.size()),
      counts_(lengths_.size()), features_(1) {}

std::size_t Feeding::room(const Rows& rows, bool last_only) const {
  std::size_t count = 1;
  for (const std::int64_t size :
       {static_cast<std::int64_t>(rows.size()), last_only ? 1 : longest(rows), limits_.vocab}) {
    if (__builtin_mul_overflow(count, static_cast<std::size_t>(size), &count)) throw std::bad_alloc();
  }
  return count;
}

void Feeding::begin(const SessionState& state) {
  lengths_ = state.lengths;
  chunks_.set_held(state.held);
  std::fill(done_.begin(), done_.end(), 0);
}

void Feeding::feed(const Rows& rows, bool last_only, std::vector<FeatureRows>* features,
                   const Cancellation& cancellation, float* logits) {
  waiting_ = features;
  cancellation_ = &cancellation;
  const std::int64_t most = longest(rows), width = last_only ? 1 : most;
  const auto fed = std::count_if(rows.begin(), rows.end(), [](const auto& row) { return !row.empty(); });
  // a row alone is cheaper than all of them, where its call gives the same kind of numbers
  if (rows.size() > 1 && most == 1 && (fed > 1 || !limits_.together) && all_have_room()) {
    step(rows, logits);
    return;
  }
  const bool all_begin = std::all_of(lengths_.begin(), lengths_.end(), [](std::int64_t length) { return length == 0; });
  const bool all_grow = fed == static_cast<std::ptrdiff_t>(rows.size());
  if (rows.size() > 1 && limits_.together && all_grow && all_begin) first_piece(rows, last_only, width, logits);
  one_row_at_a_time(rows, last_only, width, logits);
}

// Feed what is not done yet. The logits of a piece lie in one piece, so that the decoder writes them in their place.
void Feeding::one_row_at_a_time(const Rows& rows, bool last_only, std::int64_t width, float* logits) {
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const auto count = static_cast<std::int64_t>(rows[row].size());
    float* of_row = logits + static_cast<std::int64_t>(row) * width * limits_.vocab;
    while (done_[row] < count) {
      const std::int64_t piece = std::min(count - done_[row], at_most(row));
      counts_[0] = piece;
      run(row, rows[row].data() + done_[row], piece, last_only, of_row + (last_only ? 0 : done_[row] * limits_.vocab));
      lengths_[row] += piece;
      done_[row] += piece;
    }
    const std::int64_t filled = last_only ? count > 0 : count;
    fill_with_nan(of_row + filled * limits_.vocab, (width - filled) * limits_.vocab);
  }
}

// Whether every row can take a token, were it a placeholder.
bool Feeding::all_have_room() const {
  for (std::size_t row = 0; row < lengths_.size(); ++row) {
    if (lengths_[row] >= limits_.capacity || chunks_.starts()[row] + lengths_[row] >= limits_.context) return false;
  }
  return true;
}

// One token a row. A row without one is fed a placeholder whose slot its next token overwrites.
void Feeding::step(const Rows& rows, float* logits) {
  ids_.resize(rows.size());
  for (std::size_t row = 0; row < rows.size(); ++row) ids_[row] = rows[row].empty() ? filler_ : rows[row][0];
  std::fill(counts_.begin(), counts_.end(), 1);
  run(std::nullopt, ids_.data(), 1, true, logits);
  for (std::size_t row = 0; row < rows.size(); ++row) {
    lengths_[row] += static_cast<std::int64_t>(rows[row].size());
    if (rows[row].empty()) fill_with_nan(logits + static_cast<std::int64_t>(row) * limits_.vocab, limits_.vocab);
  }
}

// The beginnings of all rows in one call, padded on the right.
void Feeding::first_piece(const Rows& rows, bool last_only, std::int64_t width, float* logits) {
  std::int64_t tokens = 0;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    done_[row] = std::min(static_cast<std::int64_t>(rows[row].size()), at_most(row));
    tokens = std::max(tokens, done_[row]);
  }
  ids_.assign(rows.size() * static_cast<std::size_t>(tokens), filler_);
  for (std::size_t row = 0; row < rows.size(); ++row) {
    std::copy_n(rows[row].begin(), done_[row], ids_.begin() + static_cast<std::int64_t>(row) * tokens);
  }
  counts_ = done_;
  run(std::nullopt, ids_.data(), tokens, last_only, logits);
  for (std::size_t row = 0; row < rows.size(); ++row) lengths_[row] += done_[row];
  if (last_only || tokens == width) return;
  // rows are `width` positions apart, which is more than the call's: from the last one on, so that none is written over
  for (auto row = static_cast<std::int64_t>(rows.size()) - 1; row > 0; --row) {
    std::memmove(logits + row * width * limits_.vocab, logits + row * tokens * limits_.vocab,
                 static_cast<std::size_t>(tokens * limits_.vocab) * sizeof(float));
  }
}

// How many tokens of a row one call may take: none of the next chunk.
std::int64_t Feeding::at_most(std::size_t row) const {
  return std::min(limits_.piece, chunks_.room(chunks_.starts()[row] + lengths_[row]));
}

// One decoder call on one row, or on all of them, of which `counts_` are new.
void Feeding::run(std::optional<std::size_t> row, const std::int64_t* ids, std::int64_t tokens, bool last_only,
                  float* logits) {
  cancellation_->check();
  const std::size_t first = row.value_or(0), rows = row ? 1 : lengths_.size();
  for (std::size_t each = first; each < first + rows; ++each) {
    chunks_.write(each, chunks_.starts()[each] + lengths_[each]);
  }
  Call call{row, static_cast<std::int64_t>(rows), tokens, ids, counts_.data(), lengths_.data() + first,
            chunks_.starts().data() + first, last_only, std::nullopt, &cancellation_->options(), logits};
  if (input_) {
    features_.clear();
    if (waiting_ != nullptr) take_features(first, rows, ids, tokens);
    const std::int64_t row_bytes = input_->width * input_->type.bytes;
    features_.reserve(1);  // so that there is an address
    call.features = CallFeatures{features_.data(), static_cast<std::int64_t>(features_.size()) / row_bytes,
                                 input_->width, input_->type};
  }
  cache_.run(call);
}

void Feeding::take_features(std::size_t first, std::size_t rows, const std::int64_t* ids, std::int64_t tokens) {
  for (std::size_t each = 0; each < rows; ++each) {
    const std::int64_t* of_row = ids + static_cast<std::int64_t>(each) * tokens;
    (*waiting_)[first + each].take(std::count(of_row, of_row + tokens, input_->token), features_);
  }
}

}  // namespace l4
