// l4run: generate with an engine, without Python. It finds ONNX Runtime as the library does.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <future>
#include <optional>

#include "base/error.hpp"
#include "interruption.hpp"
#include "l4export.hpp"
#include "options.hpp"
#include "output.hpp"
#include "prompts.hpp"
#include "storage/files.hpp"

namespace l4run {
namespace {

namespace json = l4::json;

constexpr int kUnread = 141;  // as a program that SIGPIPE ended

std::optional<l4export::Tokenizer> open_tokenizer(const std::string& engine) {
  if (!l4::storage::regular_size(l4::storage::in_directory(engine, "tokenizer.json"))) return std::nullopt;
  return l4export::Tokenizer(engine);
}

l4export::Sampling chosen_sampling(const Options& options) {
  l4export::Sampling sampling;
  if (options.recommended_sampling) sampling = l4export::recommended_sampling(options.engine);
  if (options.temperature) sampling.temperature = *options.temperature;
  if (options.top_k) sampling.top_k = *options.top_k;
  if (options.top_p) sampling.top_p = *options.top_p;
  if (options.min_p) sampling.min_p = *options.min_p;
  if (options.repetition_penalty) sampling.repetition_penalty = *options.repetition_penalty;
  sampling.seed = options.seed;
  return sampling;
}

// The prompts of all rows, and their images.
struct Request {
  std::vector<l4export::Prompt> prompts;
  std::vector<std::optional<l4export::Images>> images;  // of each row
};

l4export::Ids placed(const Options& options, bool sees_images, const l4export::Tokenizer& tokenizer, Encoded& encoded,
                     std::optional<l4export::Images>& images) {
  if (!sees_images) {
    if (encoded.pictures.empty()) return std::move(encoded.ids);
    throw l4::bad_input(options.engine + ": sees no images; build it from a checkpoint with a vision tower");
  }
  if (encoded.pictures.empty()) return l4export::expand_without_images(tokenizer, encoded.ids);
  std::vector<l4export::Picture> pictures;
  for (const PictureFile& file : encoded.pictures) pictures.push_back(file.picture());
  images.emplace(options.engine, pictures, options.max_tiles);
  return images->expand(tokenizer, encoded.ids);
}

Request make_request(const Options& options, bool sees_images, const l4export::Tokenizer* tokenizer) {
  std::vector<Encoded> encoded = read_prompts(options, tokenizer);
  const auto samplings = l4export::sampling_of_rows(chosen_sampling(options), encoded.size());
  Request request;
  request.images.resize(encoded.size());
  for (std::size_t row = 0; row < encoded.size(); ++row) {
    std::optional<l4export::Images>& images = request.images[row];
    l4export::Ids ids = tokenizer == nullptr || options.token_ids
                            ? std::move(encoded[row].ids)
                            : placed(options, sees_images, *tokenizer, encoded[row], images);
    request.prompts.push_back({std::move(ids), samplings[row], images ? &*images : nullptr});
  }
  return request;
}

json::Array images_json(const Request& request) {
  json::Array all;
  for (const auto& images : request.images) {
    for (std::size_t index = 0; images && index < images->size(); ++index) {
      const l4_image_info info = images->info(index);
      json::Object image;
      image.add("tiles", info.tiles);
      image.add("tokens", info.tokens);
      all.emplace_back(std::move(image));
    }
  }
  return all;
}

// Tokens that a row needs room for, where that is less than the engine has.
std::int64_t capacity_for(const std::vector<l4export::Prompt>& prompts, std::int64_t new_tokens, std::int64_t limit) {
  std::int64_t longest = 0;
  for (const l4export::Prompt& prompt : prompts) {
    longest = std::max(longest, static_cast<std::int64_t>(prompt.ids.size()));
  }
  return longest <= limit && new_tokens < limit - longest ? longest + new_tokens : 0;
}

// Prints what comes: the text of a single prompt at once, answers of a batch as they end; a JSON document at the end.
class Printer {
 public:
  Printer(const Options& options, bool has_text, std::size_t rows)
      : options_(options), has_text_(has_text), answers_(rows) {}

