// Working memory of one call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "rows.hpp"

namespace l4::cpu {

// `count` elements, not initialised, at a multiple of 64 bytes. std::bad_alloc where there is no memory.
template <class T>
class Memory {
 public:
  explicit Memory(std::int64_t count) {
    const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    memory_.reset(static_cast<T*>(std::aligned_alloc(64, bytes == 0 ? 64 : bytes)));
    if (!memory_) throw std::bad_alloc();
  }
  T* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
};

// `Rows` with its memory, in panels of as many rows as there are, 16 at most.
class OwnedRows {
 public:
  OwnedRows(Activations kind, std::int64_t count, std::int64_t columns, std::int64_t block)
      : rows_(shape(kind, count, columns, block)),
        values_(rows_.panels() * rows_.slabs() * rows_.slab_bytes()),
        scales_(kind == Activations::int8 ? rows_.panels() * rows_.blocks() * rows_.panel : 0),
        sums_(kind == Activations::int8 ? rows_.panels() * rows_.blocks() * rows_.panel : 0) {
    rows_.values = values_.get();
    rows_.scales = scales_.get();
    rows_.sums = sums_.get();
  }
  const Rows& get() const { return rows_; }

 private:
  static Rows shape(Activations kind, std::int64_t count, std::int64_t columns, std::int64_t block) {
    Rows rows;
    rows.kind = kind, rows.count = count, rows.columns = columns, rows.block = block;
    while (rows.panel < 16 && rows.panel < count) rows.panel *= 2;
    return rows;
  }
  Rows rows_;
  Memory<unsigned char> values_;
  Memory<float> scales_;
  Memory<std::int32_t> sums_;
};

}  // namespace l4::cpu
