// The calls that take pictures.
#include <utility>

#include "arguments.hpp"
#include "executor.hpp"

namespace conformance {

using l4::json::Array;
using l4::json::Object;

Object Executor::images_create(const Value& call) {
  std::vector<l4_picture> pictures;
  for (const Value& name : argument(call, "pictures").array()) {
    const l4::storage::TensorEntry& entry = *shared_.pictures.find(name.string());
    const auto* rgb = reinterpret_cast<const std::uint8_t*>(shared_.pictures.bytes(entry).data());
    pictures.push_back({sizeof(l4_picture), rgb, entry.shape[1], entry.shape[0]});
  }
  const std::string engine = shared_.directory + "/engine";
  const auto most = static_cast<std::int32_t>(number_or(call, "max_tiles", 0));
  auto images = made<l4_images>(l4_images_close, [&](l4_images** out) {
    return l4_images_create(engine.c_str(), pictures.data(), pictures.size(), most, out);
  });
  Array told_images;
  for (std::size_t i = 0; i < l4_images_count(images.get()); ++i) {
    l4_image_info info = {};
    info.size = sizeof info;
    check(l4_images_get_info(images.get(), i, &info));
    told_images.push_back(Array{info.rows, info.columns, info.tiles, info.tokens, info.digest});
  }
  const float* values = nullptr;
  std::size_t tiles = 0, side = 0;
  check(l4_images_tiles(images.get(), &values, &tiles, &side));
  const auto edge = static_cast<std::int64_t>(side);
  tensors_.push_back(tensor(std::to_string(number_), {static_cast<std::int64_t>(tiles), 3, edge, edge}, values,
                            tiles * 3 * side * side));
  images_.insert_or_assign(argument(call, "as").string(), std::move(images));
  Object told;
  told.add("images", std::move(told_images));
  return told;
}

Object Executor::images_expand(const Value& call) {
  const Value& name = argument(call, "images");
  const l4_images* images = name.is_null() ? nullptr : images_.at(name.string()).get();
  const auto ids = integers<std::int32_t>(argument(call, "ids"));
  auto found = all_of<std::int32_t>([&](std::int32_t* to, std::size_t room, std::size_t* count) {
    return l4_images_expand(images, shared_.tokenizer.get(), ids.data(), ids.size(), to, room, count);
  });
  Object told = ids_of(found);
  prompts_[argument(call, "as").string()] = std::move(found);
  return told;
}

}  // namespace conformance
