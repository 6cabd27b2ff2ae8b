#include "metrics.hpp"

#include <cstdlib>
#include <iomanip>
#include <sstream>

namespace service {

void Metrics::first_token(double seconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::size_t at = 0;
  while (at < kBounds.size() && seconds > std::strtod(kBounds[at], nullptr)) ++at;
  ++counts_[at];
  seconds_ += seconds;
}

std::string Metrics::page(std::size_t waiting, std::size_t running, std::size_t rows) {
  std::ostringstream text;
  const auto outcome = [&](const char* name, std::uint64_t count) {
    text << "l4export_requests_total{outcome=\"" << name << "\"} " << count << '\n';
  };
  const auto value = [&](const char* name, const char* kind, std::uint64_t count) {
    text << "# TYPE l4export_" << name << ' ' << kind << "\nl4export_" << name << ' ' << count << '\n';
  };
  text << "# TYPE l4export_requests_total counter\n";
  outcome("finished", finished), outcome("cancelled", cancelled), outcome("failed", failed),
      outcome("refused", refused);
  value("prompt_tokens_total", "counter", prompt_tokens);
  value("reused_tokens_total", "counter", reused_tokens);
  value("new_tokens_total", "counter", new_tokens);
  value("waiting_requests", "gauge", waiting);
  value("running_requests", "gauge", running);
  value("rows", "gauge", rows);
  const std::lock_guard<std::mutex> lock(mutex_);
  const char* name = "l4export_time_to_first_token_seconds";
  std::uint64_t below = 0;
  text << "# TYPE " << name << " histogram\n";
  for (std::size_t at = 0; at < counts_.size(); ++at) {
    below += counts_[at];
    text << name << "_bucket{le=\"" << (at < kBounds.size() ? kBounds[at] : "+Inf") << "\"} " << below << '\n';
  }
  text << std::fixed << std::setprecision(6) << name << "_sum " << seconds_ << '\n' << name << "_count " << below << '\n';
  return text.str();
}

}  // namespace service
