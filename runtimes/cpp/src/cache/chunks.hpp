// Which chunk's keys a cache of one chunk holds, row by row: the arithmetic of layout "chunked".
#pragma once

#include <cstdint>
#include <vector>

namespace l4 {

// Rows of tokens cut into chunks of `size` positions each; 0: one chunk without end, which holds everything.
//
// The token at position p lies in slot p - max(c * size, start) of its row's cache, c = floor(p / size) being its chunk
// and `start` the row's first position. A token of the next chunk takes the first slot again.
class Chunks {
 public:
  // `starts`: position of each row's first token. Every row holds the chunk of that one.
  Chunks(std::int64_t size, std::vector<std::int64_t> starts);
  // `held`: the chunk whose tokens lie in each row's cache.
  Chunks(std::int64_t size, std::vector<std::int64_t> starts, std::vector<std::int64_t> held);

  std::int64_t size() const { return size_; }
  const std::vector<std::int64_t>& starts() const { return starts_; }
  const std::vector<std::int64_t>& held() const { return held_; }
  void set_held(const std::vector<std::int64_t>& held) { held_.assign(held.begin(), held.end()); }

  // Tokens from `position` on that one call may take.
  std::int64_t room(std::int64_t position) const { return size_ - position % size_; }

  // A token at `position` is about to be written.
  void write(std::size_t row, std::int64_t position) { held_[row] = position / size_; }

  // Slots that hold the tokens before position `end`, none where they belong to another chunk.
  std::int64_t used(std::size_t row, std::int64_t end) const;

  // Whether a row that ends before position `end` has every key that its next token sees.
  bool complete(std::size_t row, std::int64_t end) const {
    return end % size_ == 0 || end == starts_[row] || used(row, end) > 0;
  }

  // Whether `count` tokens from position `end` on take the place of tokens of a chunk that is not over.
  bool loses(std::int64_t end, std::int64_t count) const { return end % size_ != 0 && count > room(end); }

 private:
  std::int64_t size_;
  std::vector<std::int64_t> starts_, held_;
};

}  // namespace l4
