// Typed access to the fields of a manifest, which is untrusted: every refusal is one line, with field and cure.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "base/json.hpp"
#include "engine/manifest.hpp"

namespace l4::engine {

// What every JSON reader reads exactly [RFC 7493, 2.2].
constexpr std::int64_t kMaxInteger = (std::int64_t{1} << 53) - 1;
constexpr const char* kBuildAgain = "build the engine again";

// A value for a message: short, and on one line whatever it holds.
std::string show(const json::Value& value);
std::string show(const std::optional<std::int64_t>& value);

// The error, to be thrown: which file, which field, what is wrong with it, what to do.
Error refusal(const std::string& where, const std::string& path, const std::string& problem);

// The place of an item of a list.
inline std::string indexed(const std::string& path, std::size_t index) {
  return path + "[" + std::to_string(index) + "]";
}

// The fields of one JSON object of a manifest; all that are asked for must be there, others are ignored.
class Fields {
 public:
  // `path`: the object's place in the manifest, such as "graphs.decoder"; empty for the manifest itself. `where`: the
  // manifest's file. `raw` and `where` live as long as this.
  Fields(const json::Value& raw, std::string path, const std::string& where);

  const json::Value& raw() const { return raw_; }
  const std::string& where() const { return where_; }
  std::string at(const std::string& name) const;  // the place of a field in the manifest
  [[noreturn]] void refuse(const std::string& name, const std::string& problem) const;

  bool has(std::string_view name) const { return raw_.find(name) != nullptr; }
  const json::Value& value(const std::string& name) const;
  std::string text(const std::string& name) const;  // 1 to 1000 printable characters
  std::vector<std::string> texts(const std::string& name) const;
  std::string choice(const std::string& name, std::initializer_list<std::string_view> known) const;
  bool flag(const std::string& name) const;
  std::int64_t count(const std::string& name, std::int64_t least = 1) const;  // up to kMaxInteger
  std::optional<std::int64_t> count_or_null(const std::string& name) const;
  std::vector<std::int64_t> counts(const std::string& name, std::int64_t least) const;
  std::vector<Dimension> shape(const std::string& name) const;
  std::string file(const std::string& name) const;  // inside the directory
  Fields child(const std::string& name) const;
  std::vector<Fields> children(const std::string& name) const;
  Named<Fields> named() const;  // all fields, whatever their names, each of which is an object
  Named<Fields> files() const;  // the same, by names of files

 private:
  const json::Array& array(const std::string& name) const;
  std::string text_of(const std::string& name, const json::Value& value) const;
  std::int64_t count_of(const std::string& name, const json::Value& value, std::int64_t least) const;
  void check_file(const std::string& name, const std::string& file) const;

  const json::Value& raw_;
  std::string path_;
  const std::string& where_;
};

}  // namespace l4::engine
