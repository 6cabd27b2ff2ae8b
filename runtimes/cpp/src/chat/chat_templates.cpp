#include "chat/chat_templates.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "chat/failure.hpp"
#include "chat/operations.hpp"
#include "chat/printing.hpp"

namespace l4::chat {

namespace {

constexpr std::size_t kTemplateCharacters = 1 << 20;   // longest template; Llama 4's has 5 thousand
constexpr std::size_t kPromptCharacters = 64 << 20;    // longest text that a template may produce of any messages
// A template may write so many characters of its own, and each that it is given so often: JSON's escapes take six.
constexpr std::size_t kOwnCharacters = 1 << 20, kTimes = 8;

Value value_of(const json::Value& value) {
  switch (value.kind()) {
    case json::Kind::null: return nullptr;
    case json::Kind::boolean: return value.boolean();
    case json::Kind::integer: return value.integer();
    case json::Kind::number: return value.number();
    case json::Kind::string: return value.string();
    case json::Kind::array: {
      std::vector<Value> items;
      for (const json::Value& item : value.array()) items.push_back(value_of(item));
      return make_list(std::move(items));
    }
    case json::Kind::object: {
      Dict members;
      for (const auto& [key, item] : value.object().members()) members.set(key, value_of(item));
      return make_dict(std::move(members));
    }
  }
  return nullptr;
}

// A message as transformers gives it to a template: without empty keys, and with reasoning under all its names.
json::Value plain_message(const json::Value& message) {
  const json::Value* reasoning = nullptr;
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
    const json::Value* found = message.find(name);
    if (reasoning == nullptr && found != nullptr && !found->is_null()) reasoning = found;
  }
  json::Object plain;
  if (reasoning != nullptr) plain.add("thinking", *reasoning);
  for (const auto& [key, value] : message.object().members()) {
    if (!value.is_null()) plain.set(key, value);
  }
  if (reasoning != nullptr) plain.set("reasoning_content", *reasoning);
  return plain;
}

std::string failure_text(const std::string& reason) {
  return "chat template: " + printable(reason) + "; correct the messages or the template";
}

}  // namespace

struct ChatTemplates::Entry {
  std::string name;
  std::unique_ptr<Template> compiled;  // absent: `failure` says why
  std::string failure;
  std::unique_ptr<ContentForms> forms;
  mutable Budget* budget = nullptr;  // of the call that uses the forms
  mutable std::mutex lock;           // of both
};

ChatTemplates::ChatTemplates(const NamedTexts& sources, const NamedTexts& special_tokens) {
  for (const auto& [name, text] : special_tokens) special_tokens_[name] = Value(text);
  Variables trial = special_tokens_;
  trial["tools"] = trial["documents"] = Value(nullptr);
  trial["add_generation_prompt"] = Value(false);
  for (const auto& [name, text] : special_tokens) trial[name] = Value(text);
  for (const auto& [name, source] : sources) {
    auto entry = std::make_unique<Entry>();
    entry->name = name;
    const std::size_t size = utf8_length(source);
    if (size > kTemplateCharacters) {
      entry->failure = "chat template: " + std::to_string(size) + " characters, at most " +
                       std::to_string(kTemplateCharacters) + " are run: shorten it";
      entries_.push_back(std::move(entry));
      continue;
    }
    try {
      entry->compiled = std::make_unique<Template>(source);
      entry->forms = std::make_unique<ContentForms>(
          [&entry = *entry, trial](const std::vector<Value>& messages) -> std::optional<std::string> {
            Variables variables = trial;
            variables["messages"] = make_list(messages);
            try {
              return entry.compiled->render(variables, kPromptCharacters, *entry.budget);
            } catch (const TemplateError&) {
              return std::nullopt;
            }
          });
    } catch (const Unsupported& what) {
      throw bad_input("chat template " + repr(name) + ": it uses " + what.what() +
                      ", which the native runtime does not have; use the Python runtime");
    } catch (const TemplateError& error) {
      entry->failure = failure_text(error.what());
    }
    entries_.push_back(std::move(entry));
  }
}

ChatTemplates::~ChatTemplates() = default;

const ChatTemplates::Entry* ChatTemplates::find(std::string_view name) const {
  for (const auto& entry : entries_) {
    if (entry->name == name) return entry.get();
  }
  return nullptr;
}

const ChatTemplates::Entry& ChatTemplates::choose(const std::optional<std::string>& name, bool with_tools) const {
  const std::string wanted = name ? *name : with_tools && find("tool_use") != nullptr ? "tool_use" : "default";
  if (const Entry* entry = find(wanted)) return *entry;
  if (entries_.empty()) {
    throw bad_input("chat template: there is none: give a plain prompt, or add a chat_template.jinja");
  }
  std::vector<std::string> names;
  for (const auto& entry : entries_) names.push_back(entry->name);
  std::sort(names.begin(), names.end());
  std::string known = names[0];
  for (std::size_t i = 1; i < names.size(); ++i) known += ", " + names[i];
  throw bad_input("chat template: there is none called " + repr(wanted) + ": name one of " + known +
                  ", or give a plain prompt");
}

std::string ChatTemplates::render(const Chat& chat) const {
  const json::Value* tools = chat.variables.find("tools");
  const Entry& entry = choose(chat.chat_template, tools != nullptr && !tools->is_null());
  if (!entry.compiled) throw bad_input(entry.failure);
  try {
    return run(entry, chat);
  } catch (const TemplateError& error) {
    throw bad_input(failure_text(error.what()));
  } catch (const LimitExceeded& error) {
    throw bad_input(failure_text(error.what()));
  }
}

bool ChatTemplates::writes_user_text() const {
  const Entry& entry = choose(std::nullopt, false);
  if (!entry.compiled) return true;
  Budget budget;
  const std::lock_guard guard(entry.lock);
  entry.budget = &budget;
  try {
    return entry.forms->of("user") != Form::neither;
  } catch (const LimitExceeded&) {
    return true;
  }
}

std::string ChatTemplates::run(const Entry& entry, const Chat& chat) const {
  json::Array plain;
  for (const json::Value& message : chat.messages) plain.push_back(plain_message(message));
  json::Object request_variables = chat.variables;
  for (const char* name : {"tools", "documents"}) request_variables.add(name, nullptr);
  request_variables.set("add_generation_prompt", chat.add_generation_prompt);
  json::Object request;
  request.add("messages", plain);
  request.add("variables", request_variables);
  const std::size_t given = utf8_length(json::dump(request));
  const std::size_t longest = std::min(kPromptCharacters, kOwnCharacters + kTimes * given);

  std::vector<Value> messages;
  for (const json::Value& message : plain) messages.push_back(value_of(message));
  Variables variables = special_tokens_;
  for (const auto& [name, value] : request_variables.members()) variables[name] = value_of(value);
  Budget budget;
  {
    const std::lock_guard<std::mutex> guard(entry.lock);
    entry.budget = &budget;
    entry.forms->check_parts(messages);
    variables["messages"] = make_list(entry.forms->adapt(messages));
  }
  return entry.compiled->render(variables, longest, budget);
}

}  // namespace l4::chat
