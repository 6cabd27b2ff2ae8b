// Where a session can go back to.
#pragma once

#include <cstdint>

#include "cache/chunks.hpp"
#include "session/session_state.hpp"

namespace l4 {

// Whether a row can forget its last `count` tokens. Raises Error (L4_BAD_INPUT): it has fewer, would end within an
// image, or in a chunk whose keys are gone.
void check_rewind(std::size_t row, const SessionState& state, std::int64_t count, const Chunks& chunks);

// Forget them; it has been checked.
void rewind_row(std::size_t row, SessionState& state, std::int64_t count) noexcept;

}  // namespace l4
