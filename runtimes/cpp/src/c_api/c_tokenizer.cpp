// Tokenizers and text streams. Chats are in c_chat.cpp.
#include <string>
#include <vector>

#include "base/error.hpp"
#include "c_api/guard.hpp"
#include "c_api/tokenizer_handle.hpp"
#include "text/spoken_text.hpp"
#include "text/text_files.hpp"

using namespace l4;
using c_api::give;
using c_api::given;
using c_api::guarded;

struct l4_text_stream {
  text::SpokenText spoken;
};

namespace {

std::string_view bytes_of(const char* text, size_t bytes, const char* name) {
  return bytes == 0 ? std::string_view() : std::string_view(&given(text, name), bytes);
}

// What a call on a stream gives its caller.
void tell(const text::SpokenText& spoken, std::string_view piece, const char** text, size_t* bytes, int32_t* stopped) {
  *text = piece.data();
  *bytes = piece.size();
  if (stopped != nullptr) *stopped = spoken.stopped();
}

}  // namespace

extern "C" l4_status l4_tokenizer_open(const char* directory, l4_tokenizer** out) {
  return guarded([&] {
    given(out, "out") = nullptr;
    const std::string where = &given(directory, "directory");
    const text::TextFiles files = text::read_text_files(where);
    const auto tokenizer = text::Tokenizer::open(where, files);
    text::NamedTexts seen;  // by templates
    if (tokenizer->pad_token()) seen.emplace_back("pad_token", *tokenizer->pad_token());
    seen.insert(seen.end(), files.special_tokens.begin(), files.special_tokens.end());
    *out = new l4_tokenizer{tokenizer, std::make_shared<const chat::ChatTemplates>(files.chat_templates, seen)};
  });
}

extern "C" void l4_tokenizer_close(l4_tokenizer* tokenizer) { delete tokenizer; }

extern "C" l4_status l4_tokenizer_encode(const l4_tokenizer* tokenizer, const char* text, size_t bytes, uint32_t flags,
                                         int32_t* ids, size_t capacity, size_t* count) {
  return guarded([&] {
    given(count, "count");
    if ((flags & ~(L4_ADD_SPECIAL_TOKENS | L4_SPECIAL_TOKENS_AS_TEXT)) != 0) {
      throw bad_input("flags: an unknown one is set");
    }
    const std::vector<std::int32_t> found = given(tokenizer, "tokenizer").tokenizer->encode(
        bytes_of(text, bytes, "text"), (flags & L4_ADD_SPECIAL_TOKENS) != 0, (flags & L4_SPECIAL_TOKENS_AS_TEXT) != 0);
    give(found.data(), found.size(), ids, capacity, count);
  });
}

extern "C" l4_status l4_tokenizer_decode(const l4_tokenizer* tokenizer, const int32_t* ids, size_t count,
                                         int skip_special, char* text, size_t capacity, size_t* bytes) {
  return guarded([&] {
    given(bytes, "bytes");
    if (count != 0) given(ids, "ids");
    const std::string found = given(tokenizer, "tokenizer").tokenizer->decode(ids, count, skip_special != 0);
    give(found.data(), found.size(), text, capacity, bytes);
  });
}

extern "C" l4_status l4_tokenizer_token_id(const l4_tokenizer* tokenizer, const char* token, int32_t* id) {
  return guarded([&] {
    given(id, "id");
    *id = given(tokenizer, "tokenizer").tokenizer->token_id(&given(token, "token")).value_or(-1);
  });
}

extern "C" l4_status l4_text_stream_create(const l4_tokenizer* tokenizer, const char* const* stop_strings, size_t count,
                                           l4_text_stream** out) {
  return guarded([&] {
    given(out, "out") = nullptr;
    if (count != 0) given(stop_strings, "stop_strings");
    std::vector<std::string> stops;
    for (size_t i = 0; i < count; ++i) stops.emplace_back(&given(stop_strings[i], "a stop string"));
    *out = new l4_text_stream{text::SpokenText(given(tokenizer, "tokenizer").tokenizer, std::move(stops))};
  });
}

extern "C" l4_status l4_text_stream_push(l4_text_stream* stream, int32_t token, const char** text, size_t* bytes,
                                         int32_t* stopped) {
  return guarded([&] {
    given(text, "text"), given(bytes, "bytes");
    text::SpokenText& spoken = given(stream, "stream").spoken;
    tell(spoken, spoken.push(token), text, bytes, stopped);
  });
}

extern "C" l4_status l4_text_stream_flush(l4_text_stream* stream, const char** text, size_t* bytes, int32_t* stopped) {
  return guarded([&] {
    given(text, "text"), given(bytes, "bytes");
    text::SpokenText& spoken = given(stream, "stream").spoken;
    tell(spoken, spoken.flush(), text, bytes, stopped);
  });
}

extern "C" void l4_text_stream_close(l4_text_stream* stream) { delete stream; }
