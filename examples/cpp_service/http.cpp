#include "http.hpp"

#include <openssl/sha.h>
#include <sys/socket.h>

#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "connection.hpp"
#include "prompts.hpp"
#include "refusal.hpp"
#include "streaming.hpp"

namespace service {
namespace {

using HttpRequest = httplib::Request;
using httplib::Response;
using HandlerResponse = httplib::Server::HandlerResponse;

constexpr const char* kJson = "application/json";

std::string fingerprint_of(const Model& model) {
  const std::string manifest = l4_engine_manifest(model.engine.get());
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(manifest.data()), manifest.size(), digest);
  char digits[13];
  for (int i = 0; i < 6; ++i) std::snprintf(digits + 2 * i, 3, "%02x", digest[i]);
  return std::string("l4-") + digits;
}

void tell(Response& response, const Refusal& refusal) {
  response.status = refusal.status;
  if (refusal.status == 429) response.set_header("Retry-After", "1");
  if (refusal.status == 401) response.set_header("WWW-Authenticate", "Bearer");
  response.set_content(written(refusal.object()), kJson);
}

Refusal no_model(const std::string& name) {
  Refusal refusal(404, "there is no model '" + name.substr(0, 80) + "' here", "invalid_request_error",
                  "model_not_found");
  refusal.param = "model";
  return refusal;
}

// Takes as long for every key.
bool is_equal(const std::string& a, const std::string& b) {
  unsigned differs = a.size() != b.size();
  for (std::size_t i = 0; i < a.size(); ++i) differs |= static_cast<unsigned char>(a[i] ^ (i < b.size() ? b[i] : 0));
  return differs == 0;
}

}  // namespace

// A response that is on its way. Where it ends, for whatever reason, nobody wants its answers any more.
struct Http::Open {
  Http& http;
  Connection connection;
  Teller teller;
  std::shared_ptr<Bell> bell = std::make_shared<Bell>();
  Answers answers = {};
  std::size_t prompts = 1;

  Open(Http& http, const HttpRequest& request, Teller teller)
      : http(http), connection(request), teller(std::move(teller)) {
    ++http.open_;
  }
  ~Open() {
    for (const auto& answer : answers) answer->is_unwanted = true;
    http.batcher_.notice();
    --http.open_;
  }
};

Http::Http(const Model& model, Batcher& batcher, std::string name, std::string key, Limits limits)
    : model_(model),
      batcher_(batcher),
      name_(std::move(name)),
      key_(std::move(key)),
      fingerprint_(fingerprint_of(model)),
      limits_(limits) {
  // the server deletes it
  server_.new_task_queue = [count = limits.connections] { return new httplib::ThreadPool(count); };
  server_.set_payload_max_length(limits.max_body);
  server_.set_keep_alive_max_count(1000);
  server_.set_tcp_nodelay(true);
  server_.set_socket_options([this](int socket) {  // without the default SO_REUSEPORT: a port belongs to one service
    const int yes = 1;
    setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    socket_ = socket;
  });
  routes();
  errors();
}

int Http::bind(const std::string& host, int port) {
  if (port == 0) {
    port = server_.bind_to_any_port(host);
  } else if (!server_.bind_to_port(host, port)) {
    port = -1;
  }
  if (port < 0) throw std::runtime_error(host + ": the address cannot be bound; is another service there?");
  ::listen(socket_, 128);  // clients that may wait until they are accepted; the library's own 5 are few
  return port;
}

void Http::stop() {
  for (int round = 0; round < 500 && open_ != 0; ++round) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  server_.stop();
}

