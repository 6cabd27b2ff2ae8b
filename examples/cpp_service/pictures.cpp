#include "pictures.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "picture_files.hpp"
#include "refusal.hpp"

namespace service {
namespace {

Refusal refuse(const std::string& name, const std::string& problem) { return {name + ": " + problem, "messages"}; }

Bytes from_base64(const std::string& text, const std::string& name) {
  static const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::array<int, 256> values;
  values.fill(-1);
  for (std::size_t i = 0; i < digits.size(); ++i) values[static_cast<unsigned char>(digits[i])] = static_cast<int>(i);
  std::size_t length = text.size();
  while (length > 0 && text.size() - length < 2 && text[length - 1] == '=') --length;
  if (text.size() % 4 != 0 || length == 0) throw refuse(name, "is no base64");
  Bytes bytes;
  std::uint32_t bits = 0;
  int held = 0;
  for (std::size_t i = 0; i < length; ++i) {
    const int value = values[static_cast<unsigned char>(text[i])];
    if (value < 0) throw refuse(name, "is no base64");
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    if ((held += 6) >= 8) bytes.push_back(static_cast<std::uint8_t>(bits >> (held -= 8)));
  }
  return bytes;
}

bool begins(const Bytes& file, const Bytes& with) {
  return file.size() >= with.size() && std::equal(with.begin(), with.end(), file.begin());
}

// Turned and mirrored as EXIF's orientation says.
Pixels upright(Stored stored) {
  const int o = stored.orientation;
  const Pixels& from = stored.pixels;
  if (o <= 1) return std::move(stored.pixels);
  const bool is_turned = o >= 5;
  const bool from_right = o == 2 || o == 3 || o == 6 || o == 7, from_below = o == 3 || o == 4 || o == 7 || o == 8;
  const std::int64_t width = is_turned ? from.height : from.width, height = is_turned ? from.width : from.height;
  Pixels to{Bytes(from.rgb.size()), width, height};
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t x = 0; x < width; ++x) {
      const std::int64_t row = from_below ? height - 1 - y : y, column = from_right ? width - 1 - x : x;
      const std::int64_t at = is_turned ? column * from.width + row : row * from.width + column;
      std::copy_n(from.rgb.begin() + 3 * at, 3, to.rgb.begin() + 3 * (y * width + x));
    }
  }
  return to;
}

}  // namespace

void check_size(std::uint64_t width, std::uint64_t height) {
  constexpr std::uint64_t most_side = 1 << 16, most_pixels = 1 << 26;
  if (width >= 1 && height >= 1 && width <= most_side && height <= most_side && width * height <= most_pixels) return;
  throw Damaged(std::to_string(width) + " x " + std::to_string(height) + " pixels, where a side may have " +
                std::to_string(most_side) + " and the whole " + std::to_string(most_pixels >> 20) + " million");
}

Pixels decoded(const std::string& data, const std::string& name) {
  const Bytes file = from_base64(data, name);
  try {
    if (begins(file, {0x89, 'P', 'N', 'G'})) return upright(stored_png(file));
    if (begins(file, {0xFF, 0xD8, 0xFF})) return upright(stored_jpeg(file));
  } catch (const Damaged& damaged) {
    throw refuse(name, std::string("cannot be decoded (") + damaged.what() + "); give a whole image file");
  }
  throw refuse(name, "is no image in a format that is decoded (PNG, JPEG); convert it");
}

}  // namespace service
