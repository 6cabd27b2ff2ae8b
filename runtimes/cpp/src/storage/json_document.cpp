#include "storage/json_document.hpp"

#include <utility>

#include "base/error.hpp"

namespace l4::storage {

namespace {

constexpr const char* kPickle = "looks like a pickle, which is never read (it can run code); convert it to safetensors";

constexpr std::pair<std::string_view, const char*> kKinds[] = {
    {"version https://git-lfs", "is a Git LFS pointer, not the file itself; fetch it with git lfs pull"},
    {"PK\x03\x04", "is a zip archive, perhaps of torch.save, whose pickle is never read; convert it to safetensors"},
    {"\x80\x02", kPickle},
    {"\x80\x03", kPickle},
    {"\x80\x04", kPickle},
    {"\x80\x05", kPickle},
    {"GGUF", "is a GGUF file, which is not read; use the checkpoint in Hugging Face layout"},
    {"<", "is a web page, perhaps an error message; download the file again"},
};

}  // namespace

std::optional<std::string> foreign_kind(std::string_view head) {
  head = head.substr(0, 64);
  const std::size_t first = head.find_first_not_of(" \t\n\r\v\f");
  if (first == std::string_view::npos) return std::nullopt;
  head.remove_prefix(first);
  for (const auto& [magic, told] : kKinds) {
    if (head.substr(0, magic.size()) == magic) return told;
  }
  return std::nullopt;
}

json::Value parse_json_object(std::string_view text, const std::string& where) {
  json::Value value;
  try {
    value = json::parse(text, where);
  } catch (const Error&) {
    if (const auto kind = foreign_kind(text)) throw bad_input(where + ": " + *kind);
    throw;
  }
  if (!value.is_object()) throw bad_input(where + ": expected a JSON object; is this the right file?");
  return value;
}

}  // namespace l4::storage
