// The rows of a session, the requests in them, and the calls that bring these further. Of one thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "library.hpp"
#include "request.hpp"

namespace service {

class Rows {
 public:
  // `capacity`: tokens of a row, 0: the model's most. `piece`: prompt tokens between two steps.
  Rows(const Model& model, std::int32_t rows, std::int64_t capacity, std::size_t piece);

  std::size_t count() const { return seats_.size(); }
  std::size_t capacity() const { return capacity_; }
  std::size_t running() const { return running_; }  // requests that have a row; any thread may ask
  std::size_t free() const { return seats_.size() - running_; }

  // Give a request a free row: one that its prompt continues, or else the one that was free for longest.
  void admit(std::unique_ptr<Request> request);
  // Feed some prompt tokens, then a token of every row that has begun to answer.
  void advance();
  // End the requests that nobody wants, or all of them.
  void leave_unwanted();
  void cancel_all();
  void fail_all(const std::string& why);

 private:
  // A row. What a request leaves in it stays until the row is needed, for prompts that begin alike.
  struct Seat {
    std::int32_t row;
    std::unique_ptr<Request> request = nullptr;
    Prompt held = {};        // what the row holds
    std::uint64_t left = 0;  // when it became free
  };

  std::size_t feed(Seat& seat);
  void step();
  void choose(Seat& seat, const float* logits);
  void leave(Seat& seat);
  void cancel(Seat& seat);
  void failed(Seat& seat, const std::string& why);
  void cut(Seat& seat, std::size_t length);
  void copy_longer(Seat& seat);
  std::size_t beginning(const Seat& seat, const Prompt& prompt) const;

  const Model& model_;
  const std::size_t piece_;
  Session session_;
  std::size_t capacity_;
  std::vector<Seat> seats_;
  std::deque<Seat*> prompting_;
  std::atomic<std::size_t> running_{0};
  std::uint64_t clock_ = 0;
};

}  // namespace service
