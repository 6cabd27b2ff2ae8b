// SHA-256 [FIPS 180-4], with the processor's own instructions where it has them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "storage/files.hpp"

namespace l4::storage {

// The digest of bytes that come piece by piece.
class Sha256 {
 public:
  Sha256();
  void update(std::string_view bytes);
  std::string hex() const;  // of all bytes so far: 64 lower-case hexadecimal digits

 private:
  std::array<std::uint32_t, 8> state_;
  std::array<unsigned char, 64> block_{};
  std::uint64_t count_ = 0;
};

std::string sha256(std::string_view bytes);

// Size in bytes and SHA-256 of one file.
struct FileRecord {
  std::uint64_t bytes = 0;
  std::string sha256;
};

inline bool operator==(const FileRecord& a, const FileRecord& b) { return a.bytes == b.bytes && a.sha256 == b.sha256; }
inline bool operator!=(const FileRecord& a, const FileRecord& b) { return !(a == b); }

// Read a whole file in a stream. Raises Error (L4_STORAGE) where reading fails.
FileRecord file_record(const OpenedFile& file);

}  // namespace l4::storage
