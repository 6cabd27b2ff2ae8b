#include "storage/safetensors_writer.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <utility>

#include "base/error.hpp"
#include "base/json.hpp"
#include "storage/safetensors.hpp"

namespace l4::storage {

namespace {

Error unwritable(const std::string& path, int code) {
  return storage_error(path + ": cannot be written (" + system_reason(code) + "); check free space and permissions");
}

// A file that is written beside the one that it becomes, and is gone if it never does.
class PartialFile {
 public:
  explicit PartialFile(const std::string& path) : path_(path), partial_(beside(path)) {
    descriptor_ = open(partial_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0) throw unwritable(path_, errno);
  }
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;
  ~PartialFile() {
    if (descriptor_ >= 0) close(descriptor_);
    if (!done_) unlink(partial_.c_str());
  }

  void write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::write(descriptor_, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) throw unwritable(path_, errno);
      bytes.remove_prefix(static_cast<std::size_t>(count));
    }
  }

  void finish() {
    if (close(std::exchange(descriptor_, -1)) != 0) throw unwritable(path_, errno);
    if (std::rename(partial_.c_str(), path_.c_str()) != 0) throw unwritable(path_, errno);
    done_ = true;
  }

 private:
  // Not by the process's number: in a container that is the same after every restart.
  static std::string beside(const std::string& path) {
    const std::size_t name = path.rfind('/') + 1;  // 0 where there is no slash
    char tail[24];
    std::snprintf(tail, sizeof tail, ".%08x.partial", static_cast<unsigned>(std::random_device()()));
    return path.substr(0, name) + "." + path.substr(name) + tail;
  }

  std::string path_, partial_;
  int descriptor_ = -1;
  bool done_ = false;
};

std::uint64_t bytes_of(const NewTensor& tensor) {
  std::uint64_t bits = dtype_bits(tensor.dtype);
  for (const std::int64_t size : tensor.shape) bits *= static_cast<std::uint64_t>(size);
  return bits / 8;
}

// What precedes the tensors' bytes, padded with spaces to 8 bytes.
std::string header_of(const std::vector<std::pair<std::string, std::string>>& metadata,
                      const std::vector<NewTensor>& tensors) {
  json::Object header, strings;
  for (const auto& [key, value] : metadata) strings.add(key, value);
  header.add("__metadata__", std::move(strings));
  std::uint64_t offset = 0;
  for (const NewTensor& tensor : tensors) {
    json::Array shape;
    for (const std::int64_t size : tensor.shape) shape.emplace_back(size);
    const auto begin = static_cast<std::int64_t>(offset);
    offset += bytes_of(tensor);
    json::Object entry;
    entry.add("dtype", tensor.dtype);
    entry.add("shape", std::move(shape));
    entry.add("data_offsets", json::Array{begin, static_cast<std::int64_t>(offset)});
    header.add(tensor.name, std::move(entry));
  }
  std::string text = json::dump(std::move(header), false, false);
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string bytes;
  for (int shift = 0; shift < 64; shift += 8) bytes.push_back(static_cast<char>(std::uint64_t{text.size()} >> shift));
  return bytes + text;
}

}  // namespace

void write_safetensors(const std::string& path, const std::vector<std::pair<std::string, std::string>>& metadata,
                       const std::vector<NewTensor>& tensors) {
  PartialFile file(path);
  file.write(header_of(metadata, tensors));
  for (const NewTensor& tensor : tensors) {
    std::uint64_t written = 0;
    tensor.pieces([&](std::string_view piece) {
      file.write(piece);
      written += piece.size();
    });
    if (written != bytes_of(tensor)) {
      throw std::logic_error("tensor " + tensor.name + ": other bytes given than it has");
    }
  }
  file.finish();
}

}  // namespace l4::storage
