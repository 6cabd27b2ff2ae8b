// How work is shared among threads that belong to someone else.
#pragma once

#include <cstdint>
#include <functional>

namespace l4::cpu {

class Parallel {
 public:
  virtual ~Parallel() = default;
  // piece(i) for every i in [0, count), in any order, by any threads. Returns when all are done.
  virtual void run(std::int64_t count, const std::function<void(std::int64_t)>& piece) = 0;
};

// The calling thread alone.
class Serial : public Parallel {
 public:
  void run(std::int64_t count, const std::function<void(std::int64_t)>& piece) override {
    for (std::int64_t i = 0; i < count; i++) piece(i);
  }
};

}  // namespace l4::cpu
