// What has passed its check on this machine, so that it is checked once: a file each in the user's cache directory.
#pragma once

#include <map>
#include <string>

namespace l4 {

using VerdictKey = std::map<std::string, std::string>;  // everything that decides the numbers

// Whether what the key names has passed. What cannot be read counts for nothing.
bool has_passed(const VerdictKey& key);

// Keep that it has, if anything can be kept; whole or not at all.
void keep_pass(const VerdictKey& key);

}  // namespace l4
