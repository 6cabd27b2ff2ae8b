// Continuous batching: requests join and leave the rows of one session between calls of the engine.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "rows.hpp"

namespace service {

// Answers requests from any number of threads, as many at a time as there are rows, on a thread of its own.
class Batcher {
 public:
  // `waiting`: requests that may wait for a row.
  Batcher(const Model& model, std::int32_t rows, std::int64_t capacity, std::size_t waiting, std::size_t piece);
  ~Batcher();

  std::size_t rows() const { return rows_.count(); }
  std::size_t capacity() const { return rows_.capacity(); }  // tokens of prompt and answer for which a row has room

  // Take requests, all or none. Throws Refusal where too many wait (429), or the service is closing (503).
  void submit(std::vector<std::unique_ptr<Request>> requests);
  // Somebody no longer wants an answer.
  void notice();
  // Take no more requests, and wait until those that are there have ended; after `grace` they are cancelled.
  void close(std::chrono::duration<double> grace);
  bool is_closing();

  std::string metrics_page();
  Metrics metrics;

 private:
  void run();
  void seat();

  Rows rows_;
  const std::size_t most_waiting_;
  std::mutex mutex_;
  std::condition_variable changed_;  // what follows, and whether an answer is wanted
  std::deque<std::unique_ptr<Request>> waiting_;
  bool is_closing_ = false, is_over_ = false, has_noticed_ = false;
  std::condition_variable ended_;
  bool has_ended_ = false;
  std::thread thread_;
};

}  // namespace service
