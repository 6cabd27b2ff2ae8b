// Sessions in a file: one safetensors file with the slots that are used, and what makes them usable. The format is that
// of the Python runtime (l4export/runtimes/saved_session.py), byte for byte.
//
// Tensors are called `{row}.ids`, int64 [tokens], those of all rows first; then `{row}.{layer}.key` and `.value`,
// [kv_heads, tokens, width]. The metadata hold `format`; `engine`, the SHA-256 of the manifest; `state`, JSON of a
// `SessionState`; and `sha256`, the digest of the state and of all tensors' bytes in their order. A file is untrusted:
// nothing in it is used before all of this has been checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cache/row_array.hpp"
#include "engine/manifest.hpp"
#include "session/session_state.hpp"
#include "storage/safetensors.hpp"

namespace l4 {

// Write a session, its state and each row's tokens, to `path`; a file there is replaced in one step at the end.
//
// Raises Error (L4_STORAGE) where writing fails; a file that was there is as before.
void write_session(const std::string& path, const engine::Manifest& manifest, const SessionState& state,
                   const std::vector<RowArrays>& rows);

struct SavedSession {
  storage::TensorFile file;  // keeps what `rows` point to
  SessionState state;
  std::vector<RowArrays> rows;
};

// A session as it was saved.
//
// Raises Error: L4_BAD_INPUT for no such file, one that is damaged, or one that another engine has saved; L4_STORAGE
// where reading fails.
SavedSession read_session(const std::string& path, const engine::Manifest& manifest);

}  // namespace l4
