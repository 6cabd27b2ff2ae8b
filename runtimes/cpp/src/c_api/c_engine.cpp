// Engines, as the C ABI has them.
#include "c_api/guard.hpp"
#include "c_api/session_handles.hpp"

namespace l4::c_api {
namespace {

std::string text_or_nothing(const char* text) { return text != nullptr ? text : ""; }

EngineOptions engine_options(const l4_engine_options* given) {
  const l4_engine_options options = options_of<l4_engine_options>(given, L4_ENGINE_OPTIONS_DEFAULT);
  return {text_or_nothing(options.onnxruntime), text_or_nothing(options.provider), options.threads,
          options.verify != 0};
}

l4_engine_info info_of(const l4_engine& handle) {
  const engine::Manifest& manifest = *handle.engine->manifest();
  const Decoder& decoder = handle.engine->decoder();
  l4_engine_info info{};
  info.vocab_size = static_cast<std::int32_t>(manifest.model.vocab_size);
  info.max_context = manifest.max_context;
  info.prefill_cut = manifest.prefill_cut.value_or(0);
  info.kv_layout = manifest.kv_layout.c_str();
  info.provider = handle.provider.c_str();
  info.onnxruntime = decoder.runtime()->version().c_str();
  info.eos_token_ids = handle.eos_token_ids.data();
  info.eos_token_count = handle.eos_token_ids.size();
  info.sees_images = manifest.vision.has_value();
  info.threads = decoder.threads();
  return info;
}

}  // namespace
}  // namespace l4::c_api

using namespace l4::c_api;

extern "C" l4_status l4_engine_open(const char* directory, const l4_engine_options* options, l4_engine** out) {
  return guarded([&] {
    given(out, "out") = nullptr;
    given(directory, "directory");
    auto engine = std::make_shared<const l4::Engine>(directory, engine_options(options));
    const auto& eos = engine->manifest()->model.eos_token_ids;
    *out = new l4_engine{engine, engine->decoder().provider(), {eos.begin(), eos.end()}};
  });
}

extern "C" void l4_engine_close(l4_engine* engine) { delete engine; }

extern "C" const char* l4_engine_manifest(const l4_engine* engine) {
  return engine != nullptr ? engine->engine->manifest()->text.c_str() : "";
}

extern "C" l4_status l4_engine_get_info(const l4_engine* engine, l4_engine_info* info) {
  return guarded([&] { fill(info, info_of(given(engine, "engine"))); });
}

extern "C" l4_status l4_engine_forget_images(l4_engine* engine) {
  return guarded([&] { given(engine, "engine").engine->forget_images(); });
}
