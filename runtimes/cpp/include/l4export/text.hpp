// Tokenizers with their chat templates, and text from tokens that come one at a time.
#ifndef L4EXPORT_TEXT_HPP
#define L4EXPORT_TEXT_HPP

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "l4export/error.hpp"

namespace l4export {

class Tokenizer {
 public:
  explicit Tokenizer(const std::string& directory) {
    l4_tokenizer* made = nullptr;
    check(l4_tokenizer_open(directory.c_str(), &made));
    handle_.reset(made);
  }

  Ids encode(std::string_view text, std::uint32_t flags = L4_ADD_SPECIAL_TOKENS) const {
    return detail::collected<Ids>(
        text.size() / 2 + 8, [&](std::int32_t* ids, std::size_t capacity, std::size_t* count) {
          return l4_tokenizer_encode(handle_.get(), text.data(), text.size(), flags, ids, capacity, count);
        });
  }

  std::string decode(const Ids& ids, bool skip_special = true) const {
    return detail::collected<std::string>(4 * ids.size(), [&](char* text, std::size_t capacity, std::size_t* bytes) {
      return l4_tokenizer_decode(handle_.get(), ids.data(), ids.size(), skip_special, text, capacity, bytes);
    });
  }

  l4_tokenizer_info info() const {
    l4_tokenizer_info info{};
    info.size = sizeof info;
    check(l4_tokenizer_get_info(handle_.get(), &info));
    return info;
  }

  // The id of a token as it stands in the vocabulary; none if there is none.
  std::optional<std::int32_t> token_id(const std::string& token) const {
    std::int32_t id = -1;
    check(l4_tokenizer_token_id(handle_.get(), token.c_str(), &id));
    return id < 0 ? std::nullopt : std::optional<std::int32_t>(id);
  }

  // `chat` is JSON, see l4_tokenizer_render_chat.
  std::string render_chat(std::string_view chat) const {
    return detail::collected<std::string>(2 * chat.size(), [&](char* text, std::size_t capacity, std::size_t* bytes) {
      return l4_tokenizer_render_chat(handle_.get(), chat.data(), chat.size(), text, capacity, bytes);
    });
  }

  Ids encode_chat(std::string_view chat, std::uint32_t flags = 0) const {
    return detail::collected<Ids>(chat.size(), [&](std::int32_t* ids, std::size_t capacity, std::size_t* count) {
      return l4_tokenizer_encode_chat(handle_.get(), chat.data(), chat.size(), flags, ids, capacity, count);
    });
  }

  const l4_tokenizer* handle() const { return handle_.get(); }

 private:
  detail::Handle<l4_tokenizer, &l4_tokenizer_close> handle_;
};

// Text from tokens that come one at a time, up to the first stop string.
class TextStream {
 public:
  explicit TextStream(const Tokenizer& tokenizer, const std::vector<std::string>& stop_strings = {}) {
    std::vector<const char*> stops;
    for (const std::string& stop : stop_strings) stops.push_back(stop.c_str());
    l4_text_stream* made = nullptr;
    check(l4_text_stream_create(tokenizer.handle(), stops.data(), stops.size(), &made));
    handle_.reset(made);
  }

  // Take a token: what it completes.
  std::string_view push(std::int32_t token) {
    const char* text = nullptr;
    std::size_t bytes = 0;
    check(l4_text_stream_push(handle_.get(), token, &text, &bytes, &stopped_));
    return {text, bytes};
  }

  // No more tokens come: what was held back.
  std::string_view flush() {
    const char* text = nullptr;
    std::size_t bytes = 0;
    check(l4_text_stream_flush(handle_.get(), &text, &bytes, &stopped_));
    return {text, bytes};
  }

  // The index of the stop string that ended the text; -1: none has.
  std::int32_t stopped() const { return stopped_; }

 private:
  detail::Handle<l4_text_stream, &l4_text_stream_close> handle_;
  std::int32_t stopped_ = -1;
};

}  // namespace l4export

#endif
