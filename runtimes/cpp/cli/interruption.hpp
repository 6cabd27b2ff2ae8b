// Ctrl-C: it cancels what runs on a session, and ends the program while there is none.
#pragma once

#include <mutex>

#include "l4export.hpp"

namespace l4run {

class Interruption {
 public:
  // From now on SIGINT and SIGTERM come to a thread of this object's own; to be made before any other thread is.
  Interruption();

  // What an interruption cancels, while it lives.
  class Watched {
   public:
    Watched(Interruption& interruption, l4export::Session& session);
    ~Watched();

   private:
    Interruption& interruption_;
  };

 private:
  [[noreturn]] void watch();

  std::mutex lock_;
  l4export::Session* session_ = nullptr;
};

}  // namespace l4run
