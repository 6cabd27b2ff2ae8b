// The part of the C ABI that chooses tokens.
#include <algorithm>

#include "c_api/guard.hpp"
#include "sampling/logprobs.hpp"
#include "sampling/random_stream.hpp"
#include "sampling/recommended.hpp"
#include "sampling/sampler.hpp"

using namespace l4;
using namespace l4::c_api;

extern "C" l4_status l4_recommended_sampling(const char* directory, l4_sampling* out) {
  return guarded([&] { fill(out, sampling::recommended_sampling(&given(directory, "directory"))); });
}

extern "C" l4_status l4_sample(const float* logits, size_t vocab, const l4_sampling* sampling, uint64_t draw,
                               const int32_t* ids, size_t count, int32_t* token) {
  return guarded([&] {
    given(logits, "logits");
    given(token, "token");
    if (count != 0) given(ids, "ids");
    static thread_local sampling::Workspace workspace;  // a few megabytes whose pages would be new with every token
    const sampling::Sampler sampler(options_of(sampling, sampling::kGreedy));
    *token = sampler.choose(logits, vocab, draw, ids, count, workspace);
  });
}

extern "C" l4_status l4_logprobs(const float* logits, size_t vocab, int32_t token, size_t top, double* logprob,
                                 l4_logprob* likeliest) {
  return guarded([&] {
    given(logits, "logits");
    given(logprob, "logprob");
    if (top != 0) given(likeliest, "likeliest");
    static thread_local sampling::Logprobs logprobs;
    static thread_local std::vector<l4_logprob> found;
    *logprob = logprobs.of(logits, vocab, token, top, found);
    std::copy(found.begin(), found.end(), likeliest);
  });
}

extern "C" l4_status l4_fresh_seed(uint64_t* out) {
  return guarded([&] { given(out, "out") = sampling::fresh_seed(); });
}
