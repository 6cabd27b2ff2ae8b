// The content of a message, text or a list of parts, in the form that a chat template can read.
//
// Many templates know one of the two forms alone. Given the other one, they lose the text, print the list as Python
// does, or raise. Which forms a template knows is tried out on a short conversation, because what it says about it is a
// program.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "chat/value.hpp"

namespace l4::chat {

// The forms that a template knows for the messages of a role; neither: it writes the text of none.
enum class Form { either, text, parts, neither };

class ContentForms {
 public:
  // `rendered` renders the template with some messages; nothing where it raises.
  explicit ContentForms(std::function<std::optional<std::string>(const std::vector<Value>&)> rendered)
      : rendered_(std::move(rendered)) {}

  Form of(const std::string& role);
  // Messages, which are dicts, with contents that the template can read.
  std::vector<Value> adapt(const std::vector<Value>& messages);
  // Refuse parts, such as videos, that the template would leave out without a word. Raises TemplateError.
  void check_parts(const std::vector<Value>& messages);

 private:
  bool leaves_out(const std::string& role, const std::string& kind, const Value& part);
  Value adapted(const Value& content, const std::string& role);
  Form tried(const std::string& role);
  bool writes(const std::string& role, const Value& content);
  std::vector<Value> conversation(const std::string& role, const Value& content);

  std::function<std::optional<std::string>(const std::vector<Value>&)> rendered_;
  std::map<std::string, Form> known_;
  std::map<std::pair<std::string, std::string>, bool> drops_;
};

}  // namespace l4::chat
