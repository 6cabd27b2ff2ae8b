#include "cache/cache_spec.hpp"

namespace l4 {

CacheSpec CacheSpec::of(const engine::Manifest& manifest) {
  CacheSpec spec;
  const bool chunked = manifest.kv_layout == "chunked";
  for (std::size_t layer = 0; layer < manifest.kv_layers.size(); ++layer) {
    for (const char* kind : {".key", ".value"}) {
      spec.names.push_back(std::to_string(layer) + kind);
      spec.local.push_back(chunked && manifest.kv_layers[layer].kind == "chunked");
    }
  }
  spec.heads = manifest.model.num_key_value_heads;
  spec.width = manifest.model.head_dim / manifest.kv_storage.channels_per_element;
  spec.dtype = manifest.kv_storage.dtype;
  return spec;
}

}  // namespace l4
