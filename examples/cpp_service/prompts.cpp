#include "prompts.hpp"

#include <algorithm>

#include "pictures.hpp"
#include "refusal.hpp"

namespace service {
namespace {

// Ids with the tokens of their one image, or of none, in place of the placeholder.
Ids expanded(const Model& model, const l4_images* images, const Ids& ids) {
  return given<Ids>(
      [&](std::int32_t* to, std::size_t room, std::size_t* count) {
        return l4_images_expand(images, model.tokenizer.get(), ids.data(), ids.size(), to, room, count);
      },
      ids.size());
}

Images images_of(const Model& model, const Pixels& pixels) {
  const l4_picture picture{sizeof picture, pixels.rgb.data(), pixels.width, pixels.height};
  l4_images* handle = nullptr;
  check(l4_images_create(model.directory.c_str(), &picture, 1, 0, &handle));
  return Images(handle, l4_images_close);
}

std::string digest_of(const Images& images) {
  l4_image_info info{};
  info.size = sizeof info;
  check(l4_images_get_info(images.get(), 0, &info));
  return info.digest;
}

// Each image is prepared alone, so that a prompt can be fed in pieces.
Prompt with_images(const Model& model, const Ids& ids, const std::vector<std::string>& images) {
  std::int32_t placeholder = -1;
  check(l4_tokenizer_token_id(model.tokenizer.get(), "<|image|>", &placeholder));
  const auto count = static_cast<std::size_t>(std::count(ids.begin(), ids.end(), placeholder));
  if (count != images.size()) {
    throw Refusal("messages: the model's template shows " + std::to_string(count) + " of " +
                      std::to_string(images.size()) + " images; give those of users alone",
                  "messages");
  }
  Prompt prompt;
  auto from = ids.begin();
  for (std::size_t i = 0; i < images.size(); ++i) {
    const auto at = std::find(from, ids.end(), placeholder);
    const Images made = images_of(model, decoded(images[i], "image " + std::to_string(i + 1)));
    const Ids part = expanded(model, made.get(), Ids(from, at + 1));
    const std::size_t start = prompt.ids.size() + static_cast<std::size_t>(at - from);
    prompt.ids.insert(prompt.ids.end(), part.begin(), part.end());
    prompt.images.push_back({start, prompt.ids.size(), made, digest_of(made)});
    from = at + 1;
  }
  const Ids rest = expanded(model, nullptr, Ids(from, ids.end()));
  prompt.ids.insert(prompt.ids.end(), rest.begin(), rest.end());
  return prompt;
}

Prompt chat_prompt(const Model& model, const Asked& asked) {
  if (!asked.images.empty() && model.info.sees_images == 0) {
    throw Refusal("messages: have images, and this model sees none", "messages");
  }
  Json chat = {{"messages", asked.messages}, {"add_generation_prompt", true}};
  if (!asked.tools.is_null()) chat["tools"] = asked.tools;
  const Ids ids = model.encode_chat(chat.dump());
  return model.info.sees_images != 0 ? with_images(model, ids, asked.images) : Prompt{ids, {}};
}

Prompt text_prompt(const Model& model, const RawPrompt& raw) {
  const Ids ids = raw.text ? model.encode(*raw.text) : raw.ids;
  return {model.info.sees_images != 0 ? expanded(model, nullptr, ids) : ids, {}};
}

}  // namespace

std::vector<Prompt> prompts_of(const Model& model, const Asked& asked) {
  const std::string name = asked.is_chat ? "messages" : "prompt";
  std::vector<Prompt> prompts;
  try {
    if (asked.is_chat) prompts.push_back(chat_prompt(model, asked));
    for (const RawPrompt& raw : asked.prompts) prompts.push_back(text_prompt(model, raw));
  } catch (const Failure& failure) {
    if (failure.status == L4_BAD_INPUT) throw Refusal(failure.what(), name);
    throw;
  }
  for (const Prompt& prompt : prompts) {
    const bool is_known = std::all_of(prompt.ids.begin(), prompt.ids.end(),
                                      [&](std::int32_t id) { return id >= 0 && id < model.info.vocab_size; });
    if (prompt.ids.empty() || !is_known) {
      throw Refusal(name + ": give tokens of 0 to " + std::to_string(model.info.vocab_size - 1) + ", one at least",
                    name);
    }
  }
  return prompts;
}

}  // namespace service
