#include "pictures.hpp"

#include <png.h>

#include <array>

#include "refusal.hpp"

namespace service {
namespace {

constexpr std::uint64_t kMostPixels = 1 << 26;

Refusal refuse(const std::string& name, const std::string& problem) { return {name + ": " + problem, "messages"}; }

std::vector<std::uint8_t> from_base64(const std::string& text, const std::string& name) {
  static const std::string digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::array<int, 256> values;
  values.fill(-1);
  for (std::size_t i = 0; i < digits.size(); ++i) values[static_cast<unsigned char>(digits[i])] = static_cast<int>(i);
  std::size_t length = text.size();
  while (length > 0 && text.size() - length < 2 && text[length - 1] == '=') --length;
  if (text.size() % 4 != 0 || length == 0) throw refuse(name, "is no base64");
  std::vector<std::uint8_t> bytes;
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

}  // namespace

Pixels decoded(const std::string& data, const std::string& name) {
  const std::vector<std::uint8_t> file = from_base64(data, name);
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  if (png_image_begin_read_from_memory(&image, file.data(), file.size()) == 0) {
    throw refuse(name, "cannot be decoded; this service reads PNG");
  }
  if (std::uint64_t{image.width} * image.height > kMostPixels) {
    png_image_free(&image);
    throw refuse(name, "has more than " + std::to_string(kMostPixels) + " pixels; scale it");
  }
  image.format = PNG_FORMAT_RGB;
  Pixels pixels{std::vector<std::uint8_t>(PNG_IMAGE_SIZE(image)), image.width, image.height};
  const png_color white{255, 255, 255};
  if (png_image_finish_read(&image, &white, pixels.rgb.data(), 0, nullptr) == 0 || (image.warning_or_error & 2) != 0) {
    png_image_free(&image);
    throw refuse(name, "is damaged; give a whole image file");
  }
  return pixels;
}

}  // namespace service
