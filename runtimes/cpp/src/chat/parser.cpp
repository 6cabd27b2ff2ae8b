#include "chat/parser.hpp"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "chat/expression_parser.hpp"
#include "chat/failure.hpp"

namespace l4::chat {

namespace {

using Names = std::vector<std::string_view>;

class Parser : private ExpressionParser {
 public:
  explicit Parser(std::vector<Token> tokens) : ExpressionParser(std::move(tokens)) {}

  std::unique_ptr<TemplateNode> run() {
    auto tree = std::make_unique<TemplateNode>();
    tree->body = body({});
    return finished(std::move(tree));
  }

 private:
  // Up to a tag of one of these names, which becomes the current token; to the end where there are no names.
  Body body(const Names& ends) {
    const Nesting nesting(*this);
    Body statements;
    auto output = std::make_unique<OutputNode>();
    const auto flush = [&] {
      if (output->parts.empty()) return;
      statements.push_back(finished(std::move(output)));
      output = std::make_unique<OutputNode>();
    };
    while (!current().is(TokenKind::end)) {
      if (current().is(TokenKind::data)) {
        output->parts.push_back(std::make_unique<ConstNode>(Value(take().text)));
      } else if (current().is(TokenKind::variable_begin)) {
        take();
        output->parts.push_back(written(tuple()));
        expect(TokenKind::variable_end);
      } else {
        flush();
        expect(TokenKind::block_begin);
        if (current().is(TokenKind::name) && std::find(ends.begin(), ends.end(), current().text) != ends.end()) {
          return statements;
        }
        statements.push_back(finished(statement()));
        expect(TokenKind::block_end);
      }
    }
    flush();
    return statements;
  }

  // The body of a tag, up to one of these names.
  Body block(const Names& ends) {
    if (current().is_sign(":")) take();
    expect(TokenKind::block_end);
    Body statements = body(ends);
    if (current().is(TokenKind::end)) {
      throw TemplateError("Unexpected end of template. Jinja was looking for the following tags: '" +
                          std::string(ends[0]) + "'.");
    }
    return statements;
  }

  Body closed_block(std::string_view end) {
    Body statements = block({end});
    take();
    return statements;
  }

  std::unique_ptr<Statement> statement() {
    if (!current().is(TokenKind::name)) throw TemplateError("tag name expected");
    const std::string tag = current().text;
    if (tag == "for") return for_loop();
    if (tag == "if") return condition();
    if (tag == "set") return set();
    if (tag == "macro") return macro();
    if (tag == "call") return call_block();
    if (tag == "filter") return filter_block();
    if (tag == "with") return with();
    if (tag == "print") return print();
    if (tag == "generation") return generation();
    if (tag == "break" || tag == "continue") {
      take();
      if (loops_ == 0) throw TemplateError("SyntaxError: '" + tag + "' outside loop");
      return std::make_unique<LoopControlNode>(tag == "break" ? Flow::breaks : Flow::continues);
    }
    static constexpr std::array<std::string_view, 6> kKnown = {"autoescape", "block",  "extends",
                                                               "from",       "import", "include"};
    if (std::find(kKnown.begin(), kKnown.end(), tag) != kKnown.end()) throw Unsupported("the tag '" + tag + "'");
    throw TemplateError("Encountered unknown tag '" + tag + "'.");
  }

  std::unique_ptr<Statement> for_loop() {
    take();
    auto loop = std::make_unique<ForNode>();
    loop->target = target(false, {"in"});
    expect_name("in");
    loop->iterable = tuple(false, {"recursive"});
    if (skip_name("if")) loop->test = expression();
    loop->recursive = skip_name("recursive");
    ++loops_;
    loop->body = block({"endfor", "else"});
    --loops_;
    if (take().is_name("else")) loop->otherwise = closed_block("endfor");
    return loop;
  }

  std::unique_ptr<Statement> condition() {
    auto node = std::make_unique<IfNode>();
    do {
      take();
      ExpressionPtr test = tuple(false);
      node->branches.push_back({std::move(test), block({"elif", "else", "endif"})});
    } while (current().is_name("elif"));
    if (take().is_name("else")) node->otherwise = closed_block("endif");
    return node;
  }

