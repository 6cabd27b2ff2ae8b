#include "session/rewinding.hpp"

#include <algorithm>
#include <string>

#include "base/error.hpp"

namespace l4 {

void check_rewind(std::size_t row, const SessionState& state, std::int64_t count, const Chunks& chunks) {
  const std::int64_t had = state.lengths[row], start = state.starts[row];
  const auto refused = [&](const std::string& why) {
    return bad_input("row " + std::to_string(row) + ": cannot go back " + why);
  };
  if (count < 0 || count > had) {
    throw refused(std::to_string(count) + " tokens, it has " + std::to_string(had));
  }
  const std::int64_t length = had - count, end = start + length;
  for (const PlacedImage& image : state.images[row]) {
    if (image.start >= length || length >= image.stop) continue;
    throw refused("to " + std::to_string(length) + " tokens, in the middle of an image; go back to " +
                  std::to_string(image.start) + " or " + std::to_string(image.stop) + " tokens");
  }
  if (!chunks.complete(row, end)) {
    const std::int64_t begin = end - end % chunks.size();
    throw refused("to position " + std::to_string(end) + ", the keys of its chunk are gone; go back to position " +
                  std::to_string(std::max(begin, start)) + " or " + std::to_string(begin + chunks.size()) +
                  " and append from there");
  }
}

void rewind_row(std::size_t row, SessionState& state, std::int64_t count) noexcept {
  state.lengths[row] -= count;
  const std::int64_t length = state.lengths[row];
  std::vector<PlacedImage>& images = state.images[row];
  while (!images.empty() && images.back().stop > length) images.pop_back();
  state.ids[row].resize(static_cast<std::size_t>(length));
}

}  // namespace l4
