#include "picture.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "storage/files.hpp"

namespace l4run {

namespace {

constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 30;
constexpr std::int64_t kMostPixels = 1 << 20;  // of a side

class Header {
 public:
  Header(const std::string& bytes, const std::string& path) : bytes_(bytes), path_(path) {}

  // White space and comments, then a number.
  std::int64_t number() {
    while (at_ < bytes_.size() && (is_space(bytes_[at_]) || bytes_[at_] == '#')) {
      if (bytes_[at_] == '#') at_ = std::min(bytes_.find('\n', at_), bytes_.size() - 1);
      ++at_;
    }
    const std::size_t begin = at_;
    std::int64_t value = 0;
    while (at_ < bytes_.size() && bytes_[at_] >= '0' && bytes_[at_] <= '9' && value <= kMostPixels) {
      value = 10 * value + (bytes_[at_++] - '0');
    }
    if (at_ == begin || value > kMostPixels) refuse();
    return value;
  }

  // The one white space behind the header; where the pixels begin.
  std::size_t end() {
    if (at_ >= bytes_.size() || !is_space(bytes_[at_])) refuse();
    return at_ + 1;
  }

  [[noreturn]] void refuse() const {
    throw l4::bad_input(path_ +
                        ": not a binary PPM image of 8 bits a channel (P6); convert it, or use the Python runtime");
  }

 private:
  static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

  const std::string& bytes_;
  const std::string& path_;
  std::size_t at_ = 2;
};

}  // namespace

PictureFile read_picture(const std::string& path) {
  PictureFile file{l4::storage::read_small(path, kMostBytes, "give a binary PPM image"), 0, 0, 0};
  Header header(file.bytes, path);
  if (file.bytes.compare(0, 2, "P6") != 0) header.refuse();
  file.width = header.number();
  file.height = header.number();
  if (header.number() != 255 || file.width == 0 || file.height == 0) header.refuse();
  file.pixels = header.end();
  const auto due = static_cast<std::uint64_t>(file.width) * static_cast<std::uint64_t>(file.height) * 3;
  if (file.bytes.size() - file.pixels != due) {
    throw l4::bad_input(path + ": has " + std::to_string(file.bytes.size() - file.pixels) + " bytes of pixels, and " +
                        std::to_string(file.width) + " x " + std::to_string(file.height) + " take " +
                        std::to_string(due) + "; is the file complete?");
  }
  return file;
}

}  // namespace l4run
