// What is about the library itself.
#include "c_api/guard.hpp"

namespace l4::c_api {
namespace {
thread_local std::string last_error = "no call of this thread has failed";
}

void set_last_error(std::string_view message) noexcept {
  try {
    last_error.assign(message);
  } catch (...) {
    last_error.clear();  // no memory even for this
  }
}
}  // namespace l4::c_api

extern "C" uint32_t l4_abi_version(void) { return L4_ABI_VERSION; }
extern "C" const char* l4_version(void) { return L4EXPORT_VERSION; }
extern "C" const char* l4_last_error(void) { return l4::c_api::last_error.c_str(); }
