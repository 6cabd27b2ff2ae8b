// The chat templates of one tokenizer, by name.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "chat/chat_document.hpp"
#include "chat/content_forms.hpp"
#include "chat/template.hpp"

namespace l4::chat {

using NamedTexts = std::vector<std::pair<std::string, std::string>>;

// Any number of threads may render at once.
class ChatTemplates {
 public:
  // `sources`: "default" is used where no other is named, "tool_use" where there are tools. `special_tokens`: what
  // templates see as `bos_token`, `eos_token` and so on; the last of a name counts.
  //
  // Raises Error (L4_BAD_INPUT) by name for what a template asks of jinja2 that this library has not: then the Python
  // runtime could use it and this one could not. A template that Python cannot use either, because of an error of
  // syntax for example, is an error when it is used, as in Python.
  ChatTemplates(const NamedTexts& sources, const NamedTexts& special_tokens);
  ~ChatTemplates();

  // The prompt that a template makes of a chat. Contents of messages are given to it in the form that it knows.
  //
  // Raises Error (L4_BAD_INPUT): there is no such template, anything that goes wrong in it, a limit that it exceeds, or
  // parts that it would leave out.
  std::string render(const Chat& chat) const;

  bool empty() const { return entries_.empty(); }
  // Whether the default template writes what a user says, in any form; one that cannot be run says why when it is.
  bool writes_user_text() const;

 private:
  struct Entry;

  const Entry* find(std::string_view name) const;
  const Entry& choose(const std::optional<std::string>& name, bool with_tools) const;
  std::string run(const Entry& entry, const Chat& chat) const;

  std::vector<std::unique_ptr<Entry>> entries_;
  Variables special_tokens_;
};

}  // namespace l4::chat
