// The features of one row's new images, handed out from the first on as its image tokens are fed.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "session/features.hpp"

namespace l4 {

class FeatureRows {
 public:
  explicit FeatureRows(std::vector<std::shared_ptr<const Features>> images = {}) : images_(std::move(images)) {}

  // Append the next `count` rows to `out`; there must be as many.
  void take(std::int64_t count, std::vector<std::byte>& out);

 private:
  std::vector<std::shared_ptr<const Features>> images_;
  std::size_t image_ = 0;
  std::int64_t row_ = 0;  // of that image, the first that is not handed out
};

}  // namespace l4
