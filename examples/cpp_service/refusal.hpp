// What a client is told where it gets no answer: OpenAI's error objects.
#pragma once

#include <exception>
#include <string>
#include <utility>

#include "json.hpp"

namespace service {

class Refusal : public std::exception {
 public:
  int status = 400;
  std::string message, type = "invalid_request_error", param, code;

  Refusal(std::string message, std::string param = {}) : message(std::move(message)), param(std::move(param)) {}
  Refusal(int status, std::string message, std::string type, std::string code)
      : status(status), message(std::move(message)), type(std::move(type)), code(std::move(code)) {}
  const char* what() const noexcept override { return message.c_str(); }

  Json object() const {
    const auto or_null = [](const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); };
    return {{"error", {{"message", message}, {"type", type}, {"param", or_null(param)}, {"code", or_null(code)}}}};
  }
};

inline Refusal closing() { return {503, "the service is closing", "server_error", "closing"}; }
inline Refusal failed(const std::string& why) { return {500, why, "server_error", ""}; }

}  // namespace service
