#include "text/characters.hpp"

#include <algorithm>
#include <array>
#include <iterator>

namespace l4::text {

namespace {

constexpr std::uint32_t kRanges[] = {
#include "text/character_classes.inc"
};

// Classes of the planes that texts are written in; those of the others are looked up in the ranges.
constexpr std::uint32_t kDirect = 0x20000;
constexpr std::array<std::uint8_t, kDirect> make_direct() {
  std::array<std::uint8_t, kDirect> classes{};
  std::uint32_t point = 0;
  std::uint8_t bits = 0;
  for (const std::uint32_t range : kRanges) {
    for (; point < kDirect && point < range >> 8; ++point) classes[point] = bits;
    bits = static_cast<std::uint8_t>(range & 0xFF);
  }
  return classes;
}
constexpr auto kClasses = make_direct();

}  // namespace

std::uint8_t class_of(char32_t point) {
  if (point < kDirect) return kClasses[point];
  const auto next =
      std::upper_bound(std::begin(kRanges), std::end(kRanges), static_cast<std::uint32_t>(point) << 8 | 0xFF);
  return static_cast<std::uint8_t>(*std::prev(next) & 0xFF);
}

}  // namespace l4::text
