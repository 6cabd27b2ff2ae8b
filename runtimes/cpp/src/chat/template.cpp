#include "chat/template.hpp"

#include "chat/interpreter.hpp"
#include "chat/parser.hpp"

namespace l4::chat {

Template::Template(std::string_view source) : tree_(parse_template(source)) {}

Template::~Template() = default;

std::string Template::render(const Variables& variables, std::size_t longest, Budget& budget) const {
  Run run(variables, longest, budget);
  const Run::Deeper deeper(run, tree_->depth);
  Activation activation(nullptr, tree_->function, budget);
  activation.enter(tree_->frame, run);
  for (const auto& statement : tree_->body) {
    run.budget.step();
    statement->execute(run, activation);
  }
  return run.take_result();
}

}  // namespace l4::chat
