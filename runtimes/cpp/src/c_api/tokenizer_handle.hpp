// What stands behind an l4_tokenizer.
#pragma once

#include <memory>

#include "chat/chat_templates.hpp"
#include "l4export.h"
#include "text/tokenizer.hpp"

struct l4_tokenizer {
  std::shared_ptr<const l4::text::Tokenizer> tokenizer;
  std::shared_ptr<const l4::chat::ChatTemplates> chat;
};
