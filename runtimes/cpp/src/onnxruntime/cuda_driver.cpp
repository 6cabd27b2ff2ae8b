#include "onnxruntime/cuda_driver.hpp"

#include <dlfcn.h>

#include <fstream>
#include <new>

#include "base/error.hpp"

namespace l4 {
namespace {

constexpr const char* library_name = "libcuda.so.1";
constexpr const char* remedy = ", or open it with the provider \"cpu\"";
constexpr int out_of_memory = 2, capability_major = 75, capability_minor = 76;

template <typename Function>
void find(void* library, Function& function, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) {
    throw environment_lacks(std::string("the NVIDIA driver has no ") + name + "; install a newer one");
  }
}

}  // namespace

struct Cuda::Functions {
  int (*init)(unsigned);
  int (*device_get)(int*, int);
  int (*retain)(void**, int);
  int (*set_current)(void*);
  int (*device_name)(char*, int, int);
  int (*attribute)(int*, int, int);
  int (*driver_version)(int*);
  int (*allocate)(std::uint64_t*, std::size_t);
  int (*fill)(std::uint64_t, unsigned char, std::size_t);
  int (*free)(std::uint64_t);
  int (*to_device)(std::uint64_t, const void*, std::size_t);
  int (*to_host)(void*, std::uint64_t, std::size_t);
  int (*copy)(std::uint64_t, std::uint64_t, std::size_t);
  int (*synchronize)(void*);

  explicit Functions(void* library) {
    find(library, init, "cuInit");
    find(library, device_get, "cuDeviceGet");
    find(library, retain, "cuDevicePrimaryCtxRetain");
    find(library, set_current, "cuCtxSetCurrent");
    find(library, device_name, "cuDeviceGetName");
    find(library, attribute, "cuDeviceGetAttribute");
    find(library, driver_version, "cuDriverGetVersion");
    find(library, allocate, "cuMemAlloc_v2");
    find(library, fill, "cuMemsetD8_v2");
    find(library, free, "cuMemFree_v2");
    find(library, to_device, "cuMemcpyHtoD_v2");
    find(library, to_host, "cuMemcpyDtoH_v2");
    find(library, copy, "cuMemcpyDtoD_v2");
    find(library, synchronize, "cuStreamSynchronize");
  }
};

std::shared_ptr<Cuda> Cuda::open(const std::string& purpose) { return std::shared_ptr<Cuda>(new Cuda(purpose)); }

Cuda::~Cuda() = default;

Cuda::Cuda(const std::string& purpose) {
  void* library = dlopen(library_name, RTLD_NOW | RTLD_LOCAL);  // stays loaded, as ONNX Runtime has it loaded too
  if (library == nullptr) {
    throw environment_lacks(purpose + ", and there is no NVIDIA driver (" + library_name + "): install it" + remedy);
  }
  functions_ = std::make_unique<Functions>(library);
  if (const int code = functions_->init(0)) {
    throw environment_lacks(purpose + ", and the NVIDIA driver finds no GPU (CUDA error " + std::to_string(code) +
                            "): look for one with nvidia-smi" + remedy);
  }
  int device = 0, version = 0;
  char name[256] = {};
  check(functions_->device_get(&device, 0), "cuDeviceGet");
  check(functions_->retain(&context_, device), "cuDevicePrimaryCtxRetain");
  check(functions_->device_name(name, sizeof(name) - 1, device), "cuDeviceGetName");
  check(functions_->attribute(&capability_.first, capability_major, device), "cuDeviceGetAttribute");
  check(functions_->attribute(&capability_.second, capability_minor, device), "cuDeviceGetAttribute");
  check(functions_->driver_version(&version), "cuDriverGetVersion");
  name_ = printable(name);
  driver_ = {version / 1000, version % 1000 / 10};
}

std::string Cuda::module() const {
  std::ifstream file("/sys/module/nvidia/version");
  std::string version;
  std::getline(file, version);
  return printable(version, 60);
}

std::uint64_t Cuda::allocate(std::size_t bytes) const {
  enter();
  std::uint64_t address = 0;
  check(functions_->allocate(&address, bytes), "cuMemAlloc");
  try {
    check(functions_->fill(address, 0, bytes), "cuMemsetD8");
    settle();
  } catch (...) {
    free(address);
    throw;
  }
  return address;
}

// A failure is ignored: the GPU is lost, and the call that used it has failed.
void Cuda::free(std::uint64_t address) const noexcept {
  functions_->set_current(context_);
  functions_->free(address);
}

void Cuda::to_device(std::uint64_t to, const void* from, std::size_t bytes) const {
  if (bytes == 0) return;
  enter();
  check(functions_->to_device(to, from, bytes), "cuMemcpyHtoD");
  settle();
}

void Cuda::to_host(void* to, std::uint64_t from, std::size_t bytes) const {
  if (bytes == 0) return;
  enter();
  check(functions_->to_host(to, from, bytes), "cuMemcpyDtoH");
}

void Cuda::copy(std::uint64_t to, std::uint64_t from, std::size_t bytes) const {
  enter();
  check(functions_->copy(to, from, bytes), "cuMemcpyDtoD");
  settle();
}

void Cuda::enter() const { check(functions_->set_current(context_), "cuCtxSetCurrent"); }

void Cuda::settle() const { check(functions_->synchronize(nullptr), "cuStreamSynchronize"); }

void Cuda::check(int code, const char* function) const {
  if (code == out_of_memory) throw std::bad_alloc();
  if (code != 0) throw bad_input(std::string(function) + ": CUDA error " + std::to_string(code));
}

}  // namespace l4
