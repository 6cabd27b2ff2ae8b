#include "interruption.hpp"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <thread>

namespace l4run {

namespace {

sigset_t interrupting() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  return signals;
}

}  // namespace

Interruption::Interruption() {
  const sigset_t signals = interrupting();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // threads that are made later inherit it
  std::thread([this] { watch(); }).detach();
}

void Interruption::watch() {
  const sigset_t signals = interrupting();
  for (bool again = false;; again = true) {
    int number = 0;
    if (again) {  // a call that had not begun was not cancelled: try again until the program ends
      const timespec pause{0, 20'000'000};
      nanosleep(&pause, nullptr);
    } else {
      sigwait(&signals, &number);
    }
    const std::lock_guard guard(lock_);
    if (session_ == nullptr) {
      constexpr char kLine[] = "l4run: interrupted\n";
      [[maybe_unused]] const auto written = write(STDERR_FILENO, kLine, sizeof kLine - 1);
      _exit(L4_CANCELLED);
    }
    session_->cancel();
  }
}

Interruption::Watched::Watched(Interruption& interruption, l4export::Session& session) : interruption_(interruption) {
  const std::lock_guard guard(interruption_.lock_);
  interruption_.session_ = &session;
}

Interruption::Watched::~Watched() {
  const std::lock_guard guard(interruption_.lock_);
  interruption_.session_ = nullptr;
}

}  // namespace l4run
