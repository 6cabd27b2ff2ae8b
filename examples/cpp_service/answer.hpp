// What comes of a request, from the thread that computes to the one that tells it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <l4export.h>

namespace service {

// A token of an answer.
struct Chosen {
  std::int32_t token = 0;
  bool is_stop_token = false;
  std::string text;              // what is complete with it; the last one has all that was held back
  const char* reason = nullptr;  // why it is the last one, as OpenAI calls it
  bool has_logprob = false;
  double logprob = 0;
  std::vector<l4_logprob> top;
};

// Rings when one of some answers has something new. Who waits for several waits for one bell.
struct Bell {
  std::mutex mutex;
  std::condition_variable rung;
};

class Answer {
 public:
  enum class End { none, finished, cancelled, failed };

  explicit Answer(std::shared_ptr<Bell> bell) : bell_(std::move(bell)) {}

  // Of the computing thread.
  void give(Chosen chosen) {
    const bool last = chosen.reason != nullptr;
    ring([&] {
      chosen_.push_back(std::move(chosen));
      if (last) end_ = End::finished;
    });
  }
  void finish(End end, const std::string& error = {}) {
    ring([&] { end_ = end, error_ = error; });
  }
  std::atomic<std::size_t> prompt_tokens{0}, reused_tokens{0};

  // Of the telling thread. Nobody wants more: the computing thread ends it when it comes to it.
  std::atomic<bool> is_unwanted{false};

  // These need the bell's mutex.
  const std::vector<Chosen>& chosen() const { return chosen_; }
  End end() const { return end_; }
  const std::string& error() const { return error_; }

 private:
  template <typename Change>
  void ring(Change&& change) {
    const std::lock_guard<std::mutex> lock(bell_->mutex);
    change();
    bell_->rung.notify_all();
  }

  std::shared_ptr<Bell> bell_;
  std::vector<Chosen> chosen_;
  End end_ = End::none;
  std::string error_;
};

}  // namespace service
