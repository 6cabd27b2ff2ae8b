// Pictures of strangers as pixels. PNG alone: its pixels are the same with every decoder.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace service {

struct Pixels {
  std::vector<std::uint8_t> rgb;  // [height, width, 3]; what is transparent shows white
  std::int64_t width, height;
};

// `data`: a file as base64; `name`: what messages call it. Throws Refusal for what is no PNG, or too large.
Pixels decoded(const std::string& data, const std::string& name);

}  // namespace service
