#include "generation/generated_row.hpp"

#include <utility>

namespace l4::generation {

GeneratedRow::GeneratedRow(std::vector<std::int32_t> ids, bool runs, const l4_sampling& settings,
                           std::optional<text::SpokenText> spoken)
    : ids_(std::move(ids)), runs_(runs), sampler_(settings), spoken_(std::move(spoken)) {}

void GeneratedRow::pick(const float* logits, std::size_t vocab, Choosing& choosing) {
  if (ids_.size() == ids_.capacity()) ids_.reserve(2 * ids_.size());  // so that `take` needs no memory for it
  picked_ = sampler_.choose(logits, vocab, said_, ids_.data(), ids_.size(), choosing.workspace);
  if (choosing.likeliest) logprob_ = choosing.logprobs.of(logits, vocab, picked_, *choosing.likeliest, top_);
}

void GeneratedRow::take(const char* ends) {
  text_.clear();
  if (spoken_) {
    text_ += spoken_->push(picked_);
    if (ends != nullptr) text_ += spoken_->flush();
    if (spoken_->stopped() >= 0) ends = "stop string";
  }
  ids_.push_back(picked_);
  ++said_;
  finish_reason_ = ends;
}

l4_token GeneratedRow::told(std::int32_t row) const {
  l4_token token{};
  token.size = sizeof token;
  token.row = row;
  token.id = picked_;
  token.text = text_.data();
  token.text_bytes = text_.size();
  token.finish_reason = finish_reason_;
  token.logprob = logprob_;
  token.top = top_.data();
  token.top_count = top_.size();
  return token;
}

}  // namespace l4::generation
