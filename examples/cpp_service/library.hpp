// libl4export's C ABI with owners that close, and exceptions.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <l4export.h>

namespace service {

// A call of the library that failed; the message is one line.
class Failure : public std::runtime_error {
 public:
  Failure(l4_status status, const std::string& message) : std::runtime_error(message), status(status) {}
  l4_status status;
};

inline void check(l4_status status) {
  if (status != L4_OK) throw Failure(status, l4_last_error());
}

template <auto close>
struct Closer {
  template <typename T>
  void operator()(T* handle) const {
    close(handle);
  }
};
using Engine = std::unique_ptr<l4_engine, Closer<l4_engine_close>>;
using Tokenizer = std::unique_ptr<l4_tokenizer, Closer<l4_tokenizer_close>>;
using Session = std::unique_ptr<l4_session, Closer<l4_session_close>>;
using TextStream = std::unique_ptr<l4_text_stream, Closer<l4_text_stream_close>>;
using Images = std::shared_ptr<l4_images>;

// What a call makes: made<Engine>(l4_engine_open, directory, &options).
template <typename Owner, typename Call, typename... Arguments>
Owner made(Call call, Arguments... arguments) {
  typename Owner::pointer handle = nullptr;
  check(call(arguments..., &handle));
  return Owner(handle);
}

// What a call gives that takes a buffer, its capacity and a count: asked for a second time where there was no room.
template <typename Buffer, typename Call>
Buffer given(Call call, std::size_t expected) {
  Buffer buffer;
  std::size_t count = 0;
  buffer.resize(expected);
  check(call(buffer.data(), buffer.size(), &count));
  if (count > buffer.size()) {
    buffer.resize(count);
    check(call(buffer.data(), buffer.size(), &count));
  }
  buffer.resize(count);
  return buffer;
}

using Ids = std::vector<std::int32_t>;

// A model with its tokenizer; any number of threads may use it.
struct Model {
  std::string directory;
  Engine engine;
  Tokenizer tokenizer;
  l4_engine_info info{};

  Model(const std::string& path, std::int32_t threads) : directory(path) {
    l4_engine_options options = L4_ENGINE_OPTIONS_DEFAULT;
    options.threads = threads;
    tokenizer = made<Tokenizer>(l4_tokenizer_open, path.c_str());
    engine = made<Engine>(l4_engine_open, path.c_str(), &options);
    info.size = sizeof info;
    check(l4_engine_get_info(engine.get(), &info));
  }

  std::size_t vocab() const { return static_cast<std::size_t>(info.vocab_size); }

  Ids encode(std::string_view text) const {
    return given<Ids>(
        [&](std::int32_t* ids, std::size_t room, std::size_t* count) {
          return l4_tokenizer_encode(tokenizer.get(), text.data(), text.size(), L4_ADD_SPECIAL_TOKENS, ids, room,
                                     count);
        },
        text.size() / 2 + 16);
  }

  // `chat`: JSON as l4_tokenizer_render_chat takes it. What users spell of special tokens stays text.
  Ids encode_chat(std::string_view chat) const {
    return given<Ids>(
        [&](std::int32_t* ids, std::size_t room, std::size_t* count) {
          return l4_tokenizer_encode_chat(tokenizer.get(), chat.data(), chat.size(), L4_SPECIAL_TOKENS_AS_TEXT, ids,
                                          room, count);
        },
        chat.size() / 2 + 16);
  }

  std::string text_of(std::int32_t token) const {
    return given<std::string>(
        [&](char* text, std::size_t room, std::size_t* bytes) {
          return l4_tokenizer_decode(tokenizer.get(), &token, 1, 0, text, room, bytes);
        },
        64);
  }
};

}  // namespace service
