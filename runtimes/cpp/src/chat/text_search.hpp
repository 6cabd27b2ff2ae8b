// The methods of Python's str that look for other texts in it, and split it.
#pragma once

#include <string>

#include "chat/interpreter.hpp"

namespace l4::chat {

// count, find, index, rfind, rindex, startswith, endswith, split, rsplit, partition, rpartition.
Value call_of_search(Run& run, const Value& self, const std::string& name, const Arguments& arguments);

}  // namespace l4::chat
