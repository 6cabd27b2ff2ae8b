// Pictures of strangers as pixels: PNG and JPEG, decoded to what the service in Python makes of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace service {

using Bytes = std::vector<std::uint8_t>;

struct Pixels {
  Bytes rgb;  // [height, width, 3]
  std::int64_t width = 0, height = 0;
};

// `data`: a file as base64; `name`: what messages call it. A picture stands upright (EXIF), what is transparent shows
// white. Throws Refusal for what is neither PNG nor JPEG, is damaged, or too large.
Pixels decoded(const std::string& data, const std::string& name);

}  // namespace service
