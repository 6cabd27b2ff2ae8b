// Runs a fuzz target where there is no libFuzzer: over the files that it is given (of a directory, those in it), over
// every beginning of each, and over copies with one byte changed. Sanitizers end the program where something is wrong.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;
constexpr std::size_t kMostVariants = 500;  // of each kind, of one file: a run takes seconds

// An own allocation, of exactly that size, so that a read beyond the end is seen.
void run(const Bytes& bytes, std::size_t size) {
  const Bytes input(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
  LLVMFuzzerTestOneInput(input.data(), input.size());
}

std::size_t run_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  Bytes bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const std::size_t stride = bytes.size() / kMostVariants + 1;
  std::size_t runs = 1;
  run(bytes, bytes.size());
  for (std::size_t at = 0; at < bytes.size(); at += stride, runs += 2) {
    run(bytes, at);
    const std::uint8_t original = bytes[at];
    bytes[at] = static_cast<std::uint8_t>(original ^ (1u << (at % 8)));
    run(bytes, bytes.size());
    bytes[at] = original;
  }
  return runs;
}

}  // namespace

int main(int count, char** arguments) {
  std::size_t files = 0, runs = 0;
  for (int index = 1; index < count; ++index) {
    if (std::filesystem::is_directory(arguments[index])) {
      for (const auto& entry : std::filesystem::directory_iterator(arguments[index])) ++files, runs += run_file(entry);
    } else {
      ++files, runs += run_file(arguments[index]);
    }
  }
  std::printf("%zu files, %zu runs\n", files, runs);
  return files == 0;
}
