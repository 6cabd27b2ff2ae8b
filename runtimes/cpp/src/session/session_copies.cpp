// How sessions are copied, row by row or into a file, and made from such copies.
#include <algorithm>
#include <utility>

#include "session/saved_session.hpp"
#include "session/session.hpp"

namespace l4 {

std::shared_ptr<Session> Session::restored(SessionParts parts, SessionState state,
                                           const std::vector<RowArrays>& tokens) {
  const auto rows = static_cast<std::int64_t>(state.rows());
  auto session = std::make_shared<Session>(std::move(parts), rows, state.capacity, state.starts);
  session->cache_->make_room(*std::max_element(state.lengths.begin(), state.lengths.end()));
  for (std::size_t row = 0; row < tokens.size(); ++row) session->cache_->put(row, tokens[row]);
  session->state_ = std::move(state);
  return session;
}

std::shared_ptr<Session> Session::fork(const std::vector<std::int64_t>& rows) const {
  check_whole();
  if (rows.empty()) throw bad_input("rows are none: give rows of 0 to " + std::to_string(this->rows() - 1));
  std::vector<std::size_t> chosen;
  std::vector<RowTokens> tokens;
  std::vector<RowArrays> arrays;
  for (const std::int64_t row : rows) {
    chosen.push_back(checked_row(row, "a row"));
    tokens.push_back(tokens_of(chosen.back()));
    arrays.push_back(tokens.back().arrays);
  }
  return restored(parts_, state_.of(chosen), arrays);
}

void Session::copy_row(std::int64_t row, const Session& source, std::int64_t source_row) {
  check_whole();
  source.check_whole();
  const std::size_t to = checked_row(row, "row"), from = source.checked_row(source_row, "source_row");
  const SessionState& given = source.state_;
  if (source.parts_.manifest->sha256 != parts_.manifest->sha256) {
    throw bad_input("source is a session of another engine: give a session of this engine");
  }
  if (given.starts[from] != state_.starts[to]) {
    throw bad_input("row " + std::to_string(to) + " starts at position " + std::to_string(state_.starts[to]) +
                    " and the source at " + std::to_string(given.starts[from]) + ": copy rows of one start");
  }
  if (given.lengths[from] > capacity()) {
    throw bad_input("the source has " + std::to_string(given.lengths[from]) +
                    " tokens, more than this session's capacity of " + std::to_string(capacity()) +
                    "; rewind it or give a larger capacity");
  }
  if (&source == this && to == from) return;
  std::vector<std::int64_t> ids = given.ids[from];
  std::vector<PlacedImage> images = given.images[from];
  cache_->make_room(given.lengths[from]);
  const RowTokens tokens = source.tokens_of(from);  // after making room, which may have moved them
  is_whole_ = false;
  cache_->put(to, tokens.arrays);
  state_.lengths[to] = given.lengths[from];
  state_.held[to] = given.held[from];
  state_.ids[to].swap(ids);
  state_.images[to].swap(images);
  ++version_;
  is_whole_ = true;
}

void Session::save(const std::string& path) const {
  check_whole();
  std::vector<RowTokens> tokens;
  std::vector<RowArrays> arrays;
  for (std::size_t row = 0; row < state_.rows(); ++row) {
    tokens.push_back(tokens_of(row));
    arrays.push_back(tokens.back().arrays);
  }
  write_session(path, *parts_.manifest, state_, arrays);
}

RowTokens Session::tokens_of(std::size_t row) const {
  return cache_->tokens(row, state_.lengths[row], chunks().used(row, state_.end(row)));
}

}  // namespace l4
