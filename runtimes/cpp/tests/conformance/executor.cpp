#include "executor.hpp"

#include <stdexcept>
#include <utility>

#include "arguments.hpp"

namespace conformance {

using l4::json::Array;
using l4::json::Object;

Value Executor::run(std::size_t number, const Value& call) {
  number_ = number;
  const std::string& name = argument(call, "call").string();
  Object told;
  try {
    if (name == "session_create") {
      told = session_create(call);
    } else if (name == "session_load") {
      const std::string path = shared_.saved + "/" + argument(call, "file").string();
      keep(call, made<l4_session>(l4_session_close, [&](l4_session** out) {
             return l4_session_load(shared_.engine.get(), path.c_str(), out);
           }));
    } else if (name == "images_create") {
      told = images_create(call);
    } else if (name == "images_expand") {
      told = images_expand(call);
    } else if (name == "engine_forget_images") {
      check(l4_engine_forget_images(shared_.engine.get()));
    } else {
      told = name.rfind("tokenizer_", 0) == 0 ? text_call(name, call) : session_call(name, call);
    }
    told.set("status", 0);
  } catch (const Refused& refused) {
    told = Object();
    told.add("status", static_cast<std::int64_t>(refused.status));
    told.add("message", refused.message);
  }
  return told;
}

Object Executor::session_call(const std::string& name, const Value& call) {
  l4_session* found = session(call);
  if (name == "session_info") return session_info(found);
  if (name == "session_append") return session_append(found, call);
  if (name == "session_generate") return session_generate(found, call);
  if (name == "session_rewind") {
    check(l4_session_rewind(found, integers<std::int64_t>(argument(call, "tokens")).data()));
  } else if (name == "session_rewind_row") {
    const auto row = static_cast<std::int32_t>(number_or(call, "row", 0));
    check(l4_session_rewind_row(found, row, number_or(call, "tokens", 0)));
  } else if (name == "session_reset") {
    check(l4_session_reset(found));
  } else if (name == "session_fork") {
    const auto rows = integers<std::int32_t>(argument(call, "rows"));
    keep(call, made<l4_session>(l4_session_close, [&](l4_session** out) {
           return l4_session_fork(found, rows.data(), rows.size(), out);
         }));
  } else if (name == "session_copy_row") {
    const auto row = static_cast<std::int32_t>(number_or(call, "row", 0));
    const auto source_row = static_cast<std::int32_t>(number_or(call, "source_row", 0));
    check(l4_session_copy_row(found, row, session(call, "source"), source_row));
  } else if (name == "session_save") {
    check(l4_session_save(found, (shared_.out + "/" + argument(call, "file").string()).c_str()));
  } else if (name == "session_close") {
    sessions_.erase(argument(call, "session").string());
  } else {
    throw std::runtime_error("no call is named " + name);
  }
  return {};
}

Object Executor::text_call(const std::string& name, const Value& call) {
  const l4_tokenizer* tokenizer = shared_.tokenizer.get();
  const auto ids = [](auto&& give) { return ids_of(all_of<std::int32_t>(give)); };
  const auto text = [](auto&& give) { return text_of(all_of<char>(give)); };
  const std::uint32_t as_text = flag(call, "special_tokens_as_text") ? L4_SPECIAL_TOKENS_AS_TEXT : 0;
  if (name == "tokenizer_encode") {
    const std::string& input = argument(call, "text").string();
    const std::uint32_t flags = as_text | (flag(call, "add_special_tokens") ? L4_ADD_SPECIAL_TOKENS : 0);
    return ids([&](std::int32_t* to, std::size_t room, std::size_t* count) {
      return l4_tokenizer_encode(tokenizer, input.data(), input.size(), flags, to, room, count);
    });
  }
  if (name == "tokenizer_decode") {
    const auto input = integers<std::int32_t>(argument(call, "ids"));
    return text([&](char* to, std::size_t room, std::size_t* count) {
      return l4_tokenizer_decode(tokenizer, input.data(), input.size(), flag(call, "skip_special"), to, room, count);
    });
  }
  const std::string chat = l4::json::dump(argument(call, "chat"));
  if (name == "tokenizer_render_chat") {
    return text([&](char* to, std::size_t room, std::size_t* count) {
      return l4_tokenizer_render_chat(tokenizer, chat.data(), chat.size(), to, room, count);
    });
  }
  return ids([&](std::int32_t* to, std::size_t room, std::size_t* count) {
    return l4_tokenizer_encode_chat(tokenizer, chat.data(), chat.size(), as_text, to, room, count);
  });
}

Object Executor::session_create(const Value& call) {
  l4_session_options options = L4_SESSION_OPTIONS_DEFAULT;
  options.rows = static_cast<std::int32_t>(number_or(call, "rows", 1));
  options.capacity = number_or(call, "capacity", 0);
  std::vector<std::int64_t> starts;
  if (const Value* given = call.find("starts")) {
    starts = integers<std::int64_t>(*given);
    options.starts = starts.data();
  }
  keep(call, made<l4_session>(l4_session_close, [&](l4_session** out) {
         return l4_session_create(shared_.engine.get(), &options, out);
       }));
  return {};
}

Object Executor::session_info(l4_session* session) {
  l4_session_info info = {sizeof info, 0, 0, 0};
  check(l4_session_get_info(session, &info));
  Array lengths, starts, ids;
  for (std::int32_t row = 0; row < info.rows; ++row) {
    l4_row_info of_row = {sizeof of_row, 0, 0, 0};
    check(l4_session_row(session, row, &of_row));
    lengths.emplace_back(of_row.length);
    starts.emplace_back(of_row.start);
    ids.emplace_back(listed(all_of<std::int32_t>([&](std::int32_t* to, std::size_t room, std::size_t* count) {
      return l4_session_token_ids(session, row, to, room, count);
    })));
  }
  Object told;
  told.add("capacity", info.capacity);
  told.add("kv_bytes", static_cast<std::int64_t>(info.kv_bytes));
  told.add("lengths", std::move(lengths));
  told.add("starts", std::move(starts));
  told.add("ids", std::move(ids));
  return told;
}

Object Executor::session_append(l4_session* session, const Value& call) {
  std::vector<std::vector<std::int32_t>> ids;
  for (const Value& row : argument(call, "tokens").array()) ids.push_back(tokens(row));
  std::vector<l4_row_tokens> rows;
  for (std::size_t row = 0; row < ids.size(); ++row) {
    rows.push_back({sizeof(l4_row_tokens), static_cast<std::int32_t>(row), ids[row].data(), ids[row].size(),
                    images_at(call, row)});
  }
  const float* logits = nullptr;
  std::size_t positions = 0;
  check(l4_session_append(session, rows.data(), rows.size(), flag(call, "last_only"), &logits, &positions));
  l4_engine_info info = {};
  info.size = sizeof info;
  check(l4_engine_get_info(shared_.engine.get(), &info));
  const auto batch = static_cast<std::int64_t>(rows.size()), width = static_cast<std::int64_t>(positions);
  tensors_.push_back(tensor(std::to_string(number_), {batch, width, info.vocab_size}, logits,
                            rows.size() * positions * static_cast<std::size_t>(info.vocab_size)));
  return {};
}

l4_session* Executor::session(const Value& call, const char* name) const {
  return sessions_.at(argument(call, name).string()).get();
}

const l4_images* Executor::images_at(const Value& call, std::size_t row) const {
  const Value* names = call.find("images");
  if (names == nullptr || names->array()[row].is_null()) return nullptr;
  return images_.at(names->array()[row].string()).get();
}

std::vector<std::int32_t> Executor::tokens(const Value& row) const {
  return row.is_string() ? prompts_.at(row.string()) : integers<std::int32_t>(row);
}

void Executor::keep(const Value& call, Handle<l4_session> session) {
  sessions_.insert_or_assign(argument(call, "as").string(), std::move(session));
}

}  // namespace conformance
