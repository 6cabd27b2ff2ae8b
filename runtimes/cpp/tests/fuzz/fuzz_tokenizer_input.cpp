// Any bytes as a text: refused if they are no UTF-8; or else what is encoded is decoded to the same text, at once and
// token by token. The tokenizers are fixed, one of each way to cut a text.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "base/utf8.hpp"
#include "text/byte_alphabet.hpp"
#include "text/spoken_text.hpp"

namespace {

using namespace l4::text;

std::shared_ptr<const Tokenizer> tokenizer(Splitter splitter, bool whole_words_first) {
  constexpr std::array<std::array<std::int32_t, 3>, 6> kMerges = {
      {{'a', 'a', 256}, {256, 256, 257}, {' ', 'a', 258}, {'\n', '\n', 259}, {0xE6, 0x97, 260}, {'<', '|', 261}}};
  TokenizerFile file;
  Vocabulary& vocabulary = file.model.vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.add(spelling_of(std::string(1, static_cast<char>(byte))), byte);
    file.model.bytes[static_cast<std::size_t>(byte)] = byte;
  }
  std::vector<Merge> merges;
  for (const auto& [left, right, id] : kMerges) {
    vocabulary.add(vocabulary.spelling(left) + vocabulary.spelling(right), id);
    merges.push_back({left, right, static_cast<std::uint32_t>(merges.size() + 1), id});
  }
  vocabulary.index();
  file.model.merges = Merges(merges);
  file.model.splitter = splitter;
  file.model.whole_words_first = whole_words_first;
  AddedToken special;
  special.content = "<|x|>";
  special.special = true;
  special.normalized = false;
  file.added = {special};
  file.before = {262};
  return std::make_shared<const Tokenizer>(std::move(file), TextFiles());
}

void check(const std::shared_ptr<const Tokenizer>& tokenizer, std::string_view text) {
  for (const bool as_text : {false, true}) {
    const std::vector<std::int32_t> ids = tokenizer->encode(text, false, as_text);
    if (tokenizer->decode(ids.data(), ids.size(), false) != text) std::abort();
    if (!as_text) continue;  // no special token is skipped
    std::string spoken;
    SpokenText stream(tokenizer, {});
    for (const std::int32_t id : ids) spoken += stream.push(id);
    spoken += stream.flush();
    if (spoken != text) std::abort();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::array tokenizers = {tokenizer(split_as_llama4, true), tokenizer(split_as_llama3, false),
                                        tokenizer(split_as_gpt2, false), tokenizer(split_nowhere, true)};
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const auto& one : tokenizers) {
    try {
      check(one, text);
    } catch (const l4::Error& error) {
      if (error.status() != L4_BAD_INPUT || l4::utf8::is_valid(text)) std::abort();
    }
  }
  return 0;
}
