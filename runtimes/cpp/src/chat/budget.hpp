// What one run of a template may take. All of it is bounded, so that a template ends whatever it says.
#pragma once

#include <cstddef>
#include <cstdint>

#include "chat/failure.hpp"

namespace l4::chat {

constexpr std::int64_t kMostSteps = 20'000'000;  // nodes, items and so on: a few seconds; Llama 4's takes hundreds
constexpr std::int64_t kMostBytes = 768 << 20;   // of values that are made, those that are gone included
constexpr int kMostDepth = 100;                  // of lists within lists
constexpr int kMostCalls = 1200;                 // of nodes within nodes while they run, through macros and loops

class Budget {
 public:
  void step(std::size_t count = 1) {
    steps_ -= static_cast<std::int64_t>(count);
    if (steps_ < 0) throw LimitExceeded("it takes more than " + std::to_string(kMostSteps) + " steps");
  }
  // Values of so many bytes are about to be made.
  void make(std::size_t bytes) {
    if (bytes > static_cast<std::size_t>(bytes_)) throw LimitExceeded("it needs too much memory");
    bytes_ -= static_cast<std::int64_t>(bytes);
    step(bytes / 64);
  }

 private:
  std::int64_t steps_ = kMostSteps;
  std::int64_t bytes_ = kMostBytes;
};

}  // namespace l4::chat
