// Errors that a person can act on: one line that says what is wrong, where, and what to do about it.
#pragma once

#include <exception>
#include <string>
#include <string_view>
#include <utility>

#include "l4export.h"

namespace l4 {

class Error : public std::exception {
 public:
  Error(l4_status status, std::string message) : status_(status), message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }
  l4_status status() const noexcept { return status_; }

 private:
  l4_status status_;
  std::string message_;
};

inline Error bad_input(std::string message) { return Error(L4_BAD_INPUT, std::move(message)); }
inline Error environment_lacks(std::string message) { return Error(L4_ENVIRONMENT, std::move(message)); }
inline Error storage_error(std::string message) { return Error(L4_STORAGE, std::move(message)); }
inline Error verification_failed(std::string message) { return Error(L4_VERIFICATION_FAILED, std::move(message)); }
inline Error cancelled(std::string what) { return Error(L4_CANCELLED, std::move(what)); }

// A text of any origin as one line of at most `most` bytes, without control characters, which a terminal would obey.
std::string printable(std::string_view text, std::size_t most = 300);

// What an `errno` means.
std::string system_reason(int code);

// A value as a message shows it, in quotes: 'value'.
std::string in_quotes(std::string_view text);

}  // namespace l4
