// Answers as server-sent events, while they are chosen.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "told.hpp"

namespace service {

class Streaming {
 public:
  Streaming(Teller teller, Answers answers, std::shared_ptr<Bell> bell, std::size_t prompts, bool tells_usage);

  // What has come since the last call: wait for it, but not for long. `is_last`: nothing follows.
  std::string next(bool& is_last);

 private:
  // How far one answer has been told.
  struct Told {
    bool has_begun = false, has_ended = false;
    std::size_t seen = 0;      // tokens
    std::string text;          // of them
    std::size_t given = 0;     // bytes of it
    std::size_t offset = 0;    // characters of it
    std::vector<Chosen> held;  // tokens whose text is not told
  };

  void tell(std::size_t index, const Chosen& chosen, std::string& out);
  void add(std::string& out, Json choices) const;

  Teller teller_;
  Answers answers_;
  std::shared_ptr<Bell> bell_;
  std::size_t prompts_;
  bool tells_usage_;
  std::vector<Told> told_;
};

}  // namespace service
