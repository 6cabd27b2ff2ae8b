// Objects that one caller at a time may use. A second caller is refused at once and never waits.
#pragma once

#include <mutex>
#include <string>
#include <thread>

namespace l4 {

class OneCaller {
 public:
  // `what` names the object in messages, such as "the session"; `remedy` is what the second caller should do.
  OneCaller(const char* what, const char* remedy) : what_(what), remedy_(remedy) {}

  // A method that runs, while this lives.
  class Call {
   public:
    Call(OneCaller& object, const char* method);  // raises Error (L4_BAD_INPUT): one runs already
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   private:
    OneCaller& object_;
  };

 private:
  const char *what_, *remedy_;
  std::mutex lock_;  // of the two below, held for an instant
  const char* method_ = nullptr;
  std::thread::id thread_;
};

}  // namespace l4
