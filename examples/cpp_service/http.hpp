// The routes, in OpenAI's interface.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include <httplib.h>

#include "asked.hpp"
#include "batcher.hpp"
#include "library.hpp"
#include "request.hpp"
#include "told.hpp"

namespace service {

struct Limits {
  std::size_t max_tokens;  // new ones that a request may ask for
  std::size_t max_body;    // bytes of a request
  std::size_t connections;
};

class Http {
 public:
  // `name`: what clients call the model; `key`: that they must give, empty: none.
  Http(const Model& model, Batcher& batcher, std::string name, std::string key, Limits limits);

  // Take an address; the port, which is a free one for 0. Throws std::runtime_error.
  int bind(const std::string& host, int port);
  void serve() { server_.listen_after_bind(); }  // until `stop`
  // Wait until what has been computed is told, and end.
  void stop();

 private:
  struct Open;  // a response that is on its way

  void routes();
  void errors();
  httplib::Server::HandlerResponse gate(const httplib::Request& request, httplib::Response& response);
  void post(const httplib::Request& request, httplib::Response& response, const httplib::ContentReader& read,
            bool is_chat);
  Asked asked(const httplib::ContentReader& read, bool is_chat) const;
  Answers submit(const Asked& asked, std::vector<Prompt> prompts, const std::shared_ptr<Bell>& bell);
  void tell_whole(const std::shared_ptr<Open>& open, httplib::Response& response);
  void tell_pieces(const std::shared_ptr<Open>& open, httplib::Response& response, bool tells_usage);

  const Model& model_;
  Batcher& batcher_;
  std::string name_, key_, fingerprint_;
  Limits limits_;
  std::atomic<std::size_t> open_{0};
  httplib::Server server_;
  int socket_ = -1;
};

}  // namespace service