void Http::routes() {
  server_.set_pre_routing_handler(
      [this](const HttpRequest& request, Response& response) { return gate(request, response); });
  for (const bool is_chat : {true, false}) {
    const char* path = is_chat ? "/v1/chat/completions" : "/v1/completions";
    server_.Post(path, [this, is_chat](const HttpRequest& request, Response& response,
                                       const httplib::ContentReader& read) { post(request, response, read, is_chat); });
    server_.Get(path, [](const HttpRequest&, Response& response) { response.status = 405; });
  }
  const Json model = {{"id", name_}, {"object", "model"}, {"created", std::time(nullptr)}, {"owned_by", "l4export"}};
  server_.Get("/v1/models", [model](const HttpRequest&, Response& response) {
    response.set_content(written({{"object", "list"}, {"data", Json::array({model})}}), kJson);
  });
  server_.Get(R"(/v1/models/(.+))", [this, model](const HttpRequest& request, Response& response) {
    const std::string asked = request.matches[1];
    if (asked != name_) return tell(response, no_model(asked));
    response.set_content(written(model), kJson);
  });
  server_.Get("/health", [this](const HttpRequest&, Response& response) {
    const bool closes = batcher_.is_closing();
    response.status = closes ? 503 : 200;
    response.set_content(closes ? R"({"status": "closing"})" : R"({"status": "ok"})", kJson);
  });
  server_.Get("/metrics", [this](const HttpRequest&, Response& response) {
    response.set_content(batcher_.metrics_page(), "text/plain; version=0.0.4");
  });
}

// OpenAI's error objects, whatever goes wrong.
void Http::errors() {
  server_.set_error_handler(httplib::Server::Handler([this](const HttpRequest&, Response& response) {
    if (!response.body.empty()) return;
    const char* type = "invalid_request_error";
    const int status = response.status;
    if (status == 404)
      tell(response, {404, "there is no such route", type, "not_found"});
    else if (status == 405)
      tell(response, {405, "this route has another method", type, "method_not_allowed"});
    else if (status == 413)
      tell(response,
           {413, "the body is larger than " + std::to_string(limits_.max_body) + " bytes", type, "body_too_large"});
    else
      tell(response, {status, "the request is not understood", type, ""});
  }));
  server_.set_exception_handler([](const HttpRequest&, Response& response, std::exception_ptr thrown) {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::exception& error) {
      tell(response, failed(error.what()));
    } catch (...) {
      tell(response, failed("an unknown error"));
    }
  });
}

// What a request must pass before anybody looks at it.
HandlerResponse Http::gate(const HttpRequest& request, Response& response) {
  if (key_.empty() || request.path == "/health") return HandlerResponse::Unhandled;
  if (is_equal(request.get_header_value("Authorization"), "Bearer " + key_)) return HandlerResponse::Unhandled;
  response.set_header("Connection", "close");  // the body is not read
  tell(response, {401, "the API key is missing or wrong", "invalid_request_error", "invalid_api_key"});
  return HandlerResponse::Handled;
}

Asked Http::asked(const httplib::ContentReader& read, bool is_chat) const {
  std::string body;
  bool is_larger = false;
  const bool is_whole = read([&](const char* data, std::size_t size) {
    is_larger |= size > limits_.max_body - body.size();
    if (!is_larger) body.append(data, size);
    return !is_larger;
  });
  if (is_larger)
    throw Refusal(413, "the body is larger than " + std::to_string(limits_.max_body) + " bytes",
                  "invalid_request_error", "body_too_large");
  if (!is_whole) throw Refusal(400, "the body is not whole", "invalid_request_error", "");
  try {
    const Json value = read_json(body);
    return is_chat ? read_chat(value) : read_completion(value);
  } catch (const Json::parse_error&) {
    throw Refusal(400, "the body is not JSON", "invalid_request_error", "invalid_json");
  } catch (const Json::exception& error) {
    throw Refusal(400, std::string("the body: ") + error.what(), "invalid_request_error", "invalid_json");
  }
}

