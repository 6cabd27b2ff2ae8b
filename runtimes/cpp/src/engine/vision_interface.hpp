// What a vision tower takes and gives, and what a manifest must say of an engine that sees images.
#pragma once

#include <string>

#include "engine/manifest.hpp"

namespace l4::engine {

// Raise Error (L4_BAD_INPUT) for the first field that contradicts another.
void check_tower(const Manifest& manifest, const std::string& where);

}  // namespace l4::engine
