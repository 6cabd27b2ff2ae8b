// What a manifest says of weights that lie packed in files.
#pragma once

#include <string>

#include "engine/manifest.hpp"

namespace l4::engine {

// Each lies within a file, in an order that its shape has, and a CPU has a graph without it. Raises Error
// (L4_BAD_INPUT) with the field that is wrong; `where` names the manifest.
void check_packed_weights(const Manifest& m, const std::string& where);

}  // namespace l4::engine
