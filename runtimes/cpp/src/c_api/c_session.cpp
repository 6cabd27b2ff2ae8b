// Sessions, as the C ABI has them.
#include "c_api/guard.hpp"
#include "c_api/images_handle.hpp"
#include "c_api/session_handles.hpp"

namespace l4::c_api {
namespace {

// A row of so many.
size_t checked_row(std::int32_t row, std::int64_t rows) {
  if (row >= 0 && row < rows) return static_cast<size_t>(row);
  throw bad_input("row is " + std::to_string(row) + ": give a whole number, 0 to " + std::to_string(rows - 1));
}

// The new tokens of an append, into memory that the session keeps for them.
NewTokens& new_tokens(l4_session& handle, const l4_row_tokens* rows, size_t count) {
  NewTokens& tokens = handle.tokens;
  tokens.clear();
  for (size_t index = 0; index < count; ++index) {
    const l4_row_tokens from = element_of<l4_row_tokens>(rows, index, {sizeof(l4_row_tokens), 0, nullptr, 0, nullptr});
    const size_t row = checked_row(from.row, handle.session->rows());
    if (!tokens.rows()[row].empty()) throw bad_input("row " + std::to_string(row) + " is given twice");
    if (from.count == 0) continue;
    tokens.set(row, &given(from.ids, "the ids of a row"), from.count,
               from.images != nullptr ? from.images->images : nullptr);
  }
  return tokens;
}

l4_row_info row_info(const Session& session, std::int32_t row) {
  const SessionState& state = session.state();
  const size_t index = checked_row(row, session.rows());
  return {0, state.lengths[index], state.starts[index], state.end(index)};
}

// Of a session whose methods exclude each other, one by its name.
Session& session_of(const l4_session* handle) { return *given(handle, "session").session; }

}  // namespace
}  // namespace l4::c_api

using namespace l4::c_api;
using l4::Session;

extern "C" l4_status l4_session_create(l4_engine* engine, const l4_session_options* options, l4_session** out) {
  return guarded([&] {
    given(out, "out") = nullptr;
    const auto chosen = options_of<l4_session_options>(options, L4_SESSION_OPTIONS_DEFAULT);
    std::vector<std::int64_t> starts;
    if (chosen.starts != nullptr && chosen.rows > 0) starts.assign(chosen.starts, chosen.starts + chosen.rows);
    *out = new l4_session(given(engine, "engine").engine->session(chosen.rows, chosen.capacity, std::move(starts)));
  });
}

extern "C" void l4_session_close(l4_session* session) { delete session; }

extern "C" l4_status l4_session_get_info(const l4_session* session, l4_session_info* info) {
  return guarded([&] {
    Session& of = session_of(session);
    const Session::Call call(of, "get_info");
    fill(info, l4_session_info{0, static_cast<std::int32_t>(of.rows()), of.capacity(), of.kv_bytes()});
  });
}

extern "C" l4_status l4_session_row(const l4_session* session, int32_t row, l4_row_info* info) {
  return guarded([&] {
    Session& of = session_of(session);
    const Session::Call call(of, "row");
    fill(info, row_info(of, row));
  });
}

extern "C" l4_status l4_session_token_ids(const l4_session* session, int32_t row, int32_t* ids, size_t capacity,
                                          size_t* count) {
  return guarded([&] {
    Session& of = session_of(session);
    const Session::Call call(of, "token_ids");
    const std::vector<std::int64_t>& held = of.state().ids[checked_row(row, of.rows())];
    const std::vector<std::int32_t> narrow(held.begin(), held.end());
    give(narrow.data(), narrow.size(), ids, capacity, count);
  });
}

extern "C" l4_status l4_session_append(l4_session* session, const l4_row_tokens* tokens, size_t count, int last_only,
                                       const float** logits, size_t* positions) {
  return guarded([&] {
    Session& of = session_of(session);
    const Session::Call call(of, "append");
    const l4::Logits given = of.append(new_tokens(*session, tokens, count), last_only != 0);
    if (logits != nullptr) *logits = given.values;
    if (positions != nullptr) *positions = static_cast<size_t>(given.positions);
    session->tokens.clear();  // the caller may close their images, which then go
  });
}

extern "C" l4_status l4_session_rewind(l4_session* session, const int64_t* tokens) {
  return guarded([&] {
    Session& of = session_of(session);
    const Session::Call call(of, "rewind");
    given(tokens, "tokens");
    of.rewind({tokens, tokens + of.rows()});
  });
}

extern "C" l4_status l4_session_rewind_row(l4_session* session, int32_t row, int64_t tokens) {
  return guarded([&] {
    Session& of = session_of(session);
    const Session::Call call(of, "rewind_row");
    of.rewind_row(row, tokens);
  });
}

extern "C" l4_status l4_session_reset(l4_session* session) {
  return guarded([&] {
    Session& of = session_of(session);
    const Session::Call call(of, "reset");
    of.reset();
  });
}

extern "C" l4_status l4_session_fork(l4_session* session, const int32_t* rows, size_t count, l4_session** out) {
  return guarded([&] {
    given(out, "out") = nullptr;
    Session& of = session_of(session);
    const Session::Call call(of, "fork");
    std::vector<std::int64_t> chosen;
    if (rows != nullptr) chosen.assign(rows, rows + count);
    for (std::int64_t row = 0; rows == nullptr && row < of.rows(); ++row) chosen.push_back(row);
    *out = new l4_session(of.fork(chosen));
  });
}

extern "C" l4_status l4_session_copy_row(l4_session* session, int32_t row, l4_session* source, int32_t source_row) {
  return guarded([&] {
    Session &of = session_of(session), &from = session_of(source);
    const Session::Call call(of, "copy_row");
    std::optional<Session::Call> lending;
    if (&from != &of) lending.emplace(from, "copy_row");
    of.copy_row(row, from, source_row);
  });
}

extern "C" l4_status l4_session_save(l4_session* session, const char* path) {
  return guarded([&] {
    Session& of = session_of(session);
    const Session::Call call(of, "save");
    of.save(&given(path, "path"));
  });
}

extern "C" l4_status l4_session_load(l4_engine* engine, const char* path, l4_session** out) {
  return guarded([&] {
    given(out, "out") = nullptr;
    *out = new l4_session(given(engine, "engine").engine->load_session(&given(path, "path")));
  });
}

extern "C" void l4_session_cancel(l4_session* session) {
  if (session != nullptr) session->session->cancel();
}
