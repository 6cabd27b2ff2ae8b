// A hash table of what a tokenizer looks up: made once for a known number of entries.
#pragma once

#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "text/refusal.hpp"

namespace l4::text {

inline std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a ^ 0x9E3779B97F4A7C15u) * (b ^ 0xD1B54A32D192ED03u);
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

// The first bytes, eight at most, as a number: for eight or fewer it is another one for every text of that size.
inline std::uint64_t head_of(std::string_view bytes) {
  const auto load = [&](std::size_t at, auto number) {
    std::memcpy(&number, bytes.data() + at, sizeof number);
    return static_cast<std::uint64_t>(number);
  };
  const std::size_t size = bytes.size();
  if (size >= 8) return load(0, std::uint64_t());
  if (size >= 4) return load(0, std::uint32_t()) | load(size - 4, std::uint32_t()) << 8 * (size - 4);  // they overlap
  if (size >= 2) return load(0, std::uint16_t()) | load(size - 2, std::uint16_t()) << 8 * (size - 2);
  return size == 0 ? 0 : load(0, std::uint8_t());
}

inline std::uint64_t hash_of(std::string_view bytes) {
  std::uint64_t hash = bytes.size();
  for (; bytes.size() > 8; bytes.remove_prefix(8)) hash = mix(hash, head_of(bytes));
  return mix(hash, head_of(bytes));
}

// Slots of a type with `bool empty() const`; `Slot()` is empty. Chosen contents cannot make it slow: they are refused.
template <typename Slot>
class HashTable {
 public:
  explicit HashTable(std::size_t count = 0) {
    std::size_t size = 16;
    for (; size < 2 * count; size *= 2) --shift_;
    slots_.resize(size);
  }

  // The slot that `is_it` takes among those of this hash; nullptr where there is none.
  template <typename IsIt>
  const Slot* find(std::uint64_t hash, IsIt&& is_it) const {
    for (std::size_t i = hash >> shift_;; i = (i + 1) & (slots_.size() - 1)) {
      const Slot& slot = slots_[i];
      if (slot.empty()) return nullptr;
      if (is_it(slot)) return &slot;
    }
  }

  // Have the memory at hand that `find` will look at.
  void prefetch(std::uint64_t hash) const { __builtin_prefetch(&slots_[hash >> shift_]); }

  // Put in what is not there; or the slot that `is_it` takes, which stays. At most `count` of them.
  // Raises Refusal where so many come together that only intent explains it.
  template <typename IsIt>
  Slot* add(std::uint64_t hash, const Slot& added, IsIt&& is_it) {
    std::size_t i = hash >> shift_;
    for (std::size_t steps = 0; !slots_[i].empty(); i = (i + 1) & (slots_.size() - 1)) {
      if (is_it(slots_[i])) return &slots_[i];
      if (++steps > kMostSteps) throw damaged("its tokens are chosen to make looking them up slow");
    }
    slots_[i] = added;
    return nullptr;
  }

 private:
  static constexpr std::size_t kMostSteps = 4096;

  std::vector<Slot> slots_;  // a power of two, at most half of them taken
  int shift_ = 60;           // the highest bits of a hash say where to begin
};

}  // namespace l4::text
