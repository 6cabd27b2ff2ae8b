#include "request.hpp"

#include <algorithm>

namespace service {
namespace {

TextStream stream_of(const Model& model, const std::vector<std::string>& stops) {
  std::vector<const char*> strings;
  for (const std::string& stop : stops) strings.push_back(stop.c_str());
  return made<TextStream>(l4_text_stream_create, model.tokenizer.get(), strings.data(), strings.size());
}

}  // namespace

Request::Request(const Model& model, Metrics& metrics, Prompt prompt, Settings settings, std::shared_ptr<Answer> answer)
    : model_(model),
      metrics_(metrics),
      prompt_(std::move(prompt)),
      settings_(std::move(settings)),
      answer_(std::move(answer)),
      text_(stream_of(model, settings_.stops)),
      ids_(prompt_.ids) {
  answer_->prompt_tokens = prompt_.ids.size();
}

std::size_t Request::piece_end(std::size_t at, std::size_t most, const l4_images** image) const {
  std::size_t end = std::min(at + most, prompt_.ids.size());
  *image = nullptr;
  for (const Placed& placed : prompt_.images) {
    if (placed.start < at || placed.start >= end) continue;
    if (*image != nullptr) return std::min(end, placed.start);  // one image a call
    *image = placed.images.get();
    end = std::max(end, placed.stop);
  }
  return end;
}

void Request::reuse(std::size_t count) {
  answer_->reused_tokens += count;
  metrics_.reused_tokens += count;
}

Chosen Request::picked(const float* logits) {
  Chosen chosen;
  check(l4_sample(logits, model_.vocab(), &settings_.sampling, tokens_, ids_.data(), ids_.size(), &chosen.token));
  if (settings_.likeliest) {
    chosen.has_logprob = true;
    chosen.top.resize(std::min(*settings_.likeliest, model_.vocab()));
    check(l4_logprobs(logits, model_.vocab(), chosen.token, chosen.top.size(), &chosen.logprob, chosen.top.data()));
  }
  return chosen;
}

// Add the text that a token completes; a stop string ends the answer, and what ends it gives all that was held back.
void Request::speak(Chosen& chosen) {
  const char* text = nullptr;
  std::size_t bytes = 0;
  std::int32_t stopped = -1;
  check(l4_text_stream_push(text_.get(), chosen.token, &text, &bytes, &stopped));
  chosen.text.assign(text, bytes);
  if (chosen.reason != nullptr && stopped < 0) {
    check(l4_text_stream_flush(text_.get(), &text, &bytes, &stopped));
    chosen.text.append(text, bytes);
  }
  if (stopped >= 0) chosen.reason = "stop", chosen.is_stop_token = false;
}

bool Request::choose(const float* logits, bool is_full) {
  try {
    Chosen chosen = picked(logits);
    ids_.push_back(chosen.token);
    ++tokens_;
    const std::int32_t* stops = model_.info.eos_token_ids;
    chosen.is_stop_token =
        std::find(stops, stops + model_.info.eos_token_count, chosen.token) != stops + model_.info.eos_token_count;
    if (chosen.is_stop_token) {
      chosen.reason = "stop";
    } else if (tokens_ == settings_.max_new_tokens || is_full) {
      chosen.reason = "length";
    }
    speak(chosen);
    if (tokens_ == 1)
      metrics_.first_token(std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count());
    ++metrics_.new_tokens;
    const bool last = chosen.reason != nullptr;
    if (last) ++metrics_.finished;
    answer_->give(std::move(chosen));
    return last;
  } catch (const std::exception& error) {
    fail(error.what());
    return true;
  }
}

void Request::cancel() {
  ++metrics_.cancelled;
  answer_->finish(Answer::End::cancelled);
}

void Request::fail(const std::string& why) {
  ++metrics_.failed;
  answer_->finish(Answer::End::failed, why);
}

}  // namespace service
