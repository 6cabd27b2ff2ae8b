// What a decoder takes and gives, for a model, a KV layout and dtypes: docs/reference/engine.md, in code.
#pragma once

#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "engine/manifest.hpp"

namespace l4::engine {

// Inputs and outputs of a decoder, or of the part of it that holds some layers.
//
// A part takes `hidden_states.{n}` where another part comes before it and n is its first layer, and gives them where
// another follows. Where the engine sees images, what has the first layer takes `image_features`, the rows of the
// call's image tokens. Of the inputs of a call it takes those that it uses; a whole decoder takes all.
class DecoderInterface {
 public:
  // `manifest` lives as long as this.
  DecoderInterface(const Manifest& manifest, std::int64_t first_layer, std::int64_t behind_last);

  // Raise Error (L4_BAD_INPUT) where declared inputs and outputs, at `path` of the manifest `where`, differ from these.
  void check(const std::vector<TensorSpec>& inputs, const std::vector<TensorSpec>& outputs, const std::string& where,
             const std::string& path) const;

 private:
  struct Side {
    std::vector<TensorSpec> tensors;
    std::unordered_map<std::string, std::size_t> index;
    void add(std::string name, std::string dtype, std::vector<Dimension> shape);
  };

  void add_caches(Side& side, const std::string& prefix, const std::string& growing);
  std::vector<Dimension> fixed(const TensorSpec& expected) const;
  void check_side(const std::vector<TensorSpec>& declared, const Side& expected, const std::string& where,
                  const std::string& path) const;
  void check_in_place(const std::vector<TensorSpec>& inputs, const std::vector<TensorSpec>& outputs,
                      const std::string& where, const std::string& path) const;

  const Manifest& manifest_;
  std::int64_t first_layer_, behind_last_;
  Side inputs_, outputs_;
  std::unordered_set<std::string> spared_;  // inputs of a call that a part need not take
};

// Whether two tensors are declared alike.
bool same(const std::vector<TensorSpec>& a, const std::vector<TensorSpec>& b);
bool same(const std::vector<Dimension>& a, const std::vector<Dimension>& b);

}  // namespace l4::engine
