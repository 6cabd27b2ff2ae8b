#include "operators/node.hpp"

#include "choice.hpp"
#include "operators/tensor.hpp"

namespace l4::cpu {
namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 31;  // a matrix of that many rows and columns still has 64-bit sizes

std::string node_name(const OrtApi& api, const OrtKernelInfo* info) {
  std::size_t size = 0;
  check(api, api.KernelInfo_GetNodeName(info, nullptr, &size));
  std::string name(size, '\0');
  check(api, api.KernelInfo_GetNodeName(info, name.data(), &size));
  while (!name.empty() && name.back() == '\0') name.pop_back();
  return name;
}

}  // namespace

Node::Node(const OrtApi& api, const OrtKernelInfo* info, const char* operator_name)
    : api_(api), info_(info), called_("l4.cpu " + std::string(operator_name) + " \"" + node_name(api, info) + "\": ") {}

void Node::refuse(const std::string& why) const { throw Refused(called_ + why); }

std::int64_t Node::number(const char* name, std::int64_t least) const {
  std::int64_t value = 0;
  if (OrtStatus* const status = api_.KernelInfoGetAttribute_int64(info_, name, &value)) {
    api_.ReleaseStatus(status);
    refuse("it has no integer attribute " + std::string(name));
  }
  if (value < least || value > kMost) {
    refuse(std::string(name) + " is " + std::to_string(value) + ", not from " + std::to_string(least) + " to 2^31");
  }
  return value;
}

std::vector<std::int64_t> Node::numbers(const char* name, std::size_t count) const {
  std::size_t size = 0;
  std::vector<std::int64_t> values;
  OrtStatus* status = api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size);
  if (status == nullptr && size == count) {
    values.resize(count);
    status = api_.KernelInfoGetAttributeArray_int64(info_, name, values.data(), &size);
  }
  if (status != nullptr) api_.ReleaseStatus(status);
  if (status != nullptr || values.size() != count) {
    refuse("it has no attribute " + std::string(name) + " of " + std::to_string(count) + " integers");
  }
  return values;
}

std::string Node::text(const char* name) const {
  std::size_t size = 0;
  OrtStatus* status = api_.KernelInfoGetAttribute_string(info_, name, nullptr, &size);
  std::string value(size, '\0');
  if (status == nullptr) status = api_.KernelInfoGetAttribute_string(info_, name, value.data(), &size);
  if (status != nullptr) {
    api_.ReleaseStatus(status);
    refuse("it has no attribute " + std::string(name) + " of text");
  }
  return value.c_str();
}

Activations Node::activations() const {
  const std::string kind = text("activations");
  if (kind == "int8") return Activations::int8;
  if (kind != "float") refuse("activations is \"" + kind + "\", neither \"int8\" nor \"float\"");
  return Activations::float32;
}

std::size_t Node::inputs() const {
  std::size_t count = 0;
  check(api_, api_.KernelInfo_GetInputCount(info_, &count));
  return count;
}

Format Node::format(std::int64_t rows, std::int64_t columns, std::int64_t bits, std::int64_t block,
                    std::int64_t zero_points) const {
  if (bits != 4 && bits != 8) refuse("weights of " + std::to_string(bits) + " bits; it has 4 and 8");
  if (block != 16 && block != 32 && block != 64 && block != 128) {
    refuse("block_size is " + std::to_string(block) + ", not 16, 32, 64 or 128");
  }
  if (columns % block != 0) {
    refuse(std::to_string(columns) + " columns are no whole blocks of " + std::to_string(block));
  }
  if (zero_points != 0 && zero_points != 1) refuse("zero_points is " + std::to_string(zero_points) + ", not 0 or 1");
  return {rows, columns, bits, block, zero_points == 1};
}

const std::uint8_t* Node::tiles(std::size_t index, const char* name, const Format& format, std::int64_t count) const {
  const OrtValue* value = nullptr;
  int constant = 0;
  if (inputs() > index) check(api_, api_.KernelInfoGetConstantInput_tensor(info_, index, &constant, &value));
  if (constant == 0 || value == nullptr) refuse(std::string(name) + " is no constant of the graph");
  const Tensor tensor(api_, value);
  if (tensor.type() != ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) refuse(std::string(name) + " is not of type uint8");
  const std::int64_t tiles = count * format.tiles(), tile_bytes = format.tile_bytes(), bytes = tensor.elements();
  if (bytes % tile_bytes != 0 || bytes / tile_bytes != tiles) {
    refuse(std::string(name) + " has " + std::to_string(bytes) + " bytes, not the " + std::to_string(tiles) +
           " tiles of " + std::to_string(tile_bytes) + " bytes that its attributes say");
  }
  return tensor.data<std::uint8_t>();
}

const Kernels& session_kernels() {
  std::string error;
  const Kernels* const kernels = chosen_kernels(error);
  if (kernels == nullptr) throw Refused(error);
  return *kernels;
}

}  // namespace l4::cpu
