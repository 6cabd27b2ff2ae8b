#include "batcher.hpp"

#include "refusal.hpp"

namespace service {

Batcher::Batcher(const Model& model, std::int32_t rows, std::int64_t capacity, std::size_t waiting, std::size_t piece)
    : rows_(model, rows, capacity, piece), most_waiting_(waiting), thread_([this] { run(); }) {}

Batcher::~Batcher() {
  close(std::chrono::seconds(0));
  thread_.join();
}

void Batcher::submit(std::vector<std::unique_ptr<Request>> requests) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (is_closing_) throw closing();
  if (waiting_.size() + requests.size() > most_waiting_ + rows_.free()) {
    metrics.refused += requests.size();
    throw Refusal(429, std::to_string(waiting_.size()) + " requests wait already; ask again later", "rate_limit_error",
                  "overloaded");
  }
  for (std::unique_ptr<Request>& request : requests) waiting_.push_back(std::move(request));
  changed_.notify_all();
}

void Batcher::notice() {
  const std::lock_guard<std::mutex> lock(mutex_);
  has_noticed_ = true;
  changed_.notify_all();
}

void Batcher::close(std::chrono::duration<double> grace) {
  std::unique_lock<std::mutex> lock(mutex_);
  is_closing_ = true;
  changed_.notify_all();
  ended_.wait_for(lock, grace, [this] { return has_ended_; });
  is_over_ = true;
  ended_.wait(lock, [this] { return has_ended_; });
}

bool Batcher::is_closing() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return is_closing_;
}

std::string Batcher::metrics_page() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return metrics.page(waiting_.size(), rows_.running(), rows_.count());
}

void Batcher::run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return !waiting_.empty() || rows_.running() != 0 || is_closing_ || has_noticed_; });
    seat();
    if (rows_.running() != 0) {
      lock.unlock();
      try {
        rows_.advance();
      } catch (const std::exception& error) {
        rows_.fail_all(error.what());
      }
      lock.lock();
    } else if (is_closing_ && waiting_.empty()) {
      has_ended_ = true;
      ended_.notify_all();
      return;
    }
  }
}

// Let those who wait take the free rows, in their order; nobody waits for what nobody wants.
void Batcher::seat() {
  has_noticed_ = false;
  if (is_over_) {
    rows_.cancel_all();
    for (const std::unique_ptr<Request>& request : waiting_) request->cancel();
    waiting_.clear();
  }
  rows_.leave_unwanted();
  for (auto request = waiting_.begin(); request != waiting_.end();) {
    if ((*request)->is_unwanted()) {
      (*request)->cancel();
      request = waiting_.erase(request);
    } else {
      ++request;
    }
  }
  while (!waiting_.empty() && rows_.free() != 0) {
    metrics.prompt_tokens += waiting_.front()->prompt().ids.size();
    rows_.admit(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

}  // namespace service
