// Images that l4run is given: binary PPM. Other formats are for their own libraries to decode.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "l4export.hpp"

namespace l4run {

struct PictureFile {
  std::string bytes;  // of the whole file
  std::size_t pixels;  // where they begin
  std::int64_t width, height;

  l4export::Picture picture() const {
    return {reinterpret_cast<const std::uint8_t*>(bytes.data()) + pixels, width, height};
  }
};

// Throws l4::Error: L4_BAD_INPUT where it is not a PPM file of 8 bits a channel (P6), L4_STORAGE where reading fails.
PictureFile read_picture(const std::string& path);

}  // namespace l4run
