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

  // row(r) for every r in [0, rows), of so many columns: as many at a time as are worth a thread's attention.
  template <class Row>
  void run_rows(std::int64_t rows, std::int64_t columns, Row&& row) {
    const std::int64_t each = (std::int64_t{16} << 10) / columns + 1;
    run((rows + each - 1) / each, [&](std::int64_t i) {
      for (std::int64_t r = i * each; r < rows && r < (i + 1) * each; r++) row(r);
    });
  }
};

// The calling thread alone.
class Serial : public Parallel {
 public:
  void run(std::int64_t count, const std::function<void(std::int64_t)>& piece) override {
    for (std::int64_t i = 0; i < count; i++) piece(i);
  }
};

}  // namespace l4::cpu
