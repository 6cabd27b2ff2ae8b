#include "output.hpp"

#include <sys/resource.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>

namespace l4run {

namespace json = l4::json;

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0) return;
  if (errno == EPIPE) throw OutputClosed();
  throw l4export::Error(L4_STORAGE,
                        std::string("standard output: ") + std::strerror(errno) + "; check the path and the disk");
}

namespace {

json::Value rounded(double value, double steps) {  // JSON has no -Infinity, so that is null
  return std::isfinite(value) ? json::Value(std::nearbyint(value * steps) / steps) : json::Value();
}

json::Value speed(std::size_t tokens, double seconds) {
  return tokens == 0 || seconds == 0 ? json::Value() : rounded(static_cast<double>(tokens) / seconds, 100);
}

// The most memory that this process has had at a time, in bytes.
std::int64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

json::Value logprob_of(std::int32_t token, double logprob) {
  json::Object entry;
  entry.add("token", token);
  entry.add("logprob", rounded(logprob, 1e6));
  return entry;
}

}  // namespace

void Answer::add(const l4export::Token& token, bool with_logprobs) {
  token_ids.push_back(token.id);
  text += token.text;
  finish_reason = token.finish_reason;
  if (!with_logprobs) return;
  json::Object entry;
  entry.add("token", token.id);
  entry.add("logprob", rounded(token.logprob, 1e6));
  json::Array top;
  for (std::size_t i = 0; i < token.top_count; ++i) top.push_back(logprob_of(token.top[i].token, token.top[i].logprob));
  entry.add("top", std::move(top));
  logprobs.emplace_back(std::move(entry));
}

json::Object Answer::to_json(bool has_text, bool with_logprobs) const {
  json::Object document;
  document.add("token_ids", json::Array(token_ids.begin(), token_ids.end()));
  document.add("text", has_text ? json::Value(text) : json::Value());
  document.add("finish_reason", finish_reason);
  if (with_logprobs) document.add("logprobs", logprobs);
  return document;
}

void Record::token() {
  last_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
  if (new_tokens_++ == 0) first_seconds_ = last_seconds_;
}

json::Object Record::figures() const {
  json::Object figures;
  figures.add("prompt_tokens", static_cast<std::int64_t>(prompt_tokens_));
  figures.add("new_tokens", static_cast<std::int64_t>(new_tokens_));
  figures.add("load_seconds", rounded(load_seconds_, 1e4));
  figures.add("time_to_first_token_seconds", rounded(first_seconds_, 1e4));
  figures.add("prefill_tokens_per_second", speed(prompt_tokens_, first_seconds_));
  figures.add("decode_tokens_per_second",
              speed(new_tokens_ == 0 ? 0 : new_tokens_ - 1, last_seconds_ - first_seconds_));
  figures.add("peak_memory_bytes", peak_memory());
  return figures;
}

void Record::add_to(json::Object& document) const {
  const json::Object all = figures();
  for (const auto& [name, value] : all.members()) document.add(name, value);
}

std::string Record::sentence(const std::string& finish_reason) const {
  const json::Object all = figures();
  const auto figure = [&](const char* name) { return json::dump(*all.find(name)); };
  return figure("prompt_tokens") + " prompt tokens at " + figure("prefill_tokens_per_second") +
         " tokens/s, first token after " + figure("time_to_first_token_seconds") + " s; " + figure("new_tokens") +
         " new tokens at " + figure("decode_tokens_per_second") + " tokens/s; loaded in " + figure("load_seconds") +
         " s; ended by " + finish_reason + "; at most " + std::to_string(peak_memory() >> 20) + " MiB of memory";
}

}  // namespace l4run
