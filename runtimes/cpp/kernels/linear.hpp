// y = x W' + bias.
#pragma once

#include "kernels.hpp"
#include "parallel.hpp"

namespace l4::cpu {

struct Linear {
  Format format;
  Activations activations = Activations::int8;
};

// x [rows, K], bias [N] or nullptr, y [rows, N]. std::bad_alloc where there is no memory.
void linear(const Kernels& kernels, const Linear& linear, const std::uint8_t* tiles, const float* x, std::int64_t rows,
            const float* bias, float* y, Parallel& parallel);

}  // namespace l4::cpu
