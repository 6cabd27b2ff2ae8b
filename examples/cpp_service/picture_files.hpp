// Decoders of picture files: pixels as they are stored, and how they are to be turned.
#pragma once

#include <stdexcept>
#include <string_view>

#include "pictures.hpp"

namespace service {

// A file that cannot be decoded.
struct Damaged : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Stored {
  Pixels pixels;
  int orientation = 0;  // as EXIF numbers them: 1 to 8; 0 where the file says nothing
};

// Throws Damaged for sizes that are not decoded.
void check_size(std::uint64_t width, std::uint64_t height);

// Throw Damaged.
Stored stored_png(const Bytes& file);
Stored stored_jpeg(const Bytes& file);

// What EXIF data (from their TIFF header on) or XMP say; 0 where they say nothing.
int exif_orientation(const std::uint8_t* exif, std::size_t size);
int xmp_orientation(std::string_view xmp);

}  // namespace service
