// Which instruction set's kernels run.
#pragma once

#include <string>

#include "kernels.hpp"

namespace l4::cpu {

// The tables that this processor can run, the fastest first; the last one is "scalar".
const Kernels* const* runnable_kernels();  // ends with nullptr

// The kernels in use: the fastest that run here, or those that L4_CPU_ISA names.
// nullptr, with a message in `error`, if it names none that run here.
const Kernels* chosen_kernels(std::string& error);

}  // namespace l4::cpu
