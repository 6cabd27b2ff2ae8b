// Opens files of which nobody knows what they are: regular ones only, without ever waiting.
//
// Links are followed: the cache of a model hub consists of them. What they lead to must be a regular file all the same.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace l4::storage {

// The path of a file in a directory.
std::string in_directory(std::string_view directory, std::string_view name);

// Whether there is anything of that name. Raises Error (L4_STORAGE) where it cannot be looked at.
bool is_there(const std::string& path);

// Bytes of a regular file, or of the one that a link leads to; none for anything else and for what is not there.
// Raises Error (L4_STORAGE) where it cannot be looked at.
std::optional<std::uint64_t> regular_size(const std::string& path);

// A regular file, opened to be read. Devices are not even opened, and pipes never waited for.
class OpenedFile {
 public:
  // `remedy`: what to do about anything else, such as "download it again". Raises Error: L4_BAD_INPUT where there is no
  // such file or not a regular one, L4_STORAGE where it cannot be opened.
  OpenedFile(std::string path, std::string remedy);
  ~OpenedFile();
  OpenedFile(OpenedFile&& other) noexcept;
  OpenedFile(const OpenedFile&) = delete;
  OpenedFile& operator=(const OpenedFile&) = delete;
  OpenedFile& operator=(OpenedFile&&) = delete;

  const std::string& path() const { return path_; }
  const std::string& remedy() const { return remedy_; }
  int descriptor() const { return descriptor_; }
  std::uint64_t size() const { return size_; }  // in bytes, when it was opened
  std::uint64_t size_now() const;               // in bytes

  // Up to `count` bytes from `at` on; fewer at the end of the file. Raises Error (L4_STORAGE) where reading fails.
  std::size_t read_at(std::uint64_t at, char* to, std::size_t count) const;

 private:
  std::string path_, remedy_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

// The bytes of a regular file of at most `limit` bytes. Raises as OpenedFile, and L4_BAD_INPUT for a larger one.
std::string read_small(const std::string& path, std::uint64_t limit, const std::string& remedy);

// A regular file, mapped into memory read-only. Processes that map one file share its pages.
class MappedFile {
 public:
  explicit MappedFile(OpenedFile file);  // raises Error (L4_STORAGE) where it cannot be mapped
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  MappedFile& operator=(MappedFile&&) = delete;

  const OpenedFile& file() const { return file_; }

  // All bytes. Raises Error (L4_BAD_INPUT) where the file has become shorter: reading what is lost would kill the
  // process.
  std::string_view bytes() const;

 private:
  OpenedFile file_;
  const char* data_ = nullptr;
};

}  // namespace l4::storage
