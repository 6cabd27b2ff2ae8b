#include "cache/host_decoder.hpp"

#include "cache/concat_cache.hpp"
#include "cache/static_cache.hpp"

namespace l4 {

std::unique_ptr<KVCache> HostDecoder::new_cache(const engine::Manifest& manifest, std::int64_t rows,
                                                std::int64_t capacity) const {
  if (manifest.kv_layout == "concat") return std::make_unique<ConcatCache>(session_, manifest, rows);
  return std::make_unique<StaticCache>(session_, manifest, rows, capacity);
}

}  // namespace l4
