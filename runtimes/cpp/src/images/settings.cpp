// transformers 4 has preprocessor_config.json; transformers 5 has the same settings in processor_config.json under
// `image_processor`, which prevails where both are there. Both have patch size and names of tokens in
// processor_config.json. Settings that would give other numbers than those of `Llama4ImageProcessor` as released are
// refused by name; what it does not read is not looked at.
#include "images/settings.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.hpp"
#include "base/shown.hpp"
#include "storage/files.hpp"

namespace l4::images {
namespace {

using json::Kind;
using json::Value;

constexpr std::int64_t kMostTiles = 256;           // of an image, beside the global one; Llama 4 has 16
constexpr std::int64_t kMostTilePixels = 1 << 25;  // of all tiles of an image; Llama 4 has 1.9 million
constexpr std::int64_t kMostTileSide = 2048;
constexpr std::size_t kFileBytes = 1 << 20;
constexpr const char* kCopy = "copy it from the checkpoint again";
constexpr const char* kProcessors[] = {"Llama4ImageProcessor", "Llama4ImageProcessorFast"};

// transformers writes these into prompts whatever the file says, so another name in it cannot be meant.
constexpr std::pair<const char*, const char*> kTokens[] = {
    {"fake_image_token", "<|image|>"},
    {"image_token", "<|image|>"},
    {"start_of_image_token", "<|image_start|>"},
    {"end_of_image_token", "<|image_end|>"},
    {"patch_token", "<|patch|>"},
    {"tile_x_separator_token", "<|tile_x_separator|>"},
    {"tile_y_separator_token", "<|tile_y_separator|>"},
};

// An object of JSON; an empty one where there is no file.
Value read(const std::string& path) {
  if (!storage::is_there(path)) return json::Object();
  std::string text = storage::read_small(path, kFileBytes, kCopy);
  if (text.compare(0, 3, "\xEF\xBB\xBF") == 0) text.erase(0, 3);
  Value value = json::parse(text, path);
  if (!value.is_object()) throw bad_input(path + ": not a JSON object; " + kCopy);
  return value;
}

Value member(const Value& object, const char* name, Value absent) {
  const Value* found = object.find(name);
  return found != nullptr ? *found : absent;
}

Error refuse(const char* name, const Value& value, const std::string& wanted) {
  return bad_input(std::string(name) + " is " + shown(value) + ": " + wanted);
}

std::int64_t whole_number(const Value& value, const char* name, std::int64_t least, std::int64_t most) {
  if (value.is_integer() && least <= value.integer() && value.integer() <= most) return value.integer();
  throw refuse(name, value, "give a whole number, " + std::to_string(least) + " to " + std::to_string(most));
}

double finite_number(const Value& value, const char* name, const std::string& wanted) {
  if (value.is_number() && std::isfinite(value.number())) return value.number();
  throw refuse(name, value, "give " + wanted);
}

double bounded(const Value& value, const char* name) {
  const std::string wanted = "a number of -1000 to 1000";
  const double number = finite_number(value, name, wanted);
  if (std::abs(number) > 1000) throw refuse(name, value, "give " + wanted);
  return number;
}

// A number for each channel, from three or from one.
std::array<double, 3> three(const Value& value, const char* name) {
  const json::Array numbers = value.is_array() ? value.array() : json::Array{value};
  if (numbers.size() != 1 && numbers.size() != 3) throw refuse(name, value, "give three numbers");
  const double first = bounded(numbers[0], name);
  if (numbers.size() == 1) return {first, first, first};
  return {first, bounded(numbers[1], name), bounded(numbers[2], name)};
}

// As Python compares them: 1 is 1.0.
bool equal(const Value& a, const Value& b) {
  return a.is_number() && b.is_number() ? a.number() == b.number() : json::dump(a) == json::dump(b);
}

// The side of a square that is given as a number, or as height and width.
Value side_of(const Value& size) {
  if (!size.is_object()) return size;
  const Value *height = size.find("height"), *width = size.find("width");
  const bool square = size.object().size() == 2 && height != nullptr && width != nullptr && equal(*height, *width);
  if (!square) throw refuse("size", size, "give equal height and width");
  return *height;
}

bool is_text(const Value& value, const char* text) { return value.is_string() && value.string() == text; }

// Refuse settings that lead to other numbers than those of this room.
void refuse_others(const Value& image, const Value& processor) {
  const Value kind = member(image, "image_processor_type", kProcessors[0]);
  if (!is_text(kind, kProcessors[0]) && !is_text(kind, kProcessors[1])) {
    throw refuse("image_processor_type", kind, std::string("only ") + kProcessors[0] + " is known");
  }
  for (const char* name : {"do_rescale", "do_normalize"}) {
    const Value value = member(image, name, true);
    if (value.is_boolean() && value.boolean()) continue;
    throw refuse(name, value, "the released models have true, others are not known");
  }
  const Value resample = member(image, "resample", nullptr);
  if (!resample.is_null() && !(resample.is_number() && resample.number() == 2)) {
    throw refuse("resample", resample, "only 2, bilinear, is known");
  }
  for (const auto& [name, token] : kTokens) {
    const Value value = member(processor, name, token);
    if (!is_text(value, token)) throw refuse(name, value, std::string("transformers writes ") + token + "; correct it");
  }
}

std::int64_t shuffle_of(const Value& ratio, std::int64_t tile, std::int64_t patch) {
  const double number = finite_number(ratio, "pixel_shuffle_ratio", "0.5, as Llama 4");
  const double whole = 1.0 / static_cast<double>(tile) <= number && number <= 1 ? std::nearbyint(1 / number) : 0;
  const auto shuffle = static_cast<std::int64_t>(whole);
  if (shuffle == 0 || std::abs(whole * number - 1) > 1e-6 || tile / patch % shuffle != 0) {
    const std::string patches = std::to_string(tile / patch) + " patches";
    throw refuse("pixel_shuffle_ratio", number, "1 / it must be a divisor of " + patches);
  }
  return shuffle;
}

}  // namespace

Settings settings_of(const Value& image, const Value& processor) {
  refuse_others(image, processor);
  Settings settings;
  settings.tile = whole_number(side_of(member(image, "size", settings.tile)), "size", 1, kMostTileSide);
  settings.patch = whole_number(member(processor, "patch_size", settings.patch), "patch_size", 1, settings.tile);
  settings.shuffle = shuffle_of(member(processor, "pixel_shuffle_ratio", 0.5), settings.tile, settings.patch);
  const Value most = member(image, "max_patches", settings.max_tiles);
  settings.max_tiles = whole_number(most, "max_patches", 1, settings.most_tiles());
  const Value fill = member(image, "resize_to_max_canvas", false);
  if (!fill.is_boolean()) throw refuse("resize_to_max_canvas", fill, "it must be true or false");
  settings.fill_canvas = fill.boolean();
  settings.mean = three(member(image, "image_mean", 0.5), "image_mean");
  settings.std = three(member(image, "image_std", 0.5), "image_std");
  if (*std::min_element(settings.std.begin(), settings.std.end()) < 1e-6) {
    const auto& [red, green, blue] = settings.std;
    throw refuse("image_std", json::Array{red, green, blue}, "give numbers above 0");
  }
  settings.rescale_factor = bounded(member(image, "rescale_factor", settings.rescale_factor), "rescale_factor");
  return settings;
}

std::int64_t Settings::most_tiles() const { return std::min(kMostTiles, kMostTilePixels / (tile * tile) - 1); }

Settings read_settings(const std::string& directory) {
  const std::string processor_path = storage::in_directory(directory, "processor_config.json");
  std::string path = storage::in_directory(directory, "preprocessor_config.json");
  const Value processor = read(processor_path);
  Value image = member(processor, "image_processor", nullptr);
  if (!image.is_null()) {
    path = processor_path;
  } else if (storage::is_there(path)) {
    image = read(path);
  } else {
    throw bad_input(path + ": there is none, and images need its settings; " + kCopy);
  }
  if (!image.is_object()) {
    throw bad_input(path + ": image_processor is " + shown(image) + ": it must be an object; " + kCopy);
  }
  try {
    return settings_of(image, processor);
  } catch (const Error& error) {
    throw Error(error.status(), path + ": " + error.what());
  }
}

}  // namespace l4::images
