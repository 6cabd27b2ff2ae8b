#include "engine/file_checks.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.hpp"

namespace l4::engine {

namespace {

constexpr std::uint64_t kDigestLimit = 64ull << 20;
constexpr std::uint64_t kGraphLimit = 16ull << 20;  // that of 48 layers and 128 experts has 1.2 MB without weights
constexpr const char* kRemedy = "build or copy the engine again";

std::vector<std::string> graph_files(const Manifest& manifest) {
  std::vector<std::string> names;
  for (const auto& [name, graph] : manifest.graphs) {
    names.push_back(graph.file);
    for (const EnginePart& part : graph.parts) names.push_back(part.graph);
  }
  return names;
}

void check_graph_sizes(const std::string& directory, const Manifest& manifest) {
  for (const std::string& name : graph_files(manifest)) {
    const std::uint64_t size = manifest.files.find(name)->bytes;
    if (size <= kGraphLimit) continue;
    throw bad_input(storage::in_directory(directory, name) + ": " + std::to_string(size) +
                    " bytes, and a graph has at most " + std::to_string(kGraphLimit) + "; " + kRemedy);
  }
}

void check_digest(const std::string& directory, const std::string& name, const storage::FileRecord& record) {
  if (record.bytes > kDigestLimit) return;
  const storage::OpenedFile file(storage::in_directory(directory, name), kRemedy);
  if (storage::file_record(file) != record) throw bad_input(directory + ": " + name + " has been changed; " + kRemedy);
}

// What is wrong with a file, told after its name; nothing where it has the right size.
std::string size_fault(const std::string& directory, const std::string& name, std::uint64_t expected) {
  const auto size = storage::regular_size(storage::in_directory(directory, name));
  if (!size) return name + " is missing";
  if (*size == expected) return "";
  return name + " has " + std::to_string(*size) + " bytes, not " + std::to_string(expected);
}

// Run `work(index)` for each index, on as many threads as there are cores; the first index's error is raised.
template <typename Work>
void on_threads(std::size_t count, const Work& work) {
  std::atomic<std::size_t> next{0};
  std::vector<std::exception_ptr> errors(count);
  const auto run = [&] {
    for (std::size_t i = next++; i < count; i = next++) {
      try {
        work(i);
      } catch (...) {
        errors[i] = std::current_exception();
      }
    }
  };
  std::vector<std::thread> threads;
  const std::size_t cores = std::max(1u, std::thread::hardware_concurrency());
  threads.reserve(cores);  // a failure while they run would end the process
  try {
    while (threads.size() + 1 < std::min(cores, count)) threads.emplace_back(run);
  } catch (const std::system_error&) {
    // no more threads: those that there are do it
  }
  run();
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

}  // namespace

std::future<void> check_files(const std::string& directory, const std::shared_ptr<const Manifest>& manifest) {
  check_graph_sizes(directory, *manifest);
  for (const auto& [name, record] : manifest->files) {
    const auto size = storage::regular_size(storage::in_directory(directory, name));
    if (!size) throw bad_input(directory + ": " + name + " is missing or not a regular file; " + kRemedy);
    if (*size != record.bytes) {
      throw bad_input(storage::in_directory(directory, name) + ": " + std::to_string(*size) + " bytes instead of " +
                      std::to_string(record.bytes) + "; " + kRemedy);
    }
  }
  const std::vector<std::string> graphs = graph_files(*manifest);
  for (const std::string& name : graphs) check_digest(directory, name, *manifest->files.find(name));
  return std::async([directory, manifest, graphs] {
    for (const auto& [name, record] : manifest->files) {
      if (std::find(graphs.begin(), graphs.end(), name) == graphs.end()) check_digest(directory, name, record);
    }
  });
}

Manifest verify_files(const std::string& directory) {
  Manifest manifest = load_manifest(directory);
  std::vector<std::string> faults;
  std::vector<std::size_t> right_sizes;
  for (const auto& [name, record] : manifest.files) {
    faults.push_back(size_fault(directory, name, record.bytes));
    if (faults.back().empty()) right_sizes.push_back(faults.size() - 1);
  }
  on_threads(right_sizes.size(), [&](std::size_t i) {
    const auto& [name, record] = manifest.files[right_sizes[i]];
    const storage::OpenedFile file(storage::in_directory(directory, name), kRemedy);
    if (storage::file_record(file) != record) faults[right_sizes[i]] = name + " has been changed";
  });
  std::string found;
  for (const std::string& fault : faults) {
    if (!fault.empty()) (found += found.empty() ? "" : "; ") += fault;
  }
  if (!found.empty()) throw verification_failed(directory + ": " + found + "; " + kRemedy);
  return manifest;
}

}  // namespace l4::engine
