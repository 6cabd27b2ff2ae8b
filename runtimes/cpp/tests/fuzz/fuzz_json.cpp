// Any bytes as JSON: refused, or a value whose text gives the same value again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "base/json.hpp"

namespace {

using namespace l4::json;

Value parsed_or_null(std::string_view text) {
  try {
    return parse(text, "input");
  } catch (const l4::Error& error) {
    if (error.status() != L4_BAD_INPUT) std::abort();
    return nullptr;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const Value value = parsed_or_null(text);
  if (value.is_null()) return 0;
  Reader reader(text, "input");  // what is skipped is checked in the same way
  reader.skip();
  reader.end();
  for (const bool ascii : {false, true}) {
    const std::string once = dump(value, ascii);
    if (once.find("Infinity") != std::string::npos) return 0;  // a number beyond doubles, as Python reads and writes it
    if (dump(parse(once, "its text"), ascii) != once) std::abort();
  }
  return 0;
}
