// Whether the fields of a manifest agree with each other.
#pragma once

#include <string>

#include "engine/manifest.hpp"

namespace l4::engine {

// Raise Error (L4_BAD_INPUT) for a manifest that contradicts itself, naming the file `where` and the first field that
// does.
void check_manifest(const Manifest& manifest, const std::string& where);

}  // namespace l4::engine
