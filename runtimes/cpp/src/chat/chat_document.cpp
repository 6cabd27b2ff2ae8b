#include "chat/chat_document.hpp"

#include <algorithm>
#include <array>

#include "base/error.hpp"

namespace l4::chat {

namespace {

constexpr json::Limits kLimits{10'000'000, 90};

// As json::read_value, but an integer beyond 64 bits is refused: as a double it would be written otherwise.
json::Value read_exactly(json::Reader& reader) {
  switch (reader.peek()) {
    case json::Kind::integer: return reader.integer();
    case json::Kind::array: {
      json::Array items;
      reader.array([&] { items.push_back(read_exactly(reader)); });
      return items;
    }
    case json::Kind::object: {
      json::Object members;
      reader.object([&](std::string_view key) {
        std::string name(key);  // which is gone when its value is read
        if (members.find(name) != nullptr) reader.fail("the key " + in_quotes(name) + " comes twice");
        members.add(std::move(name), read_exactly(reader));
      });
      return members;
    }
    default: return json::read_value(reader);
  }
}

const char* python_type(const json::Value& value) {
  switch (value.kind()) {
    case json::Kind::null: return "NoneType";
    case json::Kind::boolean: return "bool";
    case json::Kind::integer: return "int";
    case json::Kind::number: return "float";
    case json::Kind::string: return "str";
    case json::Kind::array: return "list";
    case json::Kind::object: return "dict";
  }
  return "object";
}

}  // namespace

Chat read_chat(std::string_view document) {
  json::Reader reader(document, "chat", kLimits);
  if (reader.peek() != json::Kind::object) {
    throw bad_input(
        "chat: not a JSON object with messages, such as {\"messages\": [{\"role\": ..., \"content\": ...}]}");
  }
  const json::Value whole = read_exactly(reader);
  reader.end();
  Chat chat;
  const json::Value* messages = whole.find("messages");
  if (messages == nullptr || !messages->is_array()) {
    throw bad_input("chat: \"messages\" is no list; give a list of objects with role and content");
  }
  for (const json::Value& message : messages->array()) {
    if (message.is_object()) continue;
    throw bad_input(std::string("messages: one is of type ") + python_type(message) +
                    ": give mappings with role and content");
  }
  chat.messages = messages->array();
  for (const auto& [name, value] : whole.object().members()) {
    if (name == "add_generation_prompt") {
      chat.add_generation_prompt = value;
    } else if (name == "chat_template") {
      if (!value.is_null() && !value.is_string()) {
        throw bad_input("chat: \"chat_template\" is neither null nor the name of a template");
      }
      if (value.is_string()) chat.chat_template = value.string();
    } else if (name != "messages") {
      chat.variables.add(name, value);
    }
  }
  return chat;
}

bool holds_images(const json::Array& messages) {
  static constexpr std::array<std::string_view, 5> kSources = {"image", "path", "bytes", "base64", "url"};
  const auto holds = [](const json::Value& part) {
    const json::Value* type = part.find("type");
    if (type == nullptr || !type->is_string() || type->string() != "image") return false;
    return std::any_of(kSources.begin(), kSources.end(), [&](std::string_view key) {
      const json::Value* source = part.find(key);
      return source != nullptr && !source->is_null();
    });
  };
  return std::any_of(messages.begin(), messages.end(), [&](const json::Value& message) {
    const json::Value* content = message.find("content");
    return content != nullptr && content->is_array() &&
           std::any_of(content->array().begin(), content->array().end(), holds);
  });
}

}  // namespace l4::chat
