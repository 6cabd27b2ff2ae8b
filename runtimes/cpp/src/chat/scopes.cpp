#include "chat/scopes.hpp"

#include <algorithm>
#include <array>
#include <string_view>

#include "chat/failure.hpp"

namespace l4::chat {

Symbols::Symbols(Symbols* parent, FunctionScope* function)
    : parent_(parent), function_(function), level_(parent == nullptr ? 0 : parent->level_ + 1) {}

const Symbols::Reference* Symbols::find(const std::string& name) const {
  for (const Symbols* symbols = this; symbols != nullptr; symbols = symbols->parent_) {
    if (const auto found = symbols->references_.find(name); found != symbols->references_.end()) return &found->second;
  }
  return nullptr;
}

int Symbols::define(const std::string& name, Entry entry) {
  const std::string variable = std::to_string(level_) + " " + name;
  const int slot = function_->slots.emplace(variable, static_cast<int>(function_->slots.size())).first->second;
  references_[name] = {function_, slot};
  loads_[slot] = std::move(entry);
  return slot;
}

void Symbols::load(const std::string& name) {
  if (find(name) != nullptr) return;
  static constexpr std::array<std::string_view, 3> kUnknown = {"lipsum", "cycler", "joiner"};
  if (std::find(kUnknown.begin(), kUnknown.end(), name) != kUnknown.end()) {
    throw Unsupported("the function '" + name + "'");
  }
  define(name, {Load::resolve, name});
}

void Symbols::store(const std::string& name) {
  stores_.insert(name);
  if (references_.count(name) != 0) return;
  const Reference* outer = parent_ == nullptr ? nullptr : parent_->find(name);
  define(name, outer == nullptr ? Entry{Load::undefined, name} : Entry{Load::alias, name, *outer});
}

int Symbols::declare_parameter(const std::string& name) {
  stores_.insert(name);
  return define(name, {Load::parameter, name});
}

void Symbols::spend(std::size_t names) const {
  const Symbols* outermost = this;
  while (outermost->parent_ != nullptr) outermost = outermost->parent_;
  outermost->copies_ += names;
  if (outermost->copies_ > kMostCopies) throw TemplateError("it has too many names and branches");
}

Symbols Symbols::branch() const {
  spend(references_.size() + loads_.size() + stores_.size());
  return *this;
}

void Symbols::merge(const std::vector<Symbols>& branches) {
  std::set<std::string> stores;
  for (const Symbols& branch : branches) stores.insert(branch.stores_.begin(), branch.stores_.end());
  for (const std::string& known : stores_) stores.erase(known);
  for (const Symbols& branch : branches) {
    for (const auto& [name, reference] : branch.references_) references_[name] = reference;
    for (const auto& [slot, entry] : branch.loads_) loads_[slot] = entry;
    stores_.insert(branch.stores_.begin(), branch.stores_.end());
  }
  for (const std::string& name : stores) {  // in some branch only: before it, it is what it is outside
    const Reference* outer = parent_ == nullptr ? nullptr : parent_->find(name);
    loads_[find(name)->slot] = outer == nullptr ? Entry{Load::resolve, name} : Entry{Load::alias, name, *outer};
  }
}

Place Symbols::place_of(const Reference& reference) const {
  int hops = 0;
  for (const FunctionScope* function = function_; function != reference.function; function = function->outer) ++hops;
  return {hops, reference.slot};
}

Place Symbols::place(const std::string& name) const {
  const Reference* reference = find(name);
  if (reference == nullptr) {  // jinja2 does not look at the arguments of a filter of a {% set %} block
    throw TemplateError("Tried to resolve a name to a reference that was unknown to the frame ('" + name + "')");
  }
  return place_of(*reference);
}

Frame Symbols::frame() const {
  Frame frame;
  for (const auto& [slot, entry] : loads_) {
    frame.push_back({slot, entry.load, entry.name, entry.load == Load::alias ? place_of(entry.from) : Place{}});
  }
  return frame;
}

}  // namespace l4::chat
