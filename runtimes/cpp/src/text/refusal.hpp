// Why a tokenizer.json is refused, thrown where its path is not known and caught where it is.
#pragma once

#include <string>

namespace l4::text {

struct Refusal {
  std::string reason;  // what follows the path in the message
};

// It is no tokenizer that any runtime could use.
inline Refusal damaged(const std::string& reason) {
  return {"not a tokenizer: " + reason + "; copy it from the checkpoint again"};
}

// It is one, but cannot be done here exactly as the Python package does it.
inline Refusal unsupported(const std::string& what) {
  return {what + ", which the native runtime does not have; use the Python runtime"};
}

}  // namespace l4::text
