// Bilinear resizing of 8-bit images with antialiasing, bit for bit as PyTorch's integer kernel on a CPU.
//
// The kernel (`_compute_index_ranges_int16_weights` and what follows it in ATen's UpSampleKernel.cpp) works along one
// axis with integer weights and rounds to 8 bits, first along the width, then along the height.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace l4::images {

// Red, green and blue: uint8 [height, width, 3]. The pixels are another's.
struct Picture {
  const std::uint8_t* rgb;
  std::size_t height, width;
};

// The picture in another size, uint8 [height, width, 3]; no side is 0.
std::vector<std::uint8_t> resize(const Picture& picture, std::size_t height, std::size_t width);

}  // namespace l4::images
