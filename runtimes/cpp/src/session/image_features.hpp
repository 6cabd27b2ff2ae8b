// Features of images: computed once an image, and kept for the next prompt that shows it.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "images/processor.hpp"
#include "session/features.hpp"

namespace l4 {

// An engine's vision tower with a memory of what it has seen; shared by sessions and threads. When there is more than
// `most_bytes`, the images that were asked for the longest time ago are forgotten.
class ImageFeatures {
 public:
  static constexpr std::size_t most_bytes = std::size_t{512} << 20;  // 10 images of 17 tiles of Llama 4 in float32

  explicit ImageFeatures(std::unique_ptr<const Tower> tower, std::size_t most = most_bytes)
      : tower_(std::move(tower)), most_(most) {}

  // The rows of an image. Raises Error: the tower does not take the tiles, or gives another number of rows for them.
  std::shared_ptr<const Features> of(const images::ProcessedImages& images, std::size_t index,
                                     const RunOptions& options);

  void forget();  // all images

 private:
  using Kept = std::pair<std::string, std::shared_ptr<const Features>>;

  std::shared_ptr<const Features> kept(const std::string& digest);
  void keep(const std::string& digest, const std::shared_ptr<const Features>& features);

  std::unique_ptr<const Tower> tower_;
  std::size_t most_;
  std::mutex lock_;      // of the memory alone: threads compute side by side
  std::list<Kept> kept_;  // the one that was asked for last at the end
  std::unordered_map<std::string_view, std::list<Kept>::iterator> places_;
  std::size_t bytes_ = 0;
};

}  // namespace l4
