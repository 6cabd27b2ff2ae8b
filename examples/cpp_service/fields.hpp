// The fields of a request, each checked for its type; those that nobody has read are refused.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>

#include "json.hpp"
#include "refusal.hpp"

namespace service {

class Fields {
 public:
  explicit Fields(const Json& body) : body_(body) {
    if (!body.is_object()) throw Refusal("the body: give a JSON object");
  }

  // A field that says something; nullptr for what is not there, and for null.
  const Json* find(const char* name) {
    known_.insert(name);
    const auto found = body_.find(name);
    return found == body_.end() || found->is_null() ? nullptr : &*found;
  }

  static Refusal refuse(const std::string& name, const std::string& wanted) {
    return {name + ": give " + wanted, name};
  }

  std::string text(const char* name) {
    const Json* found = find(name);
    if (found == nullptr || !found->is_string()) throw refuse(name, "a text");
    return found->get<std::string>();
  }

  bool flag(const char* name) {
    const Json* found = find(name);
    if (found != nullptr && !found->is_boolean()) throw refuse(name, "true or false");
    return found != nullptr && found->get<bool>();
  }

  std::optional<double> number(const char* name) {
    const Json* found = find(name);
    if (found == nullptr) return std::nullopt;
    if (!found->is_number()) throw refuse(name, "a number");
    return found->get<double>();
  }

  std::optional<std::int64_t> whole(const char* name, std::int64_t least, std::int64_t most) {
    const Json* found = find(name);
    if (found == nullptr) return std::nullopt;
    const bool fits =
        found->is_number_integer() &&
        !(found->is_number_unsigned() &&
          found->get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
    if (!fits || found->get<std::int64_t>() < least || found->get<std::int64_t>() > most) {
      const bool bounded = most < std::numeric_limits<std::int64_t>::max();
      throw refuse(name,
                   "a whole number, " + std::to_string(least) + (bounded ? " to " + std::to_string(most) : " or more"));
    }
    return found->get<std::int64_t>();
  }

  // A field that must say nothing if it is there, because this service does not obey it.
  void only(const char* name, const Json& neutral) {
    const Json* found = find(name);
    if (found != nullptr && *found != neutral)
      throw Refusal(std::string(name) + ": this service does not have it", name);
  }
  void ignore(const char* name) { known_.insert(name); }

  void refuse_others() const {
    for (const auto& [name, value] : body_.items()) {
      if (known_.count(name) == 0)
        throw Refusal(name.substr(0, 60) + ": this service does not have it", name.substr(0, 60));
    }
  }

 private:
  const Json& body_;
  std::set<std::string> known_;
};

}  // namespace service
