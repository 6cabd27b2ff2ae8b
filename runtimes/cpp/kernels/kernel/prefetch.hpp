// How far ahead weights are asked for.
#pragma once

namespace l4::cpu {

// Half as many bytes leave a tenth of a core's read rate unused, a quarter of them a fifth.
static constexpr int kPrefetchBytes = 8192;

}  // namespace l4::cpu
