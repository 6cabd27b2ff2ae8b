// ONNX Runtime's C interface, with exceptions inside of this library and statuses at its border.
#pragma once

#include <onnxruntime_c_api.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "parallel.hpp"

namespace l4::cpu {

constexpr std::uint32_t kApiVersion = 21;  // all that is used here is in ONNX Runtime 1.21; headers may be newer

// One line: what is wrong with which node.
class Refused : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api.GetErrorMessage(status);
  api.ReleaseStatus(status);
  throw Refused(message);
}

// f(), with what it throws as a status.
template <class F>
OrtStatus* guarded(const OrtApi& api, F&& f) noexcept {
  try {
    f();
    return nullptr;
  } catch (const Refused& refused) {
    return api.CreateStatus(ORT_INVALID_ARGUMENT, refused.what());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ORT_FAIL, "l4.cpu: there is not enough memory for this call");
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  }
}

// The session's threads. Each claims the next piece until there is none, so that a slow thread does little.
class SessionThreads : public Parallel {
 public:
  SessionThreads(const OrtApi& api, const OrtKernelContext* context) : api_(api), context_(context) {}

  void run(std::int64_t count, const std::function<void(std::int64_t)>& piece) override {
    if (count == 1) return piece(0);
    Job job{piece, count, {0}};
    check(api_, api_.KernelContext_ParallelFor(context_, work, static_cast<std::size_t>(count), 0, &job));
  }

 private:
  struct Job {
    const std::function<void(std::int64_t)>& piece;
    std::int64_t count;
    std::atomic<std::int64_t> next;
  };
  static void work(void* data, std::size_t) {
    Job& job = *static_cast<Job*>(data);
    for (std::int64_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.count;) job.piece(i);
  }
  const OrtApi& api_;
  const OrtKernelContext* context_;
};

}  // namespace l4::cpu
