#include "storage/files.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/error.hpp"

namespace l4::storage {

namespace {

Error unreadable(const std::string& path, int code) {
  return storage_error(path + ": cannot be read (" + system_reason(code) + "); check its permissions and the disk");
}

// None where there is nothing of that name.
std::optional<struct stat> status_of(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) == 0) return status;
  if (errno == ENOENT || errno == ENOTDIR) return std::nullopt;
  throw unreadable(path, errno);
}

int open_regular(const std::string& path, const std::string& remedy) {
  if (!regular_size(path)) {
    const char* what = access(path.c_str(), F_OK) == 0 ? "not a regular file" : "no such file";
    throw bad_input(path + ": " + what + "; " + remedy);
  }
  const int descriptor = open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (descriptor < 0) throw unreadable(path, errno);
  return descriptor;
}

}  // namespace

std::string in_directory(std::string_view directory, std::string_view name) {
  std::string path(directory);
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  if (path != "/") path += '/';
  return path.append(name);
}

bool is_there(const std::string& path) { return status_of(path).has_value(); }

std::optional<std::uint64_t> regular_size(const std::string& path) {
  const std::optional<struct stat> status = status_of(path);
  if (!status || !S_ISREG(status->st_mode)) return std::nullopt;
  return static_cast<std::uint64_t>(status->st_size);
}

OpenedFile::OpenedFile(std::string path, std::string remedy)
    : path_(std::move(path)), remedy_(std::move(remedy)), descriptor_(open_regular(path_, remedy_)) {
  struct stat status;
  const bool known = fstat(descriptor_, &status) == 0;
  if (!known || !S_ISREG(status.st_mode)) {  // exchanged a moment ago
    close(descriptor_);
    throw bad_input(path_ + ": not a regular file; " + remedy_);
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
}

OpenedFile::OpenedFile(OpenedFile&& other) noexcept
    : path_(std::move(other.path_)),
      remedy_(std::move(other.remedy_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_) {}

OpenedFile::~OpenedFile() {
  if (descriptor_ >= 0) close(descriptor_);
}

std::uint64_t OpenedFile::size_now() const {
  struct stat status;
  if (fstat(descriptor_, &status) != 0) throw unreadable(path_, errno);
  return static_cast<std::uint64_t>(status.st_size);
}

std::size_t OpenedFile::read_at(std::uint64_t at, char* to, std::size_t count) const {
  std::size_t done = 0;
  while (done < count) {
    const ssize_t got = pread(descriptor_, to + done, count - done, static_cast<off_t>(at + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw unreadable(path_, errno);
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

std::string read_small(const std::string& path, std::uint64_t limit, const std::string& remedy) {
  const OpenedFile file(path, remedy);
  std::string data;
  if (file.size() <= limit) {
    data.resize(file.size() + 1);  // one more, to notice a file that grows
    data.resize(file.read_at(0, data.data(), data.size()));
  }
  if (file.size() > limit || data.size() > file.size()) {
    throw bad_input(path + ": more than " + std::to_string(file.size() > limit ? limit : file.size()) + " bytes; " +
                    remedy);
  }
  return data;
}

MappedFile::MappedFile(OpenedFile file) : file_(std::move(file)) {
  if (file_.size() == 0) return;
  void* data = mmap(nullptr, file_.size(), PROT_READ, MAP_SHARED, file_.descriptor(), 0);
  if (data == MAP_FAILED) {
    throw storage_error(file_.path() + ": cannot be mapped (" + system_reason(errno) + "); check the file system");
  }
  data_ = static_cast<const char*>(data);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : file_(std::move(other.file_)), data_(std::exchange(other.data_, nullptr)) {}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<char*>(data_), file_.size());
}

std::string_view MappedFile::bytes() const {
  const std::uint64_t now = file_.size_now();
  if (now < file_.size()) {
    throw bad_input(file_.path() + ": shrank from " + std::to_string(file_.size()) + " to " + std::to_string(now) +
                    " bytes while open; " + file_.remedy());
  }
  return {data_, static_cast<std::size_t>(file_.size())};
}

}  // namespace l4::storage
