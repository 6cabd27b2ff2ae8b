// How a checkpoint's authors would have its tokens sampled: generation_config.json.
#pragma once

#include <string>

#include "l4export.h"

namespace l4::sampling {

// The sampling that generation_config.json describes, as transformers' `generate` obeys it; greedy without a file. Only
// `do_sample` makes it random; a repetition penalty holds in either case.
//
// Raises Error. L4_BAD_INPUT: a file that is broken, a setting of another type or out of its range, or one that this
// library does not have and that would change what is said. L4_STORAGE: the file cannot be read.
l4_sampling recommended_sampling(const std::string& directory);

}  // namespace l4::sampling
