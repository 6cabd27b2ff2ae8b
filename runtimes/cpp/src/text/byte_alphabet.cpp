#include "text/byte_alphabet.hpp"

#include <array>
#include <cstdint>

#include "base/utf8.hpp"

namespace l4::text {

namespace {

constexpr bool is_printed(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::array<std::uint16_t, 256> make_letters() {
  std::array<std::uint16_t, 256> letters{};
  std::uint16_t next = 256;
  for (int byte = 0; byte < 256; ++byte) letters[byte] = is_printed(byte) ? static_cast<std::uint16_t>(byte) : next++;
  return letters;
}
constexpr auto kLetters = make_letters();  // by byte

constexpr int kLast = 256 + 256 - 188;  // behind the last letter: 188 bytes can be printed
constexpr std::array<std::int16_t, kLast> make_bytes() {
  std::array<std::int16_t, kLast> bytes{};
  for (auto& byte : bytes) byte = -1;
  for (int byte = 0; byte < 256; ++byte) bytes[kLetters[byte]] = static_cast<std::int16_t>(byte);
  return bytes;
}
constexpr auto kBytes = make_bytes();  // by letter

}  // namespace

bool spelled_bytes(std::string_view spelled, std::string& bytes) {
  for (std::size_t at = 0; at < spelled.size();) {
    const char32_t letter = utf8::next(spelled, at);
    if (letter >= kLast || kBytes[letter] < 0) return false;
    bytes.push_back(static_cast<char>(kBytes[letter]));
  }
  return true;
}

std::string spelling_of(std::string_view bytes) {
  std::string spelled;
  for (const char byte : bytes) utf8::append(spelled, kLetters[static_cast<unsigned char>(byte)]);
  return spelled;
}

}  // namespace l4::text
