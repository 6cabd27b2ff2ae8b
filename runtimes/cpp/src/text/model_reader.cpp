#include "text/model_reader.hpp"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.hpp"
#include "text/byte_alphabet.hpp"
#include "text/refusal.hpp"

namespace l4::text {

namespace {

using json::Kind;

// The parts of "model" beside vocabulary and merges.
struct ModelSettings {
  std::string type;
  bool unknown = false;  // whether bytes without a token become another one
  bool whole_words_first = false;
};

void read_model_setting(std::string_view key, json::Reader& reader, ModelSettings& settings) {
  if (key == "type") {
    settings.type = reader.string();
  } else if (reader.peek() == Kind::null) {
    reader.null();
  } else if (key == "dropout") {
    if (reader.number() != 0) throw unsupported("dropout");
  } else if (key == "continuing_subword_prefix" || key == "end_of_word_suffix") {
    if (!reader.string().empty()) throw unsupported(std::string(key));
  } else if (key == "unk_token") {
    reader.string();
    settings.unknown = true;
  } else if (key == "byte_fallback") {
    settings.unknown |= reader.boolean();
  } else if (key == "ignore_merges") {
    settings.whole_words_first = reader.boolean();
  } else {
    reader.skip();  // "fuse_unk" too: it says how unknown tokens are joined
  }
}

void read_vocabulary(json::Reader& reader, Vocabulary& vocabulary) {
  if (reader.peek() != Kind::object) throw unsupported("a vocabulary that is not that of BPE");
  reader.object([&](std::string_view token) { vocabulary.add(token, reader.integer()); });
  vocabulary.index();
}

class MergeReader {
 public:
  explicit MergeReader(const Vocabulary& vocabulary) : vocabulary_(vocabulary) {}

  std::vector<Merge> read(json::Reader& reader) {
    std::string scratch;
    Kind kind = Kind::null;  // of all items
    reader.array([&] {
      if (kind == Kind::null) kind = reader.peek();
      if (kind == Kind::string) return read_line(reader.string_view(scratch));
      std::size_t count = 0;
      reader.array([&] {
        const std::string_view part = reader.string_view(scratch);
        if (count < 2) parts_[count].assign(part);
        ++count;
      });
      if (count != 2) throw damaged("a merge is not of two tokens");
      add(parts_[0], parts_[1]);
    });
    resolve();
    return std::move(merges_);
  }

 private:
  // The bytes of two tokens, one behind the other in bytes_, which are looked up together with others.
  struct Pending {
    std::size_t begin, cut, end;
    std::uint32_t rank_plus_1;
    std::uint64_t hashes[3];  // left, right, both
  };
  static constexpr std::size_t kTogether = 64;

  // The older form: "left right"
  void read_line(std::string_view line) {
    if (line.substr(0, 8) == "#version") return;
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
      throw damaged("the merge " + in_quotes(line) + " is not of two tokens");
    }
    add(line.substr(0, space), line.substr(space + 1));
  }

  void add(std::string_view left, std::string_view right) {
    ++rank_;
    Pending pending{bytes_.size(), 0, 0, rank_, {}};
    const bool left_is_bytes = spelled_bytes(left, bytes_);
    pending.cut = bytes_.size();
    if (!left_is_bytes || !spelled_bytes(right, bytes_)) {
      bytes_.resize(pending.begin);
      return check_unreachable(left, right);
    }
    pending.end = bytes_.size();
    pending_.push_back(pending);
    if (pending_.size() == kTogether) resolve();
  }

  // Tokens that no bytes spell come from no text; they must be in the vocabulary all the same.
  void check_unreachable(std::string_view left, std::string_view right) const {
    const std::string both = std::string(left).append(right);
    if (vocabulary_.find(left) < 0 || vocabulary_.find(right) < 0 || vocabulary_.find(both) < 0) refuse(left, right);
  }

  // Look up what waits. The memory of all of it is asked for first, so that it is waited for once.
  void resolve() {
    const std::string_view bytes = bytes_;
    const auto part = [&](const Pending& pending, int which) {
      const std::size_t begin = which == 1 ? pending.cut : pending.begin, end = which == 0 ? pending.cut : pending.end;
      return bytes.substr(begin, end - begin);
    };
    for (Pending& pending : pending_) {
      for (int which = 0; which < 3; ++which) {
        pending.hashes[which] = hash_of(part(pending, which));
        vocabulary_.prefetch(pending.hashes[which]);
      }
    }
    for (const Pending& pending : pending_) {
      const auto find = [&](int which) { return vocabulary_.find_bytes(part(pending, which), pending.hashes[which]); };
      const Merge merge{find(0), find(1), pending.rank_plus_1, find(2)};
      if (merge.left < 0 || merge.right < 0 || merge.id < 0) {
        refuse(spelling_of(part(pending, 0)), spelling_of(part(pending, 1)));
      }
      merges_.push_back(merge);
    }
    pending_.clear();
    bytes_.clear();
  }

  [[noreturn]] static void refuse(std::string_view left, std::string_view right) {
    throw damaged("the merge of " + in_quotes(left) + " and " + in_quotes(right) +
                  " names a token that the vocabulary lacks");
  }

  const Vocabulary& vocabulary_;
  std::vector<Merge> merges_;
  std::vector<Pending> pending_;
  std::string bytes_, parts_[2];
  std::uint32_t rank_ = 0;
};

}  // namespace

Bpe read_model(json::Reader& reader) {
  Bpe model;
  ModelSettings settings;
  std::vector<Merge> merges;
  std::string_view early_merges;  // if they come before the vocabulary
  bool has_vocabulary = false, has_merges = false;
  reader.object([&](std::string_view key) {
    if (key == "vocab") {
      if (std::exchange(has_vocabulary, true)) throw damaged("its model has two vocabularies");
      read_vocabulary(reader, model.vocabulary);
    } else if (key == "merges") {
      if (std::exchange(has_merges, true)) throw damaged("its model has two lists of merges");
      if (has_vocabulary) {
        merges = MergeReader(model.vocabulary).read(reader);
      } else {
        early_merges = reader.skip();
      }
    } else {
      read_model_setting(key, reader, settings);
    }
  });
  if (settings.type != "BPE") throw unsupported("the model " + in_quotes(settings.type));
  if (!has_vocabulary || !has_merges) throw damaged("its model lacks vocab or merges");
  if (!early_merges.empty()) {
    json::Reader again(early_merges, reader.where(), {early_merges.size()});
    merges = MergeReader(model.vocabulary).read(again);
  }
  model.merges = Merges(merges);
  model.whole_words_first = settings.whole_words_first;
  for (int byte = 0; byte < 256; ++byte) {
    const char one = static_cast<char>(byte);
    model.bytes[static_cast<std::size_t>(byte)] = model.vocabulary.find_bytes({&one, 1});
    if (settings.unknown && model.bytes[static_cast<std::size_t>(byte)] < 0) {
      throw unsupported("a vocabulary without all bytes that has a token for unknown ones");
    }
  }
  return model;
}

}  // namespace l4::text
