// OpenAI's objects: what is told of answers, whole or in pieces.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "answer.hpp"
#include "json.hpp"
#include "library.hpp"

namespace service {

using Answers = std::vector<std::shared_ptr<Answer>>;

// Numbers of tokens; each of `prompts` prompts counts once, however many answers it has. All answers have ended.
Json usage(const Answers& answers, std::size_t prompts);

// The objects of one response: `chat.completion` or `text_completion`, or chunks of one.
class Teller {
 public:
  // `tools`: names of those that may be called.
  Teller(const Model& model, bool is_chat, const std::string& name, const std::string& fingerprint,
         std::vector<std::string> tools);

  bool is_chat() const { return is_chat_; }
  // Everything at once, when all answers have ended.
  Json whole(const Answers& answers, std::size_t prompts) const;
  // A piece of a stream.
  Json chunk(Json choices) const;
  // A choice in a chunk: some text, and the tokens with which it came; `offset`: where that text begins.
  Json piece(std::size_t index, const std::string& text, const std::vector<Chosen>& chosen, std::size_t offset) const;
  Json begin(std::size_t index) const;  // says who speaks
  Json end(std::size_t index, const std::string& reason) const;
  // The calls of tools of which a whole text consists; null where it is text.
  Json calls(const std::string& text) const;
  // Whether a text that begins so must be kept back, because it may become calls of tools.
  bool holds(const std::string& text) const;

 private:
  Json choice(std::size_t index, const std::vector<Chosen>& chosen) const;
  Json logprobs(const std::vector<Chosen>& chosen, std::size_t offset) const;
  Json token(std::int32_t id, double logprob) const;

  const Model& model_;
  bool is_chat_;
  std::vector<std::string> tools_;
  Json head_, chunk_head_;
};

}  // namespace service
