// What stands behind an l4_engine and an l4_session.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "l4export.h"
#include "session/engine.hpp"

struct l4_engine {
  std::shared_ptr<const l4::Engine> engine;
  std::string provider;                      // what l4_engine_get_info points to
  std::vector<std::int32_t> eos_token_ids;
};

struct l4_session {
  explicit l4_session(std::shared_ptr<l4::Session> made)
      : session(std::move(made)), tokens(static_cast<std::size_t>(session->rows())) {}

  std::shared_ptr<l4::Session> session;
  l4::NewTokens tokens;  // of an append: they are the caller's who holds the Session::Call
};
