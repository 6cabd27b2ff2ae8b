// Which tokens may be drawn, and with what weight: the definitions of transformers' processors and warpers.
//
// Results go into vectors of the caller, which keep their memory from token to token. Vocabularies have 200,000 tokens,
// so nothing is sorted but what is looked at.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace l4::sampling {

// An entry of a list of weights, and its weight.
struct Entry {
  double mass;
  std::uint32_t index;
};

// The largest of scores, which are at least one; NaN where one of them is.
float peak_of(const float* scores, std::size_t count);

// `changed` becomes scores [vocab] with those of the tokens `ids` divided by `penalty`, or multiplied where they are
// negative. The ids are those of tokens.
void penalize(const float* scores, std::size_t vocab, const std::int32_t* ids, std::size_t count, double penalty,
              std::vector<float>& changed);

// `tokens` become those with the `top_k` largest scores and those that equal the last of them, by index; `kept` their
// scores. 0 < top_k < vocab.
void keep_largest(const float* scores, std::size_t vocab, std::size_t top_k, std::vector<std::uint32_t>& tokens,
                  std::vector<float>& kept);

// `mass` becomes softmax(scores / temperature) in float64; `peak` is the largest score.
void weigh(const float* scores, std::size_t count, float peak, double temperature, std::vector<double>& mass);

// `entries` become the smallest set of likeliest entries of `mass` that reaches `top_p`, likeliest first, equals by
// index. 0 < top_p < 1.
void keep_nucleus(const std::vector<double>& mass, double top_p, std::vector<Entry>& entries);

// Remove the entries below `min_p` of the largest; the others keep their order. In a list of weights they become 0.
void keep_at_least(double min_p, std::vector<Entry>& entries);
void keep_at_least(double min_p, std::vector<double>& mass);

// The first whose cumulative weight exceeds a share of all, below 1, in the order in which they come.
std::uint32_t drawn(const std::vector<Entry>& entries, double share);
std::uint32_t drawn(const std::vector<double>& mass, double share);

}  // namespace l4::sampling
