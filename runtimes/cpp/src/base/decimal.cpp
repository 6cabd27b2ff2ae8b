#include "base/decimal.hpp"

#include <charconv>
#include <clocale>
#include <cstdlib>
#include <new>

namespace l4 {

double decimal(std::string_view text) {
  double value = 0;
  if (std::from_chars(text.data(), text.data() + text.size(), value).ec != std::errc::result_out_of_range) return value;
  // from_chars does not tell too large from too small, and strtod would obey the locale of the process
  static const locale_t plain = newlocale(LC_ALL_MASK, "C", nullptr);
  if (plain == nullptr) throw std::bad_alloc();
  return strtod_l(std::string(text).c_str(), nullptr, plain);
}

}  // namespace l4
