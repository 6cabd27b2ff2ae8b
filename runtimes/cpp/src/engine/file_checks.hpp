// An engine's files against its manifest.
#pragma once

#include <future>
#include <memory>
#include <string>

#include "engine/manifest.hpp"

namespace l4::engine {

// All are regular files of the right size, and graphs have at most 16 MiB. Those of up to 64 MiB, the tokenizer among
// them, are those that were built: graphs, which ONNX Runtime will parse, when this returns, the others when the future
// has a value. Their digests are found by another thread, and weights can be loaded meanwhile.
//
// Raises Error, and so does the future: L4_BAD_INPUT where a file is missing, of another kind or size, or has been
// changed; L4_STORAGE where reading fails.
std::future<void> check_files(const std::string& directory, const std::shared_ptr<const Manifest>& manifest);

// Read the manifest, and every file for its digest, several at a time.
//
// Raises Error: L4_VERIFICATION_FAILED where a file is missing, has another size, or another digest, naming all such
// files; and as `load_manifest`.
Manifest verify_files(const std::string& directory);

}  // namespace l4::engine
