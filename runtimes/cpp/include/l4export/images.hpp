// Pictures, as the vision tower takes them and as prompts show them.
#ifndef L4EXPORT_IMAGES_HPP
#define L4EXPORT_IMAGES_HPP

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "l4export/text.hpp"

namespace l4export {

struct Picture {
  const std::uint8_t* rgb;  // [height, width, 3]
  std::int64_t width, height;
};

class Images {
 public:
  // `max_tiles`: the most tiles into which an image is cut, 0: as the checkpoint says.
  Images(const std::string& directory, const std::vector<Picture>& pictures, std::int32_t max_tiles = 0) {
    std::vector<l4_picture> each;
    for (const Picture& picture : pictures) {
      each.push_back({sizeof(l4_picture), picture.rgb, picture.width, picture.height});
    }
    l4_images* made = nullptr;
    check(l4_images_create(directory.c_str(), each.data(), each.size(), max_tiles, &made));
    handle_.reset(made);
  }

  std::size_t size() const { return l4_images_count(handle_.get()); }

  l4_image_info info(std::size_t index) const {
    l4_image_info info{};
    info.size = sizeof info;
    check(l4_images_get_info(handle_.get(), index, &info));
    return info;
  }

  // The ids with each <|image|> replaced by the tokens of its image, in order.
  Ids expand(const Tokenizer& tokenizer, const Ids& ids) const {
    return detail::collected<Ids>(ids.size(), [&](std::int32_t* expanded, std::size_t capacity, std::size_t* count) {
      return l4_images_expand(handle_.get(), tokenizer.handle(), ids.data(), ids.size(), expanded, capacity, count);
    });
  }

  const l4_images* handle() const { return handle_.get(); }

 private:
  detail::Handle<l4_images, &l4_images_close> handle_;
};

// The same for a prompt without images, where there must be no <|image|> in the ids.
inline Ids expand_without_images(const Tokenizer& tokenizer, const Ids& ids) {
  return detail::collected<Ids>(ids.size(), [&](std::int32_t* expanded, std::size_t capacity, std::size_t* count) {
    return l4_images_expand(nullptr, tokenizer.handle(), ids.data(), ids.size(), expanded, capacity, count);
  });
}

}  // namespace l4export

#endif
