#include "json.hpp"

namespace service {

Json read_json(std::string_view text) {
  constexpr int most_depth = 64;        // writing a value takes stack for each level
  constexpr int most_members = 20'000;  // finding one takes time in their number
  int members = 0;
  const auto within = [&](int depth, Json::parse_event_t event, Json&) {
    members += event == Json::parse_event_t::key;
    if (depth > most_depth || members > most_members)
      throw Json::other_error::create(599, "JSON of too many values", nullptr);
    return true;
  };
  return Json::parse(text, within);
}

}  // namespace service
