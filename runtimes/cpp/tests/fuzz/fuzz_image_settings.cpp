// Settings of images as a checkpoint may have them: refused by name, or pictures become tiles with them.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.hpp"
#include "images/processor.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::uint8_t pixels[3 * 40 * 3] = {7, 200, 31};
  try {
    const auto processor = l4::json::parse({reinterpret_cast<const char*>(data), size}, "settings");
    const l4::json::Value* image = processor.find("image_processor");
    const l4::images::Settings settings = l4::images::settings_of(image != nullptr ? *image : processor, processor);
    if (settings.tile > 64) return 0;  // right, and slow
    l4::images::process(settings, {{pixels, 3, 40}, {pixels, 40, 3}, {pixels, 1, 1}}, 0);
  } catch (const l4::Error&) {
  }
  return 0;
}
