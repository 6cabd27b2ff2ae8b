#include "executor.hpp"

#include <stdexcept>
#include <utility>

namespace conformance {

using l4::json::Array;
using l4::json::Object;
using l4::json::Value;

namespace {

const Value& argument(const Value& call, const char* name) {
  const Value* found = call.find(name);
  if (found == nullptr) throw std::runtime_error(std::string("a call has no ") + name);
  return *found;
}

std::int64_t number_or(const Value& call, const char* name, std::int64_t otherwise) {
  const Value* found = call.find(name);
  return found == nullptr || found->is_null() ? otherwise : found->integer();
}

double real_or(const Value& object, const char* name, double otherwise) {
  const Value* found = object.find(name);
  return found == nullptr ? otherwise : found->number();
}

bool flag(const Value& call, const char* name) {
  const Value* found = call.find(name);
  return found != nullptr && found->boolean();
}

// With room for one at least: the pointer to no integers is not NULL, which would mean something else.
template <typename T>
std::vector<T> integers(const Value& list) {
  std::vector<T> found;
  found.reserve(list.array().size() + 1);
  for (const Value& item : list.array()) found.push_back(static_cast<T>(item.integer()));
  return found;
}

template <typename T>
Array listed(const std::vector<T>& values) {
  Array list;
  for (const T value : values) list.emplace_back(static_cast<std::int64_t>(value));
  return list;
}

Object ids_of(const std::vector<std::int32_t>& ids) {
  Object told;
  told.add("ids", listed(ids));
  return told;
}

Object text_of(const std::vector<char>& text) {
  Object told;
  told.add("text", std::string(text.begin(), text.end()));
  return told;
}

// The settings of a row; rows that share settings draw from streams of their own.
l4_sampling sampling_of(const Value& settings, std::uint64_t stream) {
  l4_sampling sampling = L4_SAMPLING_DEFAULT;
  sampling.temperature = real_or(settings, "temperature", sampling.temperature);
  sampling.top_p = real_or(settings, "top_p", sampling.top_p);
  sampling.min_p = real_or(settings, "min_p", sampling.min_p);
  sampling.repetition_penalty = real_or(settings, "repetition_penalty", sampling.repetition_penalty);
  sampling.top_k = number_or(settings, "top_k", sampling.top_k);
  sampling.has_seed = settings.find("seed") != nullptr;
  sampling.seed = static_cast<std::uint64_t>(number_or(settings, "seed", 0));
  sampling.stream = stream;
  return sampling;
}

// What has been generated of one row.
struct Answer {
  Array ids, logprobs;
  std::string text;
  Value finish_reason;
};

struct Answers {
  std::vector<Answer> rows;
  bool with_logprobs;
};

int on_token(void* user, const l4_token* token) {
  Answers& answers = *static_cast<Answers*>(user);
  Answer& answer = answers.rows[static_cast<std::size_t>(token->row)];
  answer.ids.emplace_back(std::int64_t{token->id});
  answer.text.append(token->text, token->text_bytes);
  if (token->finish_reason != nullptr) answer.finish_reason = token->finish_reason;
  if (answers.with_logprobs) {
    Array top;
    for (std::size_t i = 0; i < token->top_count; ++i) {
      top.push_back(Array{std::int64_t{token->top[i].token}, token->top[i].logprob});
    }
    answer.logprobs.push_back(Array{token->logprob, std::move(top)});
  }
  return L4_CONTINUE;
}

}  // namespace

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

Object Executor::session_generate(l4_session* session, const Value& call) {
  const Array& given = argument(call, "prompts").array();
  const Value* settings = call.find("sampling");
  const bool shared = settings != nullptr && settings->is_object();
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<l4_sampling> sampling;
  for (std::size_t row = 0; row < given.size(); ++row) {
    ids.push_back(tokens(given[row]));
    if (settings != nullptr) sampling.push_back(shared ? sampling_of(*settings, row) : sampling_of(settings->array()[row], 0));
  }
  std::vector<l4_prompt> prompts;
  for (std::size_t row = 0; row < given.size(); ++row) {
    prompts.push_back({sizeof(l4_prompt), ids[row].data(), ids[row].size(), images_at(call, row),
                       sampling.empty() ? nullptr : &sampling[row]});
  }
  l4_generate_options options = L4_GENERATE_OPTIONS_DEFAULT;
  options.max_new_tokens = argument(call, "max_new_tokens").integer();
  options.logprobs = number_or(call, "logprobs", -1);
  std::vector<std::int32_t> stop_ids;
  if (const Value* stops = call.find("stop_token_ids")) {
    stop_ids = integers<std::int32_t>(*stops);
    options.stop_token_ids = stop_ids.data();
    options.stop_token_count = stop_ids.size();
  }
  std::vector<const char*> stop_strings;
  if (const Value* stops = call.find("stop_strings")) {
    for (const Value& stop : stops->array()) stop_strings.push_back(stop.string().c_str());
    options.stop_strings = stop_strings.data();
    options.stop_string_count = stop_strings.size();
  }
  const bool with_text = flag(call, "text");
  if (with_text) options.tokenizer = shared_.tokenizer.get();
  Answers answers{std::vector<Answer>(given.size()), options.logprobs >= 0};
  check(l4_session_generate(session, prompts.data(), prompts.size(), &options, on_token, &answers));
  Array rows;
  for (Answer& answer : answers.rows) {
    Object row;
    row.add("ids", std::move(answer.ids));
    row.add("finish_reason", answer.finish_reason);
    row.add("logprobs", std::move(answer.logprobs));
    if (with_text) row.add("text", answer.text);
    rows.push_back(std::move(row));
  }
  Object told;
  told.add("rows", std::move(rows));
  return told;
}

Object Executor::images_create(const Value& call) {
  std::vector<l4_picture> pictures;
  for (const Value& name : argument(call, "pictures").array()) {
    const l4::storage::TensorEntry& entry = *shared_.pictures.find(name.string());
    const auto* rgb = reinterpret_cast<const std::uint8_t*>(shared_.pictures.bytes(entry).data());
    pictures.push_back({sizeof(l4_picture), rgb, entry.shape[1], entry.shape[0]});
  }
  const std::string engine = shared_.directory + "/engine";
  const auto most = static_cast<std::int32_t>(number_or(call, "max_tiles", 0));
  auto images = made<l4_images>(l4_images_close, [&](l4_images** out) {
    return l4_images_create(engine.c_str(), pictures.data(), pictures.size(), most, out);
  });
  Array told_images;
  for (std::size_t i = 0; i < l4_images_count(images.get()); ++i) {
    l4_image_info info = {};
    info.size = sizeof info;
    check(l4_images_get_info(images.get(), i, &info));
    told_images.push_back(Array{info.rows, info.columns, info.tiles, info.tokens, info.digest});
  }
  const float* values = nullptr;
  std::size_t tiles = 0, side = 0;
  check(l4_images_tiles(images.get(), &values, &tiles, &side));
  const auto edge = static_cast<std::int64_t>(side);
  tensors_.push_back(tensor(std::to_string(number_), {static_cast<std::int64_t>(tiles), 3, edge, edge}, values,
                            tiles * 3 * side * side));
  images_.insert_or_assign(argument(call, "as").string(), std::move(images));
  Object told;
  told.add("images", std::move(told_images));
  return told;
}

Object Executor::images_expand(const Value& call) {
  const Value& name = argument(call, "images");
  const l4_images* images = name.is_null() ? nullptr : images_.at(name.string()).get();
  const auto ids = integers<std::int32_t>(argument(call, "ids"));
  auto found = all_of<std::int32_t>([&](std::int32_t* to, std::size_t room, std::size_t* count) {
    return l4_images_expand(images, shared_.tokenizer.get(), ids.data(), ids.size(), to, room, count);
  });
  Object told = ids_of(found);
  prompts_[argument(call, "as").string()] = std::move(found);
  return told;
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
