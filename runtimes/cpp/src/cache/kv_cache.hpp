// What a session knows of its KV cache, whichever memory it lies in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cache/cache_spec.hpp"
#include "cache/call.hpp"
#include "cache/row_array.hpp"

namespace l4 {

// Tokens of a row, and the memory in which they lie where that is not the cache itself.
struct RowTokens {
  RowArrays arrays;
  std::vector<std::unique_ptr<std::byte[]>> memory;
};

// A row, and slots of its chunk that the calls of an append will write over.
using LosingRow = std::pair<std::size_t, std::int64_t>;

// Keys and values of some rows, each in the first slots of its layer's array [rows, heads, slots, width].
class KVCache {
 public:
  virtual ~KVCache() = default;

  // Execute a call; the caches then hold its tokens. Raises Error, or OnnxRuntimeFailure.
  virtual void run(const Call& call) = 0;

  // Make room for a row of so many tokens, up to the capacity. Raises std::bad_alloc; nothing has changed then.
  virtual void make_room(std::int64_t tokens) = 0;
  // Take over tokens that `tokens` of a cache of the same engine gave as the beginning of a row, for which there is
  // room.
  virtual void put(std::size_t row, const RowArrays& tokens) = 0;

  // Remember what `restore` needs to undo the calls that follow, until `forget`. Raises std::bad_alloc.
  virtual void mark(const std::vector<LosingRow>& losing) = 0;
  virtual void restore() = 0;
  virtual void forget() noexcept = 0;

  virtual void reset() = 0;  // forget everything

  // A row's tokens, `local_count` in layers that keep one chunk; good until the cache changes.
  virtual RowTokens tokens(std::size_t row, std::int64_t count, std::int64_t local_count) const = 0;

  virtual std::uint64_t bytes() const = 0;  // of all keys and values
};

// A loaded decoder; shared by any number of sessions and threads.
class Decoder {
 public:
  virtual ~Decoder() = default;

  // An empty cache for `rows` rows of up to `capacity` tokens, in the layout of an engine with that manifest. Raises
  // std::bad_alloc where there is no room for it.
  virtual std::unique_ptr<KVCache> new_cache(const engine::Manifest& manifest, std::int64_t rows,
                                             std::int64_t capacity) const = 0;

  virtual const std::shared_ptr<const OnnxRuntime>& runtime() const = 0;
  virtual std::string provider() const = 0;  // what executes it, as a report should name it
  virtual int threads() const = 0;           // of the CPU that one call uses; 0 where a GPU computes
};

}  // namespace l4
