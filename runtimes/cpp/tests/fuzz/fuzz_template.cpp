// A template and, behind the first NUL, a chat as JSON: rendered, or refused in one line.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "base/utf8.hpp"
#include "chat/chat_document.hpp"
#include "chat/chat_templates.hpp"

namespace {

constexpr std::string_view kChat = R"({"messages": [
  {"role": "system", "content": "Be brief."},
  {"role": "user", "content": [{"type": "text", "text": "6 · 7?"}, {"type": "image"}]},
  {"role": "assistant", "content": "", "thinking": "why",
   "tool_calls": [{"function": {"name": "mul", "arguments": {"a": 6, "b": [1.5, null, true]}}}]},
  {"role": "tool", "content": "{\"result\": 42}"}, {"role": "user", "content": "Bye"}],
  "tools": [{"name": "mul", "parameters": {"type": "object"}}], "n": 3, "s": "Hello, wörld ", "l": [3, 1, 2]})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t end = input.find('\0');
  const std::string source(input.substr(0, end));
  if (!l4::utf8::is_valid(source)) return 0;  // a file that is no UTF-8 is refused before
  try {
    const l4::chat::ChatTemplates templates({{"default", source}}, {{"bos_token", "<|begin_of_text|>"}});
    const std::string prompt = templates.render(l4::chat::read_chat(end == input.npos ? kChat : input.substr(end + 1)));
    if (!l4::utf8::is_valid(prompt)) std::abort();
  } catch (const l4::Error& error) {
    if (error.status() != L4_BAD_INPUT || std::string_view(error.what()).find('\n') != std::string_view::npos) {
      std::abort();
    }
  }
  return 0;
}
