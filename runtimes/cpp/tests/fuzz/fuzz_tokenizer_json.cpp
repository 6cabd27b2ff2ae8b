// Any bytes as tokenizer.json: refused, or a tokenizer that encodes and decodes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "base/utf8.hpp"
#include "text/tokenizer.hpp"

namespace {

constexpr const char* kTexts[] = {"the  theory of <|x|> the\n\n1234 don't", "<|x|><y> z <|x|>",
                                  "\xE6\x97\xA5\xE6\x9C\xAC \xC3\xA9"};

void use(const l4::text::Tokenizer& tokenizer) {
  for (const std::string_view text : kTexts) {
    for (const bool as_text : {false, true}) {
      try {
        const std::vector<std::int32_t> ids = tokenizer.encode(text, true, as_text);
        if (!l4::utf8::is_valid(tokenizer.decode(ids.data(), ids.size(), as_text))) std::abort();
      } catch (const l4::Error& error) {
        if (error.status() != L4_BAD_INPUT) std::abort();
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    use(l4::text::Tokenizer(l4::text::parse_tokenizer_file(text, "input"), {}));
  } catch (const l4::Error& error) {
    if (error.status() != L4_BAD_INPUT) std::abort();
  }
  return 0;
}
