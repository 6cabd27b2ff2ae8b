#include "chat/content_forms.hpp"

#include <algorithm>

#include "chat/characters.hpp"
#include "chat/failure.hpp"
#include "chat/operations.hpp"
#include "chat/printing.hpp"

namespace l4::chat {

namespace {

constexpr std::string_view kNeedle = "l4export", kPrinted = "'type': 'text'";

constexpr std::size_t kMostKnown = 256;  // roles, and types of parts, that are remembered: whoever chats chooses them

Value text_part(std::string_view text) {
  Dict part;
  part.set("type", "text");
  part.set("text", text);
  return make_dict(std::move(part));
}

Value parts(std::string_view text) { return make_list({text_part(text)}); }

Value message(const std::string& role, const Value& content) {
  Dict made;
  made.set("role", role);
  made.set("content", content);
  return make_dict(std::move(made));
}

// str(dict.get(key)).
std::string member_text(const Value& dict, std::string_view key) {
  Budget budget;
  const Value* found = dict.dict().find(key);
  return text_of(found == nullptr ? Value(nullptr) : *found, budget).string();
}

bool is_text_part(const Value& part) {
  if (!part.is(Kind::dict) || member_text(part, "type") != "text") return false;
  const Value* text = part.dict().find("text");
  return text != nullptr && text->is_text();
}

// The first characters of a text, as a message quotes them.
std::string shortened(const std::string& text) {
  return repr(characters(Text(text), 0, std::min<std::size_t>(Text(text).points, 40)));
}

}  // namespace

Form ContentForms::of(const std::string& role) {
  if (const auto known = known_.find(role); known != known_.end()) return known->second;
  const Form form = tried(role);
  if (known_.size() >= kMostKnown) known_.clear();
  known_.emplace(role, form);
  return form;
}

std::vector<Value> ContentForms::adapt(const std::vector<Value>& messages) {
  std::vector<Value> all;
  for (const Value& message : messages) {
    const Value* content = message.dict().find("content");
    if (content == nullptr) {
      all.push_back(message);
      continue;
    }
    Dict changed = message.dict();
    changed.set("content", adapted(*content, member_text(message, "role")));
    all.push_back(make_dict(std::move(changed)));
  }
  return all;
}

void ContentForms::check_parts(const std::vector<Value>& messages) {
  for (const Value& message : messages) {
    const Value* content = message.dict().find("content");
    if (content == nullptr || !content->is(Kind::list)) continue;
    const std::string role = member_text(message, "role");
    for (const Value& part : content->sequence().items) {
      if (!part.is(Kind::dict)) continue;
      const std::string kind = member_text(part, "type");
      if (kind == "text" || !leaves_out(role, kind, part)) continue;
      throw TemplateError("it leaves out parts of type " + shortened(kind) + " in a message of " + shortened(role));
    }
  }
}

bool ContentForms::leaves_out(const std::string& role, const std::string& kind, const Value& part) {
  const auto key = std::make_pair(role, kind);
  if (const auto known = drops_.find(key); known != drops_.end()) return known->second;
  const auto without = rendered_(conversation(role, parts(kNeedle)));
  const auto written = rendered_(conversation(role, make_list({text_part(kNeedle), part})));
  if (drops_.size() >= kMostKnown) drops_.clear();
  return drops_[key] = written.has_value() && written == without;
}

Value ContentForms::adapted(const Value& content, const std::string& role) {
  const Form form = of(role);
  if (form == Form::parts && content.is_text()) return parts(content.string());
  if (form != Form::text || !content.is(Kind::list)) return content;
  const std::vector<Value>& items = content.sequence().items;
  if (items.empty() || !std::all_of(items.begin(), items.end(), is_text_part)) return content;
  std::string text;
  for (const Value& part : items) {
    if (&part != &items.front()) text += "\n";
    text += part.dict().find("text")->string();
  }
  return text;
}

Form ContentForms::tried(const std::string& role) {
  if (role != "user" && (of("user") == Form::either || of("user") == Form::neither)) {
    return Form::either;  // as most, or unknown
  }
  const bool text = writes(role, kNeedle), in_parts = writes(role, parts(kNeedle));
  if (text || in_parts) return text && in_parts ? Form::either : text ? Form::text : Form::parts;
  return role == "user" ? Form::neither : of("user");
}

bool ContentForms::writes(const std::string& role, const Value& content) {
  const std::optional<std::string> written = rendered_(conversation(role, content));
  if (!written) return false;
  const std::string small = lower(*written);
  return small.find(kNeedle) != std::string::npos && small.find(kPrinted) == std::string::npos;
}

// The shortest conversation that has such a message.
std::vector<Value> ContentForms::conversation(const std::string& role, const Value& content) {
  if (role == "user") return {message(role, content)};
  const Value question = message("user", of("user") == Form::parts ? parts("?") : Value("?"));
  if (role == "system" || role == "developer") return {message(role, content), question};
  return {question, message(role, content)};
}

}  // namespace l4::chat
