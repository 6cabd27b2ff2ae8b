// Serves an engine to clients of OpenAI's interface: cpp_service ENGINE
#include <pthread.h>
#include <signal.h>

#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>

#include "http.hpp"

namespace {

constexpr const char* kUsage =
    "cpp_service ENGINE [options]: serves an engine that has a tokenizer; L4EXPORT_API_KEY is the key of clients\n"
    "  --host ADDRESS    (127.0.0.1)\n"
    "  --port PORT       0: one that is free (8000)\n"
    "  --model NAME      that clients give (the name of the directory)\n"
    "  --rows N          requests that are answered at the same time (8)\n"
    "  --capacity N      tokens of prompt and answer (the engine's max_context)\n"
    "  --waiting N       requests that may wait for a row (64)\n"
    "  --piece N         prompt tokens between two steps (128)\n"
    "  --max-tokens N    new tokens that a request may ask for (the capacity)\n"
    "  --max-body N      bytes of a request (16777216)\n"
    "  --threads N       of the CPU (one a core)\n"
    "  --grace SECONDS   in which answers may end at shutdown (30)\n";

struct Options {
  std::string engine, host = "127.0.0.1", model;
  long port = 8000, rows = 8, capacity = 0, waiting = 64, piece = 128, max_tokens = 0, max_body = 16 << 20, threads = 0,
       grace = 30;
};

[[noreturn]] void refuse(const std::string& why) {
  std::fprintf(stderr, "cpp_service: %s\n\n%s", why.c_str(), kUsage);
  std::exit(2);
}

long whole(const std::string& name, const std::string& text, long least, long most) {
  long value = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  if (read.ec != std::errc() || read.ptr != text.data() + text.size() || value < least || value > most) {
    refuse(name + " is '" + text + "': give a whole number, " + std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

Options options_of(int count, char** arguments) {
  Options options;
  const struct {
    const char* name;
    long* value;
    long least, most;
  } numbers[] = {{"--port", &options.port, 0, 65535},           {"--rows", &options.rows, 1, 4096},
                 {"--capacity", &options.capacity, 1, 1 << 30}, {"--waiting", &options.waiting, 1, 10'000},
                 {"--piece", &options.piece, 1, 1 << 30},       {"--max-tokens", &options.max_tokens, 1, 1 << 30},
                 {"--max-body", &options.max_body, 1, 1 << 30}, {"--threads", &options.threads, 1, 4096},
                 {"--grace", &options.grace, 0, 86'400}};
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "--help") std::fputs(kUsage, stdout), std::exit(0);
    if (name.compare(0, 2, "--") != 0) {
      if (!options.engine.empty()) refuse("one engine is served, and '" + name + "' is a second one");
      options.engine = name;
      continue;
    }
    if (i + 1 == count) refuse(name + " has no value");
    const std::string value = arguments[++i];
    bool is_known = true;
    if (name == "--host")
      options.host = value;
    else if (name == "--model")
      options.model = value;
    else
      is_known = false;
    for (const auto& number : numbers) {
      if (name == number.name) *number.value = whole(name, value, number.least, number.most), is_known = true;
    }
    if (!is_known) refuse("there is no option " + name);
  }
  if (options.engine.empty()) refuse("which engine?");
  return options;
}

// Wait for SIGTERM or SIGINT, which all threads have blocked.
void wait_for_signal(const sigset_t& signals) {
  int number = 0;
  sigwait(&signals, &number);
}

int run(const Options& options, const sigset_t& signals) {
  using namespace service;
  const Model model(options.engine, static_cast<std::int32_t>(options.threads));
  Batcher batcher(model, static_cast<std::int32_t>(options.rows), options.capacity,
                  static_cast<std::size_t>(options.waiting), static_cast<std::size_t>(options.piece));
  const std::string name =
      options.model.empty() ? std::filesystem::canonical(options.engine).filename().string() : options.model;
  const char* key = std::getenv("L4EXPORT_API_KEY");
  Limits limits{};
  limits.max_tokens = options.max_tokens != 0 ? static_cast<std::size_t>(options.max_tokens) : batcher.capacity();
  limits.max_body = static_cast<std::size_t>(options.max_body);
  limits.connections =
      static_cast<std::size_t>(options.rows + options.waiting + 16);  // those that are refused, and metrics
  Http http(model, batcher, name, key == nullptr ? "" : key, limits);
  const int port = http.bind(options.host, static_cast<int>(options.port));
  std::thread serving([&] { http.serve(); });
  const bool is_long = options.host.find(':') != std::string::npos;
  std::printf("listening on http://%s:%d\n", (is_long ? "[" + options.host + "]" : options.host).c_str(), port);
  std::fflush(stdout);
  wait_for_signal(signals);
  batcher.close(std::chrono::seconds(options.grace));
  http.stop();
  serving.join();
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const Options options = options_of(count, arguments);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  try {
    return run(options, signals);
  } catch (const service::Failure& failure) {
    std::fprintf(stderr, "cpp_service: %s\n", failure.what());
    return failure.status;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cpp_service: %s\n", error.what());
    return 3;
  }
}