  void take(const l4export::Token& token) {
    Answer& answer = answers_[static_cast<std::size_t>(token.row)];
    answer.add(token, options_.logprobs >= 0);
    if (options_.json) return;
    if (!options_.batch) {
      begun_ = true;
      print(has_text_ ? std::string(token.text) : std::to_string(token.id) + " ");
    } else if (!answer.finish_reason.empty()) {
      json::Object line;
      line.add("row", token.row);
      add(line, answer.to_json(has_text_, false));
      print(json::dump(line) + "\n");
    }
  }

  // The line has an end, whatever comes then.
  void end_line() {
    if (std::exchange(begun_, false)) print("\n");
  }

  void finish(const Record& record, const Request& request) {
    end_line();
    if (options_.json) {
      json::Object document;
      if (options_.batch) {
        json::Array rows;
        for (const Answer& answer : answers_) rows.emplace_back(answer.to_json(has_text_, options_.logprobs >= 0));
        document.add("rows", std::move(rows));
      } else {
        add(document, answers_[0].to_json(has_text_, options_.logprobs >= 0));
      }
      record.add_to(document);
      if (json::Array images = images_json(request); !images.empty()) document.add("images", std::move(images));
      print(json::dump(document, true) + "\n");
    } else if (options_.stats) {
      std::fprintf(stderr, "%s\n", record.sentence(options_.batch ? "all rows" : answers_[0].finish_reason).c_str());
    }
  }

 private:
  static void add(json::Object& document, const json::Object& members) {
    for (const auto& [name, value] : members.members()) document.add(name, value);
  }

  const Options& options_;
  bool has_text_, begun_ = false;
  std::vector<Answer> answers_;
};

void run(const Options& options, Interruption& interruption) {
  const auto began = std::chrono::steady_clock::now();
  // a large tokenizer takes as long as a small engine
  auto text = std::async(std::launch::async, [&] { return open_tokenizer(options.engine); });
  const l4export::Engine engine(options.engine, options.opening);
  const std::optional<l4export::Tokenizer> tokenizer = text.get();
  const l4_engine_info info = engine.info();
  const Request request = make_request(options, info.sees_images != 0, tokenizer ? &*tokenizer : nullptr);
  const double load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();

  const std::int64_t capacity = capacity_for(request.prompts, options.max_new_tokens, info.max_context);
  l4export::Session session(engine, {static_cast<std::int32_t>(request.prompts.size()), capacity, {}});
  l4export::GenerateOptions asked;
  asked.max_new_tokens = options.max_new_tokens;
  asked.tokenizer = tokenizer ? &*tokenizer : nullptr;
  asked.stop_strings = options.stops;
  asked.logprobs = options.logprobs;

  const Interruption::Watched watched(interruption, session);
  Record record(load_seconds);
  for (const l4export::Prompt& prompt : request.prompts) record.prompt(prompt.ids.size());
  Printer printer(options, tokenizer.has_value(), request.prompts.size());
  try {
    session.generate(request.prompts, asked, [&](const l4export::Token& token) {
      record.token();
      printer.take(token);
      return true;
    });
  } catch (const l4export::Error&) {
    printer.end_line();  // the error has a line of its own
    throw;
  }
  printer.finish(record, request);
}

int complain(int status, const char* message) {
  std::fprintf(stderr, "l4run: %s\n", message);
  return status;
}

int main(const std::vector<std::string>& arguments) {
  signal(SIGPIPE, SIG_IGN);  // nobody reads the output: that is a failure to write
  Interruption interruption;
  try {
    if (const std::optional<Options> options = parse(arguments)) run(*options, interruption);
    return 0;
  } catch (const OutputClosed&) {
    return complain(kUnread, "nobody reads the output any more");
  } catch (const l4export::Error& error) {
    return complain(error.status(), error.status() == L4_CANCELLED ? "interrupted" : error.what());
  } catch (const l4::Error& error) {
    return complain(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return complain(L4_STORAGE, "out of memory; close other programs or use a smaller model, batch or context");
  } catch (const std::exception& error) {
    return complain(L4_INTERNAL, error.what());
  }
}

}  // namespace
}  // namespace l4run

int main(int count, char** arguments) {
  const int status = l4run::main({arguments + std::min(count, 1), arguments + count});
  _exit(status);  // everything is written, and a thread waits for signals
}
