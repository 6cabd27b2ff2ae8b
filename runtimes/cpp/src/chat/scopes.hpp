// Where the names of a template live: the rules of jinja2's idtracking, which decide it before a template runs.
//
// jinja2 makes a Python function of a template and of each macro, and a variable of it for each name and level of
// nesting. `Symbols` are the names of one frame (a template, a loop's body, a macro, ...), `FunctionScope` the
// variables of one such function.
#pragma once

#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace l4::chat {

struct FunctionScope {
  FunctionScope* outer = nullptr;
  std::map<std::string, int> slots;
};

// A variable as code sees it: `hops` functions further out.
struct Place {
  int hops = 0;
  int slot = 0;
};

enum class Load { parameter, resolve, alias, undefined };

// What a frame does with one of its variables when it is entered.
struct FrameLoad {
  int slot;
  Load load;
  std::string name;  // to resolve
  Place from;        // to alias
};

// What happens when a frame is entered; when it is left, its variables are forgotten.
using Frame = std::vector<FrameLoad>;

class Symbols {
 public:
  Symbols(Symbols* parent, FunctionScope* function);

  void load(const std::string& name);
  void store(const std::string& name);
  int declare_parameter(const std::string& name);  // its slot
  Symbols branch() const;  // a copy, for one branch of an `if`
  // After the branches, which have seen one each.
  void merge(const std::vector<Symbols>& branches);
  // So many names are about to be copied. Raises TemplateError where all copies together are too many.
  void spend(std::size_t names) const;

  Place place(const std::string& name) const;  // of a name that has been loaded or stored
  Frame frame() const;
  FunctionScope* function() const { return function_; }

 private:
  struct Reference {
    FunctionScope* function;
    int slot;
  };
  struct Entry {
    Load load;
    std::string name;
    Reference from{};
  };

  const Reference* find(const std::string& name) const;
  int define(const std::string& name, Entry entry);
  Place place_of(const Reference& reference) const;

  static constexpr std::size_t kMostCopies = 10'000'000;  // of names; a template of a thousand names and branches has 3

  Symbols* parent_;
  FunctionScope* function_;
  int level_;
  mutable std::size_t copies_ = 0;  // of the outermost one
  std::map<std::string, Reference> references_;
  std::map<int, Entry> loads_;
  std::set<std::string> stores_;
};

}  // namespace l4::chat
