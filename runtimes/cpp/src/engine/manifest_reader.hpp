// From the JSON of a manifest to its values. It is untrusted: every field is taken by type, the rest is ignored.
#pragma once

#include <string>

#include "base/json.hpp"
#include "engine/manifest.hpp"

namespace l4::engine {

// The manifest that a JSON object holds; whether its fields agree with each other is not looked at.
//
// Raises Error (L4_BAD_INPUT) for another format, a feature that this library does not know, a field that is missing or
// of a wrong type; it names the file `where` and the field.
Manifest read_fields(const json::Value& raw, const std::string& where);

}  // namespace l4::engine