  std::unique_ptr<Statement> set() {
    take();
    TargetPtr to = target(true, {});
    if (skip_sign("=")) {
      auto node = std::make_unique<SetNode>();
      node->target = std::move(to);
      node->value = tuple();
      return node;
    }
    auto node = std::make_unique<SetBlockNode>();
    node->target = std::move(to);
    if (current().is_sign("|")) node->filter = filters(nullptr, false);
    node->body = closed_block("endset");
    return node;
  }

  // Read the body of a function of its own: no loop goes on in it.
  void finish(Callable& callable, std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    callable.body = closed_block(end);
    callable.measure();
    loops_ = loops;
  }

  std::unique_ptr<Statement> macro() {
    take();
    auto node = std::make_unique<MacroNode>();
    node->callable.name = assignable_name();
    signature(node->callable);
    finish(node->callable, "endmacro");
    return node;
  }

  std::unique_ptr<Statement> call_block() {
    take();
    auto node = std::make_unique<CallBlockNode>();
    if (current().is_sign("(")) signature(node->callable);
    ExpressionPtr call = expression();
    if (dynamic_cast<CallNode*>(call.get()) == nullptr) throw TemplateError("expected call");
    node->call.reset(static_cast<CallNode*>(call.release()));
    finish(node->callable, "endcall");
    return node;
  }

  std::unique_ptr<Statement> generation() {
    take();
    auto node = std::make_unique<CallBlockNode>();
    finish(node->callable, "endgeneration");
    return node;
  }

  std::unique_ptr<Statement> filter_block() {
    take();
    auto node = std::make_unique<FilterBlockNode>();
    node->filter = filters(nullptr, true);
    node->body = closed_block("endfilter");
    return node;
  }

  std::unique_ptr<Statement> with() {
    take();
    auto node = std::make_unique<WithNode>();
    while (!current().is(TokenKind::block_end)) {
      if (!node->targets.empty()) expect_sign(",");
      node->targets.push_back(target(false, {}));
      expect_sign("=");
      node->values.push_back(expression());
    }
    node->body = closed_block("endwith");
    return node;
  }

  std::unique_ptr<Statement> print() {
    take();
    auto node = std::make_unique<OutputNode>();
    while (!current().is(TokenKind::block_end)) {
      if (!node->parts.empty()) expect_sign(",");
      node->parts.push_back(written(expression()));
    }
    return node;
  }

  void signature(Callable& callable) {
    expect_sign("(");
    while (!current().is_sign(")")) {
      if (!callable.arguments.empty()) expect_sign(",");
      std::string name = assignable_name();
      for (const NameTarget& other : callable.arguments) {
        if (other.name == name) {
          throw TemplateError("SyntaxError: duplicate argument '" + name + "' in function definition");
        }
      }
      if (skip_sign("=")) {
        callable.defaults.push_back(expression());
      } else if (!callable.defaults.empty()) {
        throw TemplateError("non-default argument follows default argument");
      }
      callable.arguments.emplace_back(std::move(name));
    }
    take();
  }

  std::string assignable_name() {
    std::string name = expect(TokenKind::name).text;
    if (is_constant(name)) throw TemplateError("can't assign to 'name'");
    return name;
  }

  // Names, tuples of them, and attributes of namespaces where they may be.
  TargetPtr target(bool members, const Names& ends) {
    const Nesting nesting(*this);
    std::vector<TargetPtr> items;
    bool is_tuple = false;
    while (!ends_tuple(ends)) {
      items.push_back(one_target(members));
      if (!skip_sign(",")) break;
      is_tuple = true;
    }
    if (items.empty()) unexpected();
    if (!is_tuple) return std::move(items[0]);
    auto tuple = std::make_unique<TupleTarget>();
    tuple->items = std::move(items);
    return finished(std::move(tuple));
  }

  TargetPtr one_target(bool members) {
    if (skip_sign("(")) {  // within it there are no attributes
      TargetPtr inner = target(false, {});
      expect_sign(")");
      return inner;
    }
    std::string name = assignable_name();
    if (!members || !skip_sign(".")) return std::make_unique<NameTarget>(std::move(name));
    return std::make_unique<MemberTarget>(std::move(name), expect(TokenKind::name).text);
  }

  int loops_ = 0;
};

}  // namespace

std::unique_ptr<TemplateNode> parse_template(std::string_view source) {
  std::unique_ptr<TemplateNode> tree = Parser(tokenize(source)).run();
  tree->bind_all();
  return tree;
}

}  // namespace l4::chat
