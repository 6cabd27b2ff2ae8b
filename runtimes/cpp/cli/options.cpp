#include "options.hpp"

#include <charconv>
#include <functional>
#include <limits>
#include <locale>
#include <sstream>

#include "base/error.hpp"
#include "base/utf8.hpp"
#include "output.hpp"

namespace l4run {

namespace {

constexpr const char* kHelp =
    R"(Usage: l4run ENGINE (--prompt TEXT | --chat FILE | --token-ids 1,2,3 | --batch FILE) [OPTIONS]

  Generate with ENGINE, an engine directory of `l4export build`.

The prompt:
  --prompt TEXT             As text. It is put into the chat template if the engine has one.
  --raw                     Continue the prompt as it is, without the chat template.
  --special-tokens-as-text  Special tokens that the prompt spells out stay text.
  --token-ids 1,2,3         As token ids.
  --chat FILE               A JSON file: a list of messages, or an object with "messages" and what else the chat
                            template sees. Paths of images in it are relative to it.
  --batch FILE              A prompt a line, as JSON: {"prompt": TEXT}, {"token_ids": [...]} or {"messages": [...]}.
                            They are continued together, each with a random stream of its own; an answer is a line.
  --image FILE              An image, for each <|image|> of the prompt in turn, or before it if it has none; may be
                            repeated. Binary PPM (P6, 8 bits a channel) is all that is read: nothing is decoded here.
  --max-tiles N             The most tiles of an image.  [default: the checkpoint's]

The answer:
  --max-new-tokens N        Largest number of tokens to generate.  [default: 128]
  --stop TEXT               End before this text; may be repeated.
  --temperature X           Randomness; 0 always takes the likeliest token.  [default: 0.0]
  --top-k N                 Sample only from this many of the likeliest tokens.  [default: 0, all]
  --top-p X                 Sample only from the likeliest tokens whose probabilities add up to this.  [default: 1.0]
  --min-p X                 Sample only from tokens that are at least so many times as likely as the likeliest.
                            [default: 0.0]
  --repetition-penalty X    Divide the logits of tokens that have occurred by this.  [default: 1.0]
  --seed N                  Seed of the sampling, which makes it repeatable.
  --recommended-sampling    Sample as the checkpoint's generation_config.json says; the options above prevail.
  --logprobs N              With --json: the log probability of each token, and of the N likeliest.

The engine:
  --threads N               Threads of a call.  [default: one a core]
  --provider cpu|cuda       What executes it.  [default: what it was built for]
  --onnxruntime FILE        ONNX Runtime's library.  [default: L4EXPORT_ONNXRUNTIME, else the loader's search]
  --verify                  Check every byte of the engine before running it.

  --stats                   Print speed, time to first token and memory on standard error.
  --json                    Print one JSON document.
  --version                 Print the version.
  -h, --help                Print this.

Exit codes: 0 done; 1 verification failed; 2 bad usage or bad input; 3 the environment lacks a library, provider or
driver; 4 reading or writing failed; 130 interrupted; 141 nobody reads the output.
)";

[[noreturn]] void refuse(const std::string& message) { throw l4export::Error(L4_BAD_INPUT, message); }

template <typename Number>
Number whole_number(const std::string& name, const std::string& text, Number least, Number most) {
  Number number{};
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || stopped != end || number < least || number > most) {
    const bool open = most == std::numeric_limits<Number>::max();
    const std::string wanted = open ? " or more" : " to " + std::to_string(most);
    refuse(name + " " + l4::in_quotes(text) + ": give a whole number, " + std::to_string(least) + wanted);
  }
  return number;
}

double number(const std::string& name, const std::string& text) {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double value = 0;
  if (!(stream >> value) || !stream.eof()) refuse(name + " " + l4::in_quotes(text) + ": give a number");
  return value;
}

// The arguments, taken one by one; `--name=value` is `--name value`.
class Arguments {
 public:
  explicit Arguments(const std::vector<std::string>& all) : all_(all) {}

  bool next() {
    if (at_ == all_.size()) return false;
    name_ = all_[at_++];
    const std::size_t equals = name_.find('=');
    value_.reset();
    if (name_.rfind("--", 0) == 0 && equals != std::string::npos) {
      value_ = name_.substr(equals + 1);
      name_.resize(equals);
    }
    return true;
  }

  const std::string& name() const { return name_; }

