// Executes cases of the conformance set with the native runtime: tests/conformance/README.md.
//
//   conformance DIRECTORY OUT SAVED [at once]
//
// The results of the cases in DIRECTORY lie in OUT afterwards; sessions are loaded from SAVED. With "at once" every
// case has a thread of its own, on one engine. The variable L4EXPORT_ONNXRUNTIME says where ONNX Runtime is.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "executor.hpp"

namespace conformance {
namespace {

l4::json::Value read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return l4::json::parse(text, path);
}

Shared open(const std::string& directory, const std::string& out, const std::string& saved) {
  const std::string path = directory + "/engine";
  auto engine = made<l4_engine>(l4_engine_close, [&](l4_engine** opened) {
    l4_engine_options options = L4_ENGINE_OPTIONS_DEFAULT;
    options.threads = 1;
    options.verify = 1;
    return l4_engine_open(path.c_str(), &options, opened);
  });
  Handle<l4_tokenizer> tokenizer(nullptr, l4_tokenizer_close);
  if (std::ifstream(path + "/tokenizer.json").good()) {
    tokenizer = made<l4_tokenizer>(l4_tokenizer_close,
                                   [&](l4_tokenizer** opened) { return l4_tokenizer_open(path.c_str(), opened); });
  }
  return {directory, out, saved, std::move(engine), std::move(tokenizer),
          l4::storage::TensorFile(directory + "/pictures.safetensors")};
}

void run_case(const Shared& shared, const std::string& name) {
  const l4::json::Value calls = read(shared.directory + "/" + name);
  Executor executor(shared);
  l4::json::Array results;
  for (const l4::json::Value& call : calls.array()) results.push_back(executor.run(results.size(), call));
  std::ofstream(shared.out + "/" + name, std::ios::binary) << l4::json::dump(std::move(results)) << "\n";
  const std::string tensors = name.substr(0, name.rfind('.')) + ".safetensors";
  l4::storage::write_safetensors(shared.out + "/" + tensors, {}, executor.tensors());
}

int run(const std::vector<std::string>& arguments) {
  if (arguments.size() != 3 && !(arguments.size() == 4 && arguments[3] == "at once")) {
    std::fprintf(stderr, "usage: conformance DIRECTORY OUT SAVED [\"at once\"]\n");
    return 2;
  }
  const Shared shared = open(arguments[0], arguments[1], arguments[2]);
  const l4::json::Value cases = read(arguments[0] + "/cases.json");
  std::vector<std::thread> threads;
  for (const l4::json::Value& name : cases.array()) {
    if (arguments.size() == 4) {
      threads.emplace_back([&shared, &name] { run_case(shared, name.string()); });
    } else {
      run_case(shared, name.string());
    }
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

}  // namespace
}  // namespace conformance

int main(int count, char** arguments) {
  try {
    return conformance::run({arguments + 1, arguments + std::max(count, 1)});
  } catch (const conformance::Refused& refused) {
    std::fprintf(stderr, "%s\n", refused.message.c_str());
    return refused.status;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
