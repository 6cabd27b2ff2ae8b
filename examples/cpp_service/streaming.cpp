#include "streaming.hpp"

#include <algorithm>
#include <chrono>

#include "refusal.hpp"

namespace service {
namespace {

std::string event(const Json& value) { return "data: " + written(value) + "\n\n"; }

std::size_t characters(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

Streaming::Streaming(Teller teller, Answers answers, std::shared_ptr<Bell> bell, std::size_t prompts, bool tells_usage)
    : teller_(std::move(teller)),
      answers_(std::move(answers)),
      bell_(std::move(bell)),
      prompts_(prompts),
      tells_usage_(tells_usage),
      told_(answers_.size()) {}

std::string Streaming::next(bool& is_last) {
  std::vector<std::vector<Chosen>> news(answers_.size());
  bool have_ended = true;
  const Answer* broken = nullptr;
  {
    std::unique_lock<std::mutex> lock(bell_->mutex);
    const auto has_news = [&] {
      for (std::size_t i = 0; i < answers_.size(); ++i) {
        if (answers_[i]->chosen().size() > told_[i].seen) return true;
        if (answers_[i]->end() != Answer::End::none && !told_[i].has_ended) return true;
      }
      return false;
    };
    bell_->rung.wait_for(lock, std::chrono::milliseconds(50), has_news);
    for (std::size_t i = 0; i < answers_.size(); ++i) {
      const std::vector<Chosen>& chosen = answers_[i]->chosen();
      news[i].assign(chosen.begin() + static_cast<std::ptrdiff_t>(told_[i].seen), chosen.end());
      told_[i].seen = chosen.size();
      have_ended &= answers_[i]->end() == Answer::End::finished;
      if (answers_[i]->end() > Answer::End::finished) broken = answers_[i].get();
    }
  }
  std::string out;
  for (std::size_t i = 0; i < answers_.size(); ++i) {
    if (teller_.is_chat() && !told_[i].has_begun) add(out, Json::array({teller_.begin(i)}));
    told_[i].has_begun = true;
    for (const Chosen& chosen : news[i]) tell(i, chosen, out);
  }
  is_last = have_ended || broken != nullptr;
  if (broken != nullptr) {
    const bool is_cancelled = broken->end() == Answer::End::cancelled;
    out += event((is_cancelled ? closing() : failed(broken->error())).object());
  } else if (have_ended) {
    if (tells_usage_) {
      Json last = teller_.chunk(Json::array());
      last["usage"] = usage(answers_, prompts_);
      out += event(last);
    }
    out += "data: [DONE]\n\n";
  }
  return out;
}

// Text that may be the call of a tool is held back until that is known.
void Streaming::tell(std::size_t index, const Chosen& chosen, std::string& out) {
  Told& told = told_[index];
  told.text += chosen.text;
  told.held.push_back(chosen);
  const bool is_last = chosen.reason != nullptr;
  const Json calls = is_last && told.given == 0 ? teller_.calls(told.text) : Json();
  if (!calls.is_null()) {
    Json deltas = Json::array();
    for (std::size_t i = 0; i < calls.size(); ++i) {
      Json delta = {{"index", i}};
      delta.update(calls[i]);
      deltas.push_back(std::move(delta));
    }
    Json choice = teller_.piece(index, "", {}, 0);
    choice["delta"] = {{"tool_calls", std::move(deltas)}};
    add(out, Json::array({std::move(choice)}));
  } else if (is_last || told.given != 0 || !teller_.holds(told.text)) {
    const std::string text = told.text.substr(told.given);
    if (!text.empty() || chosen.has_logprob)
      add(out, Json::array({teller_.piece(index, text, told.held, told.offset)}));
    told.held.clear();
    told.given = told.text.size();
    told.offset += characters(text);
  }
  if (!is_last) return;
  told.has_ended = true;
  add(out, Json::array({teller_.end(index, calls.is_null() ? chosen.reason : "tool_calls")}));
}

void Streaming::add(std::string& out, Json choices) const {
  Json chunk = teller_.chunk(std::move(choices));
  if (tells_usage_) chunk["usage"] = nullptr;
  out += event(chunk);
}

}  // namespace service
