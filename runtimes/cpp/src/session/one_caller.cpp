#include "session/one_caller.hpp"

#include "base/error.hpp"

namespace l4 {

OneCaller::Call::Call(OneCaller& object, const char* method) : object_(object) {
  const std::lock_guard<std::mutex> locked(object.lock_);
  if (object.method_ != nullptr) {
    const char* where = object.thread_ == std::this_thread::get_id() ? "this" : "another";
    throw bad_input(std::string(object.what_) + " is in use: " + object.method_ + " runs in " + where + " thread; " +
                    object.remedy_);
  }
  object.method_ = method;
  object.thread_ = std::this_thread::get_id();
}

OneCaller::Call::~Call() {
  const std::lock_guard<std::mutex> locked(object_.lock_);
  object_.method_ = nullptr;
}

}  // namespace l4
