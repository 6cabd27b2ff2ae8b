#include "session/cancellation.hpp"

#include "base/error.hpp"

namespace l4 {

void Cancellation::arm() noexcept {
  const std::lock_guard<std::mutex> locked(lock_);
  if (wanted_) options_.allow();
  wanted_ = false;
  armed_ = true;
}

void Cancellation::disarm() noexcept {
  const std::lock_guard<std::mutex> locked(lock_);
  armed_ = false;
}

void Cancellation::request() noexcept {
  const std::lock_guard<std::mutex> locked(lock_);
  if (!armed_) return;
  wanted_ = true;
  options_.terminate();
}

void Cancellation::check() const {
  if (wanted_) throw cancelled("the call was cancelled");
}

}  // namespace l4
