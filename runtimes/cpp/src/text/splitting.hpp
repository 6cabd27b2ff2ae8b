// Cuts a text into words, by the patterns that Llama's tokenizers have.
#pragma once

#include <cstddef>
#include <string_view>

namespace l4::text {

// Where the word ends that begins at `at`, in valid UTF-8; `at` is before the end of the text.
using Splitter = std::size_t (*)(std::string_view text, std::size_t at);

// The splitter that does what a regular expression in tokenizer.json says; nullptr for one that is not known.
Splitter splitter_of(std::string_view pattern);

std::size_t split_as_gpt2(std::string_view text, std::size_t at);    // what ByteLevel does with `use_regex`
std::size_t split_as_llama3(std::string_view text, std::size_t at);
std::size_t split_as_llama4(std::string_view text, std::size_t at);
std::size_t split_nowhere(std::string_view text, std::size_t at);

}  // namespace l4::text
