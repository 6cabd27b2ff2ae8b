// Whether this process may use AMX.
#pragma once

namespace l4::cpu {

// Asks the kernel for permission, for the whole process.
bool amx_permitted();

}  // namespace l4::cpu
