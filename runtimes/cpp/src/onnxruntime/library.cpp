#include "onnxruntime/library.hpp"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <utility>

namespace l4 {
namespace {

constexpr const char* variable = "L4EXPORT_ONNXRUNTIME";
constexpr const char* remedy =
    "; install ONNX Runtime 1.21 or later and give the path of its libonnxruntime.so, in the options or in "
    "L4EXPORT_ONNXRUNTIME";

struct Found {
  void* library;
  std::string path;
};

// A path that the caller has chosen, or a name for which the loader searches.
void* opened(const std::string& path) { return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL); }

Found find(const std::string& given) {
  const char* chosen = std::getenv(variable);
  const std::string path = !given.empty() ? given : chosen != nullptr ? chosen : "";
  if (!path.empty()) {
    if (void* library = opened(path)) return {library, path};
    const char* why = dlerror();
    throw environment_lacks(printable(path) + ": cannot be opened as ONNX Runtime (" +
                            printable(why != nullptr ? why : "no reason given", 200) + ")" + remedy);
  }
  for (const char* name : {"libonnxruntime.so.1", "libonnxruntime.so"}) {
    if (void* library = opened(name)) return {library, name};
  }
  throw environment_lacks(std::string("running an engine needs ONNX Runtime, and the loader finds no "
                                      "libonnxruntime.so.1") + remedy);
}

// The first two numbers of a version such as "1.21.0", by which versions are older and newer; 0, 0 where it has none.
std::pair<int, int> numbers_of(const std::string& version) {
  std::pair<int, int> numbers{0, 0};
  const bool read = std::sscanf(version.c_str(), "%9d.%9d", &numbers.first, &numbers.second) == 2;
  return read ? numbers : std::pair(0, 0);
}

}  // namespace

bool OnnxRuntimeFailure::out_of_memory() const {
  std::string text = what();
  for (char& letter : text) letter = letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter + 32) : letter;
  for (const char* words : {"failed to allocate memory", "out of memory", "available memory", "bad_alloc"}) {
    if (text.find(words) != std::string::npos) return true;
  }
  return false;
}

std::shared_ptr<const OnnxRuntime> OnnxRuntime::open(const std::string& path) {
  const Found found = find(path);
  const std::string where = printable(found.path);
  using GetApiBase = const OrtApiBase* (*)();
  const auto get_base = reinterpret_cast<GetApiBase>(dlsym(found.library, "OrtGetApiBase"));
  const OrtApiBase* base = get_base != nullptr ? get_base() : nullptr;
  if (base == nullptr) throw environment_lacks(where + ": is not ONNX Runtime (it has no OrtGetApiBase)" + remedy);
  const char* said = base->GetVersionString();
  const std::string version = printable(said != nullptr ? said : "of no version", 40);
  // GetApi says too that it does not serve the table, but it prints a line
  const bool serves = numbers_of(version) >= std::pair(1, ORT_API_VERSION);
  const OrtApi* api = serves ? base->GetApi(ORT_API_VERSION) : nullptr;
  if (api == nullptr) throw environment_lacks(where + ": is ONNX Runtime " + version + ", which is too old" + remedy);
  return std::shared_ptr<const OnnxRuntime>(new OnnxRuntime(found.path, *base, *api));
}

OnnxRuntime::OnnxRuntime(std::string path, const OrtApiBase& base, const OrtApi& api)
    : path_(std::move(path)), version_(printable(base.GetVersionString(), 40)), base_(&base), api_(&api),
      environment_(nullptr, api.ReleaseEnv) {
  OrtEnv* environment = nullptr;
  // what fails is returned, and the caller reports it in one line
  check(api_->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "l4export", &environment));
  environment_.reset(environment);
}

void OnnxRuntime::require(const std::string& least, const std::string& graph) const {
  if (numbers_of(version_) >= numbers_of(least)) return;
  throw environment_lacks(graph + ": needs ONNX Runtime " + least + " or later, and " + printable(path_) + " is " +
                          version_ + "; install a newer one, and give its path where it is not found");
}

void OnnxRuntime::fail(OrtStatus* status) const {
  const Owned<OrtStatus> owned(status, api_->ReleaseStatus);
  const char* words = api_->GetErrorMessage(status);
  throw OnnxRuntimeFailure(words != nullptr ? words : "no reason given");
}

}  // namespace l4
