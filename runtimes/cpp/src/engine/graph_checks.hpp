// What a manifest says of its graphs. Each check relies on those before it, which found nothing, and raises Error
// (L4_BAD_INPUT) with the field that is wrong; `where` names the manifest.
#pragma once

#include <string>

#include "engine/manifest.hpp"

namespace l4::engine {

// What holds of every graph, whatever it computes.
void check_graphs(const Manifest& m, const std::string& where);

// Inputs and outputs, and profiles for calls of every size.
void check_decoder(const Manifest& m, const std::string& where);

// Parts hold every layer, in order, and each takes what those before it give; a compiled engine has no defaults.
void check_parts(const Manifest& m, const std::string& where);

// It stands for the decoder on a CPU, call by call.
void check_portable(const Manifest& m, const std::string& where);

// A decoder of some layers for the same runtime, and calls that its context has room for.
void check_check(const Manifest& m, const std::string& where);

}  // namespace l4::engine
