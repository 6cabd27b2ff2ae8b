// Counts since the start, in the text format of Prometheus.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>

namespace service {

struct Metrics {
  std::atomic<std::uint64_t> finished{0}, cancelled{0}, failed{0}, refused{0};  // requests that have ended
  std::atomic<std::uint64_t> prompt_tokens{0}, reused_tokens{0}, new_tokens{0};

  void first_token(double seconds);  // of an answer, since it was asked for
  // The page at /metrics.
  std::string page(std::size_t waiting, std::size_t running, std::size_t rows);

 private:
  static constexpr std::array<const char*, 9> kBounds = {"0.01", "0.03", "0.1",  "0.3",  "1.0",
                                                         "3.0",  "10.0", "30.0", "100.0"};
  std::mutex mutex_;
  std::array<std::uint64_t, kBounds.size() + 1> counts_{};
  double seconds_ = 0;
};

}  // namespace service
