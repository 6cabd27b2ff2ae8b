#include "text/spoken_text.hpp"

#include <algorithm>

#include "base/error.hpp"
#include "base/utf8.hpp"

namespace l4::text {

namespace {

constexpr std::string_view kUnfinished = "\xEF\xBF\xBD";  // U+FFFD
constexpr std::size_t kMostStrings = 64, kMostStopCharacters = 1024;

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// How many bytes at the end of `text` are the beginning of `stop`, and not all of it.
std::size_t beginning(std::string_view text, std::string_view stop) {
  for (std::size_t count = std::min(text.size(), stop.size() - 1); count > 0; --count) {
    if (ends_with(text, stop.substr(0, count))) return count;
  }
  return 0;
}

}  // namespace

std::string TextStream::push(std::int32_t token) {
  if (!tokenizer_->has_text(token)) return "";
  ids_.push_back(token);
  const std::string text = decode();
  const std::size_t complete = std::max(sent_, text.size() - (ends_with(text, kUnfinished) ? kUnfinished.size() : 0));
  std::string piece = text.substr(sent_, complete - sent_);
  sent_ = complete;
  if (ids_.size() >= 2 * kContext) {
    const std::size_t held = text.size() - complete;
    ids_.erase(ids_.begin(), ids_.end() - kContext);
    sent_ = decode().size() - held;
  }
  return piece;
}

std::string TextStream::flush() {
  std::string rest = decode().substr(sent_);
  ids_.clear();
  sent_ = 0;
  return rest;
}

void check_stop_strings(const std::vector<std::string>& stop_strings) {
  bool too_long = stop_strings.size() > kMostStrings;
  for (const std::string& stop : stop_strings) {
    if (stop.empty()) throw bad_input("stop_strings has an empty one: give texts of at least one character");
    if (!utf8::is_valid(stop)) {
      throw bad_input("stop_strings: " + in_quotes(stop) + " is not UTF-8: give valid Unicode");
    }
    const auto characters = std::count_if(stop.begin(), stop.end(),
                                          [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; });
    too_long |= static_cast<std::size_t>(characters) > kMostStopCharacters;
  }
  if (too_long) {
    throw bad_input("stop_strings: at most " + std::to_string(kMostStrings) + " of at most " +
                    std::to_string(kMostStopCharacters) + " characters can be given");
  }
}

SpokenText::SpokenText(std::shared_ptr<const Tokenizer> tokenizer, std::vector<std::string> stop_strings)
    : stream_(std::move(tokenizer)), stops_(std::move(stop_strings)) {
  check_stop_strings(stops_);
}

std::string_view SpokenText::push(std::int32_t token) { return take(stream_.push(token)); }

std::string_view SpokenText::flush() {
  take(stream_.flush());
  if (stopped_ < 0) given_ += held_;
  held_.clear();
  return given_;
}

std::string_view SpokenText::take(const std::string& piece) {
  given_.clear();
  if (stopped_ >= 0 || piece.empty()) return given_;
  std::string text = held_ + piece;
  std::size_t end = std::string::npos;  // of the stop string that ends first
  for (std::size_t i = 0; i < stops_.size(); ++i) {
    const std::size_t at = text.find(stops_[i]);
    if (at == std::string::npos) continue;
    const std::size_t its_end = at + stops_[i].size();
    const bool better =
        its_end < end || (its_end == end && stops_[i].size() > stops_[static_cast<std::size_t>(stopped_)].size());
    if (!better) continue;
    end = its_end;
    stopped_ = static_cast<std::int32_t>(i);
  }
  std::size_t held = 0;
  if (stopped_ >= 0) {
    text.resize(end - stops_[static_cast<std::size_t>(stopped_)].size());
  } else {
    for (const std::string& stop : stops_) held = std::max(held, beginning(text, stop));
  }
  given_ = text.substr(0, text.size() - held);
  held_ = text.substr(text.size() - held);
  return given_;
}

}  // namespace l4::text
