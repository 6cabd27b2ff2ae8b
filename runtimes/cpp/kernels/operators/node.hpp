// What a node of a graph says about itself, checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "operators/api.hpp"
#include "kernels.hpp"

namespace l4::cpu {

// A node when its kernel is made. Messages name it.
class Node {
 public:
  Node(const OrtApi& api, const OrtKernelInfo* info, const char* operator_name);

  const OrtApi& api() const { return api_; }
  [[noreturn]] void refuse(const std::string& why) const;

  // An attribute, from `least` to 2^31.
  std::int64_t number(const char* name, std::int64_t least) const;
  std::vector<std::int64_t> numbers(const char* name, std::size_t count) const;
  std::string text(const char* name) const;
  Activations activations() const;  // attribute "activations"

  std::size_t inputs() const;

  // The format of a matrix. Refuses what there is not.
  Format format(std::int64_t rows, std::int64_t columns, std::int64_t bits, std::int64_t block,
                std::int64_t zero_points) const;

  // The bytes of input `index`, a constant that holds `count` matrices.
  const std::uint8_t* tiles(std::size_t index, const char* name, const Format& format, std::int64_t count) const;

 private:
  const OrtApi& api_;
  const OrtKernelInfo* info_;
  std::string called_;
};

// The kernels that a session's nodes use. Refuses a name in L4_CPU_ISA that means nothing here.
const Kernels& session_kernels();

}  // namespace l4::cpu
