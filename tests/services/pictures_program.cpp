// Pictures as examples/cpp_service decodes them: a JSON list of files in base64 comes in; of each, its pixels in
// hexadecimal digits with their height and width, or why it is refused, goes out.
#include <iostream>
#include <iterator>

#include "json.hpp"
#include "pictures.hpp"
#include "refusal.hpp"

int main() {
  using service::Json;
  const std::string input{std::istreambuf_iterator<char>(std::cin), {}};
  Json told = Json::array();
  for (const Json& file : Json::parse(input)) {
    try {
      const service::Pixels pixels = service::decoded(file.get<std::string>(), "image 1");
      std::string digits;
      for (const unsigned byte : pixels.rgb) digits += "0123456789abcdef"[byte >> 4], digits += "0123456789abcdef"[byte & 15];
      told.push_back({{"height", pixels.height}, {"width", pixels.width}, {"rgb", digits}});
    } catch (const service::Refusal& refusal) {
      told.push_back({{"refused", refusal.message}, {"status", refusal.status}});
    }
  }
  std::cout << told.dump(-1, ' ', true);
}
