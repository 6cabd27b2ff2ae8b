// Chats: rendered by a chat template, and encoded.
#include <string>
#include <vector>

#include "base/error.hpp"
#include "c_api/guard.hpp"
#include "c_api/tokenizer_handle.hpp"
#include "chat/chat_document.hpp"
#include "chat/chat_templates.hpp"

using namespace l4;
using c_api::give;
using c_api::given;
using c_api::guarded;

namespace {

chat::Chat chat_of(const char* text, size_t bytes) {
  return chat::read_chat(std::string_view(&given(text, "chat"), bytes));
}

// The chat with all special tokens marked that it spells out.
chat::Chat marked(const text::Tokenizer& tokenizer, chat::Chat chat) {
  for (json::Value& message : chat.messages) message = tokenizer.mark(message);
  json::Object variables;
  for (const auto& [name, value] : chat.variables.members()) variables.add(name, tokenizer.mark(value));
  chat.variables = std::move(variables);
  return chat;
}

std::vector<std::int32_t> encoded(const l4_tokenizer& tokenizer, const chat::Chat& chat, bool special_as_text) {
  if (chat::holds_images(chat.messages)) {
    throw bad_input(
        "messages: hold images, which ids alone would lose; give parts {\"type\": \"image\"} and the pictures to "
        "l4_images_create");
  }
  if (!special_as_text) return tokenizer.tokenizer->encode(tokenizer.chat->render(chat), false);
  return tokenizer.tokenizer->encode_marked(tokenizer.chat->render(marked(*tokenizer.tokenizer, chat)));
}

}  // namespace

extern "C" l4_status l4_tokenizer_get_info(const l4_tokenizer* tokenizer, l4_tokenizer_info* info) {
  return guarded([&] {
    const chat::ChatTemplates& templates = *given(tokenizer, "tokenizer").chat;
    const bool has_template = !templates.empty();
    c_api::fill(info, l4_tokenizer_info{0, has_template, has_template && templates.writes_user_text()});
  });
}

extern "C" l4_status l4_tokenizer_render_chat(const l4_tokenizer* tokenizer, const char* chat, size_t chat_bytes,
                                              char* text, size_t capacity, size_t* bytes) {
  return guarded([&] {
    given(bytes, "bytes");
    const std::string prompt = given(tokenizer, "tokenizer").chat->render(chat_of(chat, chat_bytes));
    give(prompt.data(), prompt.size(), text, capacity, bytes);
  });
}

extern "C" l4_status l4_tokenizer_encode_chat(const l4_tokenizer* tokenizer, const char* chat, size_t chat_bytes,
                                              uint32_t flags, int32_t* ids, size_t capacity, size_t* count) {
  return guarded([&] {
    given(count, "count");
    if ((flags & ~L4_SPECIAL_TOKENS_AS_TEXT) != 0) {
      throw bad_input("flags: for a chat there is L4_SPECIAL_TOKENS_AS_TEXT alone");
    }
    const std::vector<std::int32_t> found =
        encoded(given(tokenizer, "tokenizer"), chat_of(chat, chat_bytes), flags != 0);
    give(found.data(), found.size(), ids, capacity, count);
  });
}