void Http::post(const HttpRequest& request, Response& response, const httplib::ContentReader& read, bool is_chat) {
  try {
    const Asked asked = this->asked(read, is_chat);
    if (asked.model != name_) throw no_model(asked.model);
    if (batcher_.is_closing()) throw closing();
    const Teller teller(model_, is_chat, name_, fingerprint_, asked.tool_names);
    const auto open = std::make_shared<Open>(*this, request, teller);
    std::vector<Prompt> prompts = prompts_of(model_, asked);
    open->prompts = prompts.size();
    open->answers = submit(asked, std::move(prompts), open->bell);
    if (asked.stream) return tell_pieces(open, response, asked.tells_usage);
    tell_whole(open, response);
  } catch (const Refusal& refusal) {
    if (response.status != 413)
      return tell(response, refusal);  // else the library has read past a body that is too large
    response.body.clear();
  }
}

Answers Http::submit(const Asked& asked, std::vector<Prompt> prompts, const std::shared_ptr<Bell>& bell) {
  const std::size_t count = prompts.size() * asked.n, capacity = batcher_.capacity();
  if (count > batcher_.rows()) {
    throw Refusal("n: " + std::to_string(count) + " answers are asked for, and " + std::to_string(batcher_.rows()) +
                      " is the most",
                  "n");
  }
  if (asked.max_tokens && *asked.max_tokens > limits_.max_tokens) {
    throw Refusal("max_tokens is " + std::to_string(*asked.max_tokens) + ": this service gives at most " +
                      std::to_string(limits_.max_tokens),
                  "max_tokens");
  }
  Answers answers;
  std::vector<std::unique_ptr<Request>> requests;
  for (const Prompt& prompt : prompts) {
    if (prompt.ids.size() > capacity) {
      const std::string name = asked.is_chat ? "messages" : "prompt";
      throw Refusal(name + ": make " + std::to_string(prompt.ids.size()) + " tokens, and there is room for " +
                        std::to_string(capacity),
                    name);
    }
    for (std::size_t choice = 0; choice < asked.n; ++choice) {
      Settings settings{asked.sampling, asked.max_tokens.value_or(limits_.max_tokens), asked.stops, asked.likeliest};
      settings.sampling.seed += choice;  // a given seed is that of the first choice
      if (settings.sampling.has_seed == 0) {
        settings.sampling.has_seed = 1;
        check(l4_fresh_seed(&settings.sampling.seed));
      }
      answers.push_back(std::make_shared<Answer>(bell));
      try {
        requests.push_back(std::make_unique<Request>(model_, batcher_.metrics, prompt, settings, answers.back()));
      } catch (const Failure& failure) {
        throw failure.status == L4_BAD_INPUT ? Refusal(failure.what(), "stop") : failed(failure.what());
      }
    }
  }
  batcher_.submit(std::move(requests));
  return answers;
}

void Http::tell_whole(const std::shared_ptr<Open>& open, Response& response) {
  std::unique_lock<std::mutex> lock(open->bell->mutex);
  const auto have_ended = [&] {
    for (const auto& answer : open->answers) {
      if (answer->end() == Answer::End::failed) return true;
      if (answer->end() == Answer::End::none) return false;
    }
    return true;
  };
  while (!have_ended()) {
    if (open->connection.has_gone()) return;
    open->bell->rung.wait_for(lock, std::chrono::milliseconds(50), have_ended);
  }
  for (const auto& answer : open->answers) {
    if (answer->end() == Answer::End::failed) throw failed(answer->error());
    if (answer->end() == Answer::End::cancelled) throw closing();
  }
  response.set_content(written(open->teller.whole(open->answers, open->prompts)), kJson);
}

void Http::tell_pieces(const std::shared_ptr<Open>& open, Response& response, bool tells_usage) {
  const auto streaming =
      std::make_shared<Streaming>(open->teller, open->answers, open->bell, open->prompts, tells_usage);
  response.set_header("Cache-Control", "no-cache");
  response.set_chunked_content_provider("text/event-stream", [open, streaming](std::size_t, httplib::DataSink& sink) {
    if (open->connection.has_gone()) return false;
    bool is_last = false;
    const std::string events = streaming->next(is_last);
    if (!events.empty() && !sink.write(events.data(), events.size())) return false;
    if (is_last) sink.done();
    return true;
  });
}

}  // namespace service
