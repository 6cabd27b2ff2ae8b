// Executes the calls of one case with the C ABI: tests/conformance/README.md.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/json.hpp"
#include "l4export.h"
#include "results.hpp"
#include "storage/safetensors.hpp"

namespace conformance {

// What the cases of a directory share; any number of threads may use it.
struct Shared {
  std::string directory, out, saved;
  Handle<l4_engine> engine;
  Handle<l4_tokenizer> tokenizer;  // may be empty
  l4::storage::TensorFile pictures;
};

class Executor {
 public:
  explicit Executor(const Shared& shared) : shared_(shared) {}

  // What a call gives: its status, and what it tells.
  l4::json::Value run(std::size_t number, const l4::json::Value& call);

  // What was computed, by the number of the call.
  const std::vector<l4::storage::NewTensor>& tensors() const { return tensors_; }

 private:
  using Value = l4::json::Value;
  using Object = l4::json::Object;

  Object session_call(const std::string& name, const Value& call);
  Object text_call(const std::string& name, const Value& call);
  Object session_create(const Value& call);
  Object session_info(l4_session* session);
  Object session_append(l4_session* session, const Value& call);
  Object session_generate(l4_session* session, const Value& call);
  Object images_create(const Value& call);
  Object images_expand(const Value& call);

  l4_session* session(const Value& call, const char* name = "session") const;
  const l4_images* images_at(const Value& call, std::size_t row) const;
  std::vector<std::int32_t> tokens(const Value& row) const;  // ids, or the name of a prompt
  void keep(const Value& call, Handle<l4_session> session);

  const Shared& shared_;
  std::size_t number_ = 0;
  std::map<std::string, Handle<l4_session>> sessions_;
  std::map<std::string, Handle<l4_images>> images_;
  std::map<std::string, std::vector<std::int32_t>> prompts_;
  std::vector<l4::storage::NewTensor> tensors_;
};

}  // namespace conformance
