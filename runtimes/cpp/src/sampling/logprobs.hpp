// Log probabilities of what was chosen, and of what might have been.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "l4export.h"

namespace l4::sampling {

// Of logits [vocab], log_softmax(logits) in float64, before penalty, processors, temperature and filters, as OpenAI's
// interface and vLLM give them.
class Logprobs {
 public:
  // The log probability of `token`. `top` becomes the `count` likeliest tokens, likeliest first, of equal ones the
  // lowest first. Raises Error (L4_BAD_INPUT): logits without a distribution, a token that there is none, more than
  // there are.
  double of(const float* logits, std::size_t vocab, std::int32_t token, std::size_t count,
            std::vector<l4_logprob>& top);

 private:
  std::vector<double> scores_, mass_;  // keep their memory from token to token
};

}  // namespace l4::sampling
