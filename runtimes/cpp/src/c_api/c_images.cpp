// Images: pictures into tiles, and prompts with images.
#include <vector>

#include "c_api/guard.hpp"
#include "c_api/images_handle.hpp"
#include "images/processor.hpp"
#include "images/prompt.hpp"
#include "images/settings.hpp"

namespace l4::c_api {
namespace {

constexpr size_t kMostPictures = 1 << 16;  // of one call: nobody has so many, and a count that is none is refused

std::vector<images::Picture> pictures_of(const l4_picture* pictures, size_t count) {
  if (count > kMostPictures) {
    throw bad_input(std::to_string(count) + " pictures: at most " + std::to_string(kMostPictures) + " are taken");
  }
  std::vector<images::Picture> taken;
  for (size_t i = 0; i < count; ++i) {
    const std::string name = "image " + std::to_string(i + 1);
    const l4_picture picture = element_of(pictures, i, l4_picture{sizeof(l4_picture), nullptr, 0, 0});
    if (picture.width < 0 || picture.height < 0) {
      throw bad_input(name + ": has " + std::to_string(picture.width) + " x " + std::to_string(picture.height) +
                      " pixels; give its size");
    }
    given(picture.rgb, (name + ": rgb").c_str());
    taken.push_back({picture.rgb, static_cast<size_t>(picture.height), static_cast<size_t>(picture.width)});
  }
  return taken;
}

std::int32_t id_of(const l4_tokenizer* tokenizer, const char* token) {
  std::int32_t id = -1;
  const l4_status status = l4_tokenizer_token_id(tokenizer, token, &id);
  if (status != L4_OK) throw Error(status, l4_last_error());
  return id;
}

std::vector<std::int32_t> expanded(const l4_images* images, const l4_tokenizer* tokenizer, const std::int32_t* ids,
                                   size_t count) {
  const bool none = images == nullptr || images->images->images.empty();
  // nothing can be spelled, either
  if (none && id_of(tokenizer, "<|image|>") < 0) return std::vector<std::int32_t>(ids, ids + count);
  const auto tokens = images::ImageTokens::of([&](const char* token) { return id_of(tokenizer, token); });
  std::vector<images::Grid> grids;
  if (none) return images::expand(ids, count, grids, 0, tokens);
  for (const images::ProcessedImage& image : images->images->images) grids.push_back(image.grid);
  return images::expand(ids, count, grids, images->images->rows_of_a_tile, tokens);
}

}  // namespace
}  // namespace l4::c_api

using namespace l4::c_api;

extern "C" l4_status l4_images_create(const char* directory, const l4_picture* pictures, size_t count,
                                      int32_t max_tiles, l4_images** out) {
  return guarded([&] {
    given(out, "out") = nullptr;
    const l4::images::Settings settings = l4::images::read_settings(&given(directory, "directory"));
    l4::images::ProcessedImages done = l4::images::process(settings, pictures_of(pictures, count), max_tiles);
    *out = new l4_images{std::make_shared<const l4::images::ProcessedImages>(std::move(done))};
  });
}

extern "C" void l4_images_close(l4_images* images) { delete images; }

extern "C" size_t l4_images_count(const l4_images* images) {
  return images == nullptr ? 0 : images->images->images.size();
}

extern "C" l4_status l4_images_get_info(const l4_images* images, size_t index, l4_image_info* info) {
  return guarded([&] {
    const std::vector<l4::images::ProcessedImage>& all = given(images, "images").images->images;
    if (index >= all.size()) {
      throw l4::bad_input("image " + std::to_string(index) + ": there are " + std::to_string(all.size()) + ", from 0");
    }
    const l4::images::ProcessedImage& image = all[index];
    fill(info, l4_image_info{0, static_cast<int32_t>(image.grid.rows), static_cast<int32_t>(image.grid.columns),
                             static_cast<int32_t>(image.tile_count), static_cast<int64_t>(image.token_count),
                             image.digest.c_str()});
  });
}

extern "C" l4_status l4_images_tiles(const l4_images* images, const float** values, size_t* tiles, size_t* side) {
  return guarded([&] {
    const l4::images::ProcessedImages& done = *given(images, "images").images;
    given(values, "values") = done.tiles.data();
    given(tiles, "tiles") = done.tiles.size() / done.values_of_a_tile();
    given(side, "side") = done.side;
  });
}

extern "C" l4_status l4_images_expand(const l4_images* images, const l4_tokenizer* tokenizer, const int32_t* ids,
                                      size_t id_count, int32_t* expanded_ids, size_t capacity, size_t* count) {
  return guarded([&] {
    given(count, "count");
    if (id_count != 0) given(ids, "ids");
    const std::vector<std::int32_t> all = expanded(images, &given(tokenizer, "tokenizer"), ids, id_count);
    give(all.data(), all.size(), expanded_ids, capacity, count);
  });
}
