// Whether a client still listens. (cpp-httplib tells handlers so from version 0.12 on.)
#pragma once

#include <httplib.h>

namespace service {

// The client's end of a request's connection; the connection must be open, and nobody else's.
class Connection {
 public:
  explicit Connection(const httplib::Request& request);
  // Whether the client has closed it. Never, where the connection was not found.
  bool has_gone() const;

 private:
  int socket_ = -1;
};

}  // namespace service
