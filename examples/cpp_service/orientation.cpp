#include "picture_files.hpp"

namespace service {
namespace {

// Numbers of a TIFF file, in its order of bytes; 0 beyond its end.
class Tiff {
 public:
  Tiff(const std::uint8_t* data, std::size_t size) : data_(data), size_(size), is_little_(size > 0 && data[0] == 'I') {}

  std::uint64_t number(std::uint64_t at, int bytes) const {
    std::uint64_t value = 0;
    if (at + static_cast<std::uint64_t>(bytes) > size_) return 0;
    for (int i = 0; i < bytes; ++i) {
      value = value << 8 | data_[at + static_cast<std::uint64_t>(is_little_ ? bytes - 1 - i : i)];
    }
    return value;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
  bool is_little_;
};

}  // namespace

int exif_orientation(const std::uint8_t* exif, std::size_t size) {
  constexpr int tag = 0x0112, short_type = 3, long_type = 4;
  const Tiff tiff(exif, size);
  if (tiff.number(2, 2) != 42) return 0;
  const std::uint64_t directory = tiff.number(4, 4), entries = tiff.number(directory, 2);
  for (std::uint64_t i = 0; i < entries; ++i) {
    const std::uint64_t entry = directory + 2 + 12 * i, type = tiff.number(entry + 2, 2);
    if (tiff.number(entry, 2) != tag || (type != short_type && type != long_type)) continue;
    const std::uint64_t value = tiff.number(entry + 8, type == short_type ? 2 : 4);
    return value >= 1 && value <= 8 && tiff.number(entry + 4, 4) == 1 ? static_cast<int>(value) : 1;
  }
  return 0;
}

int xmp_orientation(std::string_view xmp) {
  constexpr std::string_view name = "tiff:Orientation";
  for (std::size_t at = xmp.find(name); at != std::string_view::npos; at = xmp.find(name, at + 1)) {
    std::string_view rest = xmp.substr(at + name.size());
    for (const std::string_view sign : {"=\"", ">"}) {
      if (rest.substr(0, sign.size()) != sign || rest.size() == sign.size()) continue;
      const char digit = rest[sign.size()];
      if (digit >= '0' && digit <= '9') return digit >= '1' && digit <= '8' ? digit - '0' : 1;
    }
  }
  return 0;
}

}  // namespace service
