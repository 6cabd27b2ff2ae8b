// A hash table of what a tokenizer looks up: it grows, never shrinks, and cannot be made slow by chosen contents.
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

inline std::uint64_t hash_of(std::string_view bytes) {
  std::uint64_t hash = bytes.size();
  const char* at = bytes.data();
  std::size_t left = bytes.size();
  for (std::uint64_t word; left > 8; at += 8, left -= 8) {
    std::memcpy(&word, at, 8);
    hash = mix(hash, word);
  }
  std::uint64_t last = 0;
  std::memcpy(&last, at, left);
  return mix(hash, last);
}

// Slots of some type with `bool empty() const` and `std::uint64_t hash() const`; `Slot()` is empty. What is in a slot
// does not change its hash.
template <typename Slot>
class HashTable {
 public:
  HashTable() : slots_(16) {}

  // The slot that `is_it` takes among those of this hash; nullptr where there is none.
  template <typename IsIt>
  const Slot* find(std::uint64_t hash, IsIt&& is_it) const {
    for (std::size_t i = hash >> shift_;; i = (i + 1) & (slots_.size() - 1)) {
      const Slot& slot = slots_[i];
      if (slot.empty()) return nullptr;
      if (is_it(slot)) return &slot;
    }
  }
  template <typename IsIt>
  Slot* find(std::uint64_t hash, IsIt&& is_it) {
    return const_cast<Slot*>(static_cast<const HashTable*>(this)->find(hash, std::forward<IsIt>(is_it)));
  }

  // Add what is not there yet. Raises Refusal where so many come together that only intent explains it.
  void add(Slot slot) {
    if (2 * ++count_ > slots_.size()) grow();
    place(slot);
  }

 private:
  static constexpr std::size_t kMostSteps = 4096;

  void place(const Slot& slot) {
    std::size_t i = slot.hash() >> shift_;
    for (std::size_t steps = 0; !slots_[i].empty(); i = (i + 1) & (slots_.size() - 1)) {
      if (++steps > kMostSteps) throw damaged("its tokens are chosen to make looking them up slow");
    }
    slots_[i] = slot;
  }

  void grow() {
    std::vector<Slot> before(4 * slots_.size());
    before.swap(slots_);
    shift_ -= 2;
    for (const Slot& slot : before) {
      if (!slot.empty()) place(slot);
    }
  }

  std::vector<Slot> slots_;  // a power of two, at most half of them taken
  std::size_t count_ = 0;
  int shift_ = 60;  // the highest bits of a hash say where to begin
};

}  // namespace l4::text
