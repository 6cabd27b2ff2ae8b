// The calls in texts, as examples/cpp_service reads them: a JSON list of texts comes in, one of their calls or null
// goes out.
#include <iostream>
#include <iterator>

#include "tool_calls.hpp"

int main() {
  using service::Json;
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  const Json asked = Json::parse(input);
  const auto names = asked["names"].get<std::vector<std::string>>();
  Json told = Json::array();
  for (const Json& text : asked["texts"]) {
    const auto calls = service::parse_calls(text.get<std::string>(), names);
    Json found = calls ? Json::array() : Json();
    for (std::size_t i = 0; calls && i < calls->size(); ++i)
      found.push_back(Json::array({(*calls)[i].name, (*calls)[i].arguments}));
    told.push_back({{"calls", found}, {"may_be", service::may_be_calls(text.get<std::string>())}});
  }
  std::cout << told.dump(-1, ' ', true);
}
