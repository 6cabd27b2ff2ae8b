#include "images/resize.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace l4::images {
namespace {

// How the pixels of an axis become those of another length: output i is the sum of input first[i] + k by weight
// begin[i] + k, for k below begin[i + 1] - begin[i], rounded and divided by 2^precision.
struct Axis {
  std::vector<std::size_t> first, begin;
  std::vector<std::int16_t> weights;  // none negative; they fit as PyTorch chooses the precision so
  int precision;
};

// The inputs of an output and their shares.
struct Window {
  std::int64_t first;
  std::vector<double> shares;
};

Window window_of(double scale, std::int64_t old, std::size_t output) {
  const double support = std::max(scale, 1.0), inverse = std::min(1 / scale, 1.0);
  const auto taps = static_cast<std::int64_t>(std::ceil(support)) * 2 + 1;
  const double centre = scale * (static_cast<double>(output) + 0.5);
  const auto first = std::max<std::int64_t>(static_cast<std::int64_t>(centre - support + 0.5), 0);
  const auto end = std::min(static_cast<std::int64_t>(centre + support + 0.5), old);
  Window window{first, std::vector<double>(static_cast<std::size_t>(std::clamp<std::int64_t>(end - first, 0, taps)))};
  double sum = 0;  // one after the other, as the kernel adds them
  for (std::size_t k = 0; k < window.shares.size(); ++k) {
    const double distance = static_cast<double>(first + static_cast<std::int64_t>(k)) - centre + 0.5;
    window.shares[k] = std::max(1 - std::abs(distance * inverse), 0.0);
    sum += window.shares[k];
  }
  for (double& share : window.shares) share /= sum;
  return window;
}

Axis axis_of(std::size_t old, std::size_t now) {
  const double scale = static_cast<double>(old) / static_cast<double>(now);
  Axis axis;
  std::vector<double> shares;
  axis.begin.push_back(0);
  for (std::size_t i = 0; i < now; ++i) {
    const Window window = window_of(scale, static_cast<std::int64_t>(old), i);
    axis.first.push_back(static_cast<std::size_t>(window.first));
    shares.insert(shares.end(), window.shares.begin(), window.shares.end());
    axis.begin.push_back(shares.size());
  }
  const double largest = *std::max_element(shares.begin(), shares.end());
  axis.precision = 0;
  while (axis.precision < 22 && static_cast<std::int64_t>(0.5 + std::ldexp(largest, axis.precision + 1)) < 1 << 15) {
    ++axis.precision;
  }
  axis.weights.reserve(shares.size());
  for (const double share : shares) {
    axis.weights.push_back(static_cast<std::int16_t>(std::floor(0.5 + std::ldexp(share, axis.precision))));
  }
  return axis;
}

// Values that are summed at once: the compiler keeps them in vector registers.
constexpr std::size_t kLanes = 32;

// One output for neighbouring values: `lanes` columns of `taps` lines that are `width` apart. `Lanes` is a constant but
// at the end of a line, so that the loops have a known length.
template <typename Lanes>
void weigh_lanes(const std::int16_t* weights, std::size_t taps, int precision, const std::uint8_t* from,
                 std::size_t width, std::uint8_t* to, Lanes lanes) {
  std::int32_t sums[kLanes];  // at most 255 * (2^22 + half the taps) + 2^21: below 2^31
  for (std::size_t lane = 0; lane < lanes; ++lane) sums[lane] = 1 << (precision - 1);
  for (std::size_t tap = 0; tap < taps; ++tap, from += width) {
    const std::int16_t weight = weights[tap];
    for (std::size_t lane = 0; lane < lanes; ++lane) sums[lane] += static_cast<std::int16_t>(from[lane]) * weight;
  }
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    to[lane] = static_cast<std::uint8_t>(std::min(sums[lane] >> precision, 255));
  }
}

// Lines of an axis weighed: uint8 [old, width] -> [new, width].
void weigh(const Axis& axis, const std::uint8_t* from, std::size_t width, std::uint8_t* to) {
  for (std::size_t i = 0; i < axis.first.size(); ++i, to += width) {
    const std::int16_t* weights = axis.weights.data() + axis.begin[i];
    const std::size_t taps = axis.begin[i + 1] - axis.begin[i];
    const std::uint8_t* lines = from + axis.first[i] * width;
    std::size_t at = 0;
    for (; at + kLanes <= width; at += kLanes) {
      weigh_lanes(weights, taps, axis.precision, lines + at, width, to + at,
                  std::integral_constant<std::size_t, kLanes>());
    }
    if (at < width) weigh_lanes(weights, taps, axis.precision, lines + at, width, to + at, width - at);
  }
}

// Rows that are turned at once, so that their columns lie side by side.
constexpr std::size_t kRows = 32;

// uint8 [rows, columns, 3] -> [columns, 3, rows].
void turn(const std::uint8_t* from, std::size_t rows, std::size_t columns, std::uint8_t* to) {
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < 3 * columns; ++i) to[i * rows + row] = from[row * 3 * columns + i];
  }
}

// The inverse.
void turn_back(const std::uint8_t* from, std::size_t rows, std::size_t columns, std::uint8_t* to) {
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < 3 * columns; ++i) to[row * 3 * columns + i] = from[i * rows + row];
  }
}

// The picture in another width.
std::vector<std::uint8_t> narrowed(const Picture& picture, std::size_t width) {
  const Axis axis = axis_of(picture.width, width);
  std::vector<std::uint8_t> result(picture.height * width * 3);
  std::vector<std::uint8_t> columns(picture.width * 3 * kRows), weighed(width * 3 * kRows);
  for (std::size_t row = 0; row < picture.height; row += kRows) {
    const std::size_t rows = std::min(kRows, picture.height - row);
    turn(picture.rgb + row * picture.width * 3, rows, picture.width, columns.data());
    weigh(axis, columns.data(), 3 * rows, weighed.data());
    turn_back(weighed.data(), rows, width, result.data() + row * width * 3);
  }
  return result;
}

}  // namespace

std::vector<std::uint8_t> resize(const Picture& picture, std::size_t height, std::size_t width) {
  const std::size_t values = picture.height * picture.width * 3;
  std::vector<std::uint8_t> wide =
      width != picture.width ? narrowed(picture, width) : std::vector<std::uint8_t>(picture.rgb, picture.rgb + values);
  if (height == picture.height) return wide;
  std::vector<std::uint8_t> result(height * width * 3);
  weigh(axis_of(picture.height, height), wide.data(), width * 3, result.data());
  return result;
}

}  // namespace l4::images