  std::string value() {
    if (!value_ && at_ == all_.size()) refuse(name_ + ": needs a value. See `l4run --help`.");
    std::string value = value_ ? *value_ : all_[at_++];
    value_.reset();
    if (!l4::utf8::is_valid(value)) refuse(name_ + " " + l4::in_quotes(value) + ": is no valid UTF-8");
    return value;
  }

  bool has_value() const { return value_.has_value(); }

 private:
  const std::vector<std::string>& all_;
  std::size_t at_ = 0;
  std::string name_;
  std::optional<std::string> value_;
};

void check(const Options& options) {
  const int prompts = options.prompt.has_value() + options.token_ids.has_value() + options.chat.has_value() +
                      options.batch.has_value();
  if (options.engine.empty()) refuse("ENGINE is missing. See `l4run --help`.");
  if (prompts != 1) refuse("give one of --prompt TEXT, --chat FILE, --token-ids 1,2,3 and --batch FILE");
  if (!options.images.empty() && !options.prompt) {
    refuse("--image: goes with --prompt; messages name their images themselves");
  }
  if (!options.images.empty() && options.raw && options.special_tokens_as_text) {
    refuse("--image: with --raw and --special-tokens-as-text nothing says where; leave one out");
  }
  if (options.raw && options.chat) refuse("--raw: messages need the chat template; give --prompt");
  if (options.logprobs >= 0 && !options.json) refuse("--logprobs: are part of the JSON document; give --json");
}

// Take the option that the arguments stand at; false where there is none of that name.
bool take(Options& options, Arguments& arguments) {
  const std::string& name = arguments.name();
  const auto value = [&] { return arguments.value(); };
  const auto count = [&](std::int64_t least, std::int64_t most) { return whole_number(name, value(), least, most); };
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  if (name == "--prompt") options.prompt = value();
  else if (name == "--raw") options.raw = true;
  else if (name == "--special-tokens-as-text") options.special_tokens_as_text = true;
  else if (name == "--token-ids") options.token_ids = value();
  else if (name == "--chat") options.chat = value();
  else if (name == "--batch") options.batch = value();
  else if (name == "--image") options.images.push_back(value());
  else if (name == "--max-tiles") options.max_tiles = static_cast<std::int32_t>(count(1, 1 << 20));
  else if (name == "--max-new-tokens") options.max_new_tokens = count(1, kMost);
  else if (name == "--stop") options.stops.push_back(value());
  else if (name == "--temperature") options.temperature = number(name, value());
  else if (name == "--top-k") options.top_k = count(std::numeric_limits<std::int64_t>::min(), kMost);
  else if (name == "--top-p") options.top_p = number(name, value());
  else if (name == "--min-p") options.min_p = number(name, value());
  else if (name == "--repetition-penalty") options.repetition_penalty = number(name, value());
  else if (name == "--seed") options.seed = whole_number<std::uint64_t>(name, value(), 0, ~std::uint64_t{0});
  else if (name == "--recommended-sampling") options.recommended_sampling = true;
  else if (name == "--logprobs") options.logprobs = count(0, kMost);
  else if (name == "--threads") options.opening.threads = static_cast<std::int32_t>(count(1, 1024));
  else if (name == "--provider") options.opening.provider = value();
  else if (name == "--onnxruntime") options.opening.onnxruntime = value();
  else if (name == "--verify") options.opening.verify = true;
  else if (name == "--stats") options.stats = true;
  else if (name == "--json") options.json = true;
  else return false;
  if (arguments.has_value()) refuse(name + ": takes no value");
  return true;
}

}  // namespace

std::optional<Options> parse(const std::vector<std::string>& given) {
  Options options;
  Arguments arguments(given);
  while (arguments.next()) {
    const std::string& name = arguments.name();
    if (name == "--help" || name == "-h") return print(kHelp), std::nullopt;
    if (name == "--version") return print("l4run, version " + l4export::version() + "\n"), std::nullopt;
    if (take(options, arguments)) continue;
    if (name.rfind("-", 0) == 0 && name.size() > 1) {
      refuse("No such option: " + l4::printable(name) + ". See `l4run --help`.");
    }
    if (!options.engine.empty()) {
      refuse("one ENGINE is enough: what is " + l4::in_quotes(name) + "? See `l4run --help`.");
    }
    if (!l4::utf8::is_valid(name)) refuse("ENGINE " + l4::in_quotes(name) + ": is no valid UTF-8");
    options.engine = name;
  }
  check(options);
  return options;
}

}  // namespace l4run
