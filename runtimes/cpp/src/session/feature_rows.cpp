#include "session/feature_rows.hpp"

#include <algorithm>

namespace l4 {

void FeatureRows::take(std::int64_t count, std::vector<std::byte>& out) {
  while (count > 0) {
    const Features& image = *images_[image_];
    const std::int64_t taken = std::min(count, image.rows - row_);
    const auto width = static_cast<std::ptrdiff_t>(image.bytes.size()) / image.rows;
    out.insert(out.end(), image.bytes.begin() + row_ * width, image.bytes.begin() + (row_ + taken) * width);
    count -= taken;
    row_ += taken;
    if (row_ == image.rows) {
      ++image_;
      row_ = 0;
    }
  }
}

}  // namespace l4
