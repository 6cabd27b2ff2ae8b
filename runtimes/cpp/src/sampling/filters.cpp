#include "sampling/filters.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "sampling/summation.hpp"

namespace l4::sampling {

float peak_of(const float* scores, std::size_t count) {
  constexpr std::size_t kLanes = 16;  // independent of each other, so that the processor need not wait for each
  float lanes[kLanes], sums[kLanes] = {};
  std::fill_n(lanes, kLanes, scores[0]);
  const auto take = [&](std::size_t lane, float score) {
    lanes[lane] = score > lanes[lane] ? score : lanes[lane];
    sums[lane] += score - score;  // NaN of NaN, and of infinities, which are looked at below
  };
  std::size_t at = 0;
  for (; at + kLanes <= count; at += kLanes) {
    for (std::size_t lane = 0; lane < kLanes; ++lane) take(lane, scores[at + lane]);
  }
  for (; at < count; ++at) take(0, scores[at]);
  float sum = 0;
  for (const float each : sums) sum += each;
  if (std::isnan(sum)) {
    const float* nan = std::find_if(scores, scores + count, [](float score) { return std::isnan(score); });
    if (nan != scores + count) return *nan;
  }
  return *std::max_element(lanes, lanes + kLanes);
}

void penalize(const float* scores, std::size_t vocab, const std::int32_t* ids, std::size_t count, double penalty,
              std::vector<float>& changed) {
  changed.assign(scores, scores + vocab);
  const auto factor = static_cast<float>(penalty);
  for (std::size_t i = 0; i < count; ++i) {
    const float score = scores[ids[i]];
    changed[ids[i]] = score < 0 ? score * factor : score / factor;
  }
}

void keep_largest(const float* scores, std::size_t vocab, std::size_t top_k, std::vector<std::uint32_t>& tokens,
                  std::vector<float>& kept) {
  // What is not above the least of k scores that were seen is none of the k largest, unless it equals that.
  float least = -std::numeric_limits<float>::infinity();
  const auto shrink = [&] {
    std::nth_element(kept.begin(), kept.begin() + top_k - 1, kept.end(), std::greater<float>());
    kept.resize(top_k);
    least = kept.back();
  };
  kept.clear();
  for (std::size_t i = 0; i < vocab; ++i) {
    if (!(scores[i] > least)) continue;
    kept.push_back(scores[i]);
    if (kept.size() >= 2 * top_k + 64) shrink();
  }
  if (kept.size() >= top_k) shrink();
  tokens.clear();
  kept.clear();
  for (std::size_t i = 0; i < vocab; ++i) {
    if (scores[i] < least) continue;
    tokens.push_back(static_cast<std::uint32_t>(i));
    kept.push_back(scores[i]);
  }
}

void weigh(const float* scores, std::size_t count, float peak, double temperature, std::vector<double>& mass) {
  mass.resize(count);
  // a tiny temperature sends all but the peak to -inf, which is its limit
  for (std::size_t i = 0; i < count; ++i) {
    mass[i] = std::exp((static_cast<double>(scores[i]) - static_cast<double>(peak)) / temperature);
  }
  const double total = pairwise_sum(mass.data(), count);
  for (double& each : mass) each /= total;
}

void keep_nucleus(const std::vector<double>& mass, double top_p, std::vector<Entry>& entries) {
  // Entries of at most (1 - top_p) / n each weigh less than 1 - top_p together, so they lie outside the nucleus. Half
  // of that leaves the likeliest entry in even where all are alike and 1 - top_p rounds to 1.
  const double least = (1 - top_p) / static_cast<double>(mass.size()) / 2;
  entries.clear();
  for (std::size_t i = 0; i < mass.size(); ++i) {
    if (mass[i] > least) entries.push_back({mass[i], static_cast<std::uint32_t>(i)});
  }
  const auto likelier = [](const Entry& one, const Entry& other) {
    return one.mass > other.mass || (one.mass == other.mass && one.index < other.index);
  };
  double sum = 0;
  // sorted a part at a time, as far as the sum needs it
  for (std::size_t done = 0, part = 256; done < entries.size(); part *= 4) {
    const auto begin = entries.begin() + done, end = begin + std::min(part, entries.size() - done);
    if (end != entries.end()) std::nth_element(begin, end, entries.end(), likelier);
    std::sort(begin, end, likelier);
    for (auto entry = begin; entry != end; ++entry, ++done) {
      sum += entry->mass;
      if (sum >= top_p) return entries.resize(done + 1);
    }
  }
}

void keep_at_least(double min_p, std::vector<Entry>& entries) {
  const double least = min_p * entries.front().mass;
  const auto below = [&](const Entry& entry) { return entry.mass < least; };
  entries.erase(std::remove_if(entries.begin(), entries.end(), below), entries.end());
}

void keep_at_least(double min_p, std::vector<double>& mass) {
  const double least = min_p * *std::max_element(mass.begin(), mass.end());
  std::replace_if(mass.begin(), mass.end(), [&](double each) { return each < least; }, 0.0);
}

namespace {

template <typename MassOf>
std::size_t first_beyond(std::size_t count, double share, MassOf mass_of) {
  double total = 0, sum = 0;
  for (std::size_t i = 0; i < count; ++i) total += mass_of(i);
  const double number = share * total;
  for (std::size_t i = 0; i < count; ++i) {
    sum += mass_of(i);
    if (sum > number) return i;
  }
  while (count > 1 && mass_of(count - 1) == 0) --count;  // the number was rounded to the total: the last that can be
  return count - 1;
}

}  // namespace

std::uint32_t drawn(const std::vector<Entry>& entries, double share) {
  return entries[first_beyond(entries.size(), share, [&](std::size_t i) { return entries[i].mass; })].index;
}

std::uint32_t drawn(const std::vector<double>& mass, double share) {
  return static_cast<std::uint32_t>(first_beyond(mass.size(), share, [&](std::size_t i) { return mass[i]; }));
}

}  // namespace l4::sampling
