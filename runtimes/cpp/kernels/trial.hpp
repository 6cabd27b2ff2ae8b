// A trial of kernels before they are used.
#pragma once

#include "kernels.hpp"

namespace l4::cpu {

// Whether both give the same bits for one small product of int8 activations, of many rows. A machine may say that it
// has what it, its hypervisor or its kernel handles wrongly; such a machine is used without.
bool same_bits(const Kernels& a, const Kernels& b);

}  // namespace l4::cpu
