// Numbers written with '.', whatever locale the process has set.
#pragma once

#include <string>
#include <string_view>

namespace l4 {

// The double that a number of JSON's form is closest to, as Python's float() reads it: beyond the range of a double it
// is infinity or zero.
double decimal(std::string_view text);

}  // namespace l4
