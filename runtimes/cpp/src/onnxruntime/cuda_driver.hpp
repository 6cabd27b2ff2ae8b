// A GPU's memory, through NVIDIA's driver API: the driver (libcuda.so.1) is there wherever a GPU works, and its
// interface does not change [docs.nvidia.com/cuda/cuda-driver-api].
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace l4 {

// The first GPU, in the context that CUDA's runtime, and so ONNX Runtime, uses too. For any number of threads.
class Cuda : public std::enable_shared_from_this<Cuda> {
 public:
  using Version = std::pair<int, int>;

  // Raises Error (L4_ENVIRONMENT): no driver, or no GPU; the message begins with `purpose`.
  static std::shared_ptr<Cuda> open(const std::string& purpose);
  ~Cuda();

  const std::string& name() const { return name_; }
  Version capability() const { return capability_; }  // compute capability, such as {8, 9}
  Version driver() const { return driver_; }          // the newest version of CUDA that the driver supports
  std::string module() const;                         // version of the kernel module; empty where it is hidden

  // These raise std::bad_alloc where there is no room, and Error (L4_BAD_INPUT) where CUDA fails.
  std::uint64_t allocate(std::size_t bytes) const;  // zeros
  void free(std::uint64_t address) const noexcept;
  void to_device(std::uint64_t to, const void* from, std::size_t bytes) const;  // there when this returns
  void to_host(void* to, std::uint64_t from, std::size_t bytes) const;
  void copy(std::uint64_t to, std::uint64_t from, std::size_t bytes) const;

 private:
  struct Functions;

  explicit Cuda(const std::string& purpose);
  void check(int code, const char* function) const;
  void enter() const;   // the context, on this thread
  void settle() const;  // wait for copies: from pageable memory they may return early, and ONNX Runtime waits for none

  std::unique_ptr<Functions> functions_;
  void* context_ = nullptr;
  std::string name_;
  Version capability_, driver_;
};

// GPU memory, zeros at first.
class CudaBuffer {
 public:
  CudaBuffer(std::shared_ptr<const Cuda> cuda, std::size_t bytes)
      : cuda_(std::move(cuda)), address_(cuda_->allocate(bytes)), bytes_(bytes) {}
  ~CudaBuffer() { cuda_->free(address_); }
  CudaBuffer(const CudaBuffer&) = delete;
  CudaBuffer& operator=(const CudaBuffer&) = delete;

  std::uint64_t address() const { return address_; }
  std::size_t bytes() const { return bytes_; }
  void write(const void* from, std::size_t count, std::size_t at = 0) const {
    cuda_->to_device(address_ + at, from, count);
  }
  void read(void* to, std::size_t count, std::size_t at = 0) const { cuda_->to_host(to, address_ + at, count); }
  void take(const CudaBuffer& other) const { cuda_->copy(address_, other.address_, bytes_); }  // of as many bytes

 private:
  std::shared_ptr<const Cuda> cuda_;
  std::uint64_t address_;
  std::size_t bytes_;
};

}  // namespace l4
