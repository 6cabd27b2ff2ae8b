#include "session/image_features.hpp"

#include <new>

namespace l4 {

std::shared_ptr<const Features> ImageFeatures::of(const images::ProcessedImages& images, std::size_t index,
                                                  const RunOptions& options) {
  const images::ProcessedImage& image = images.images[index];
  if (auto found = kept(image.digest)) return found;
  const std::string which = "image " + std::to_string(index + 1);
  std::shared_ptr<const Features> features;
  try {
    features = std::make_shared<const Features>(tower_->features(images.tiles_of(index), image.tile_count, options));
  } catch (const OnnxRuntimeFailure& failure) {
    throw bad_input(which + ": the tower refused it: " + failure.what());
  } catch (const std::bad_alloc&) {
    throw bad_input(which + ": the tower refused it: out of memory");
  }
  if (static_cast<std::size_t>(features->rows) != image.feature_rows) {
    throw bad_input(which + ": the tower gives " + std::to_string(features->rows) + " rows for " +
                    std::to_string(image.feature_rows) + " tokens; build it again");
  }
  keep(image.digest, features);
  return features;
}

void ImageFeatures::forget() {
  const std::lock_guard<std::mutex> locked(lock_);
  places_.clear();
  kept_.clear();
  bytes_ = 0;
}

std::shared_ptr<const Features> ImageFeatures::kept(const std::string& digest) {
  const std::lock_guard<std::mutex> locked(lock_);
  const auto found = places_.find(digest);
  if (found == places_.end()) return nullptr;
  kept_.splice(kept_.end(), kept_, found->second);
  return found->second->second;
}

void ImageFeatures::keep(const std::string& digest, const std::shared_ptr<const Features>& features) {
  const std::lock_guard<std::mutex> locked(lock_);
  if (places_.count(digest) != 0) return;  // another thread was faster
  std::list<Kept> kept{{digest, features}};
  places_.emplace(kept.front().first, kept.begin());
  kept_.splice(kept_.end(), kept);  // which cannot fail, and moves nothing in memory
  bytes_ += features->bytes.size();
  while (bytes_ > most_) {
    bytes_ -= kept_.front().second->bytes.size();
    places_.erase(kept_.front().first);
    kept_.pop_front();
  }
}

}  // namespace l4
