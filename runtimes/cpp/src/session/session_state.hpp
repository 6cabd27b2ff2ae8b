// What a session is, beside its keys and values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace l4 {

// An image in a row of tokens.
struct PlacedImage {
  std::int64_t start;  // how many of the row's tokens stand before its first feature
  std::int64_t stop;   // how many of them stand up to its last feature
  std::string digest;  // of its tiles: equal prompts have equal token ids and equal digests
};

struct SessionState {
  std::int64_t capacity = 0;                      // tokens that a row can hold
  std::vector<std::int64_t> lengths;              // [rows], tokens that each row holds
  std::vector<std::int64_t> starts;               // [rows], positions of each row's first token
  std::vector<std::int64_t> held;                 // [rows], the chunk whose keys lie in each row's caches of one chunk
  std::vector<std::vector<PlacedImage>> images;   // of each row, those that it holds, in their order
  std::vector<std::vector<std::int64_t>> ids;     // of each row, the ids of its tokens

  std::size_t rows() const { return lengths.size(); }
  std::int64_t end(std::size_t row) const { return starts[row] + lengths[row]; }  // the position of its next token

  // Without a token; `chunk` is the size of a chunk, 0 where there are none.
  static SessionState empty(std::int64_t capacity, const std::vector<std::int64_t>& starts, std::int64_t chunk) {
    SessionState state;
    const std::size_t rows = starts.size();
    state.capacity = capacity;
    state.lengths.assign(rows, 0);
    state.starts = starts;
    for (const std::int64_t start : starts) state.held.push_back(chunk == 0 ? 0 : start / chunk);
    state.images.resize(rows);
    state.ids.resize(rows);
    return state;
  }

  // The state of some rows.
  SessionState of(const std::vector<std::size_t>& chosen) const {
    SessionState state;
    state.capacity = capacity;
    for (const std::size_t row : chosen) {
      state.lengths.push_back(lengths[row]);
      state.starts.push_back(starts[row]);
      state.held.push_back(held[row]);
      state.images.push_back(images[row]);
      state.ids.push_back(ids[row]);
    }
    return state;
  }
};

}  // namespace l4
