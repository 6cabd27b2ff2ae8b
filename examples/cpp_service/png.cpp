#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <utility>

#include <png.h>

#include "picture_files.hpp"

namespace service {
namespace {

// libpng with an owner. Where it fails, it leaves by longjmp.
class Decoder {
 public:
  explicit Decoder(const Bytes& file) : file_(file) {
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, fail, [](png_structp, png_const_charp) {});
    info = png == nullptr ? nullptr : png_create_info_struct(png);
    if (info == nullptr) {
      close();
      throw Damaged("no memory");
    }
    png_set_read_fn(png, this, read);
  }
  ~Decoder() { close(); }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // Call libpng. A jump leaves `calls` in their midst: nothing may be made there that has a destructor.
  template <typename Calls>
  void run(const Calls& calls) {
    if (setjmp(jump_) != 0) throw Damaged(message_);
    calls();
  }

  png_structp png = nullptr;
  png_infop info = nullptr;

 private:
  void close() { png_destroy_read_struct(&png, &info, nullptr); }

  [[noreturn]] static void fail(png_structp png, png_const_charp message) {
    auto* self = static_cast<Decoder*>(png_get_error_ptr(png));
    std::snprintf(self->message_, sizeof self->message_, "%s", message);
    std::longjmp(self->jump_, 1);
  }

  static void read(png_structp png, png_bytep to, std::size_t count) {
    auto* self = static_cast<Decoder*>(png_get_io_ptr(png));
    if (count > self->file_.size() - self->at_) png_error(png, "the file ends early");
    std::memcpy(to, self->file_.data() + self->at_, count);
    self->at_ += count;
  }

  const Bytes& file_;
  std::size_t at_ = 0;
  std::jmp_buf jump_;
  char message_[80] = {};
};

// Pixels of red, green, blue and opacity on white, in place; rounded as Pillow rounds them.
void lay_on_white(Bytes& rgba) {
  const std::size_t count = rgba.size() / 4;
  for (std::size_t i = 0; i < count; ++i) {
    const unsigned opacity = rgba[4 * i + 3];
    for (std::size_t c = 0; c < 3; ++c) {
      const unsigned sum = 64 * (rgba[4 * i + c] * opacity + 255 * (255 - opacity) + 128);
      rgba[3 * i + c] = static_cast<std::uint8_t>((sum + (sum >> 8)) >> 14);
    }
  }
  rgba.resize(3 * count);
}

// EXIF's, or else XMP's.
int orientation_in(const Decoder& decoder) {
  png_uint_32 size = 0;
  png_bytep exif = nullptr;
  if (png_get_eXIf_1(decoder.png, decoder.info, &size, &exif) != 0) {
    const int found = exif_orientation(exif, size);
    if (found != 0) return found;
  }
  png_textp texts = nullptr;
  const int count = png_get_text(decoder.png, decoder.info, &texts, nullptr);
  for (int i = 0; i < count; ++i) {
    if (std::string_view(texts[i].key) == "XML:com.adobe.xmp") return xmp_orientation(texts[i].text);
  }
  return 0;
}

}  // namespace

Stored stored_png(const Bytes& file) {
  Decoder decoder(file);
  const png_structp png = decoder.png;
  const png_infop info = decoder.info;
  png_uint_32 width = 0, height = 0;
  decoder.run([&] {
    png_read_info(png, info);
    width = png_get_image_width(png, info);
    height = png_get_image_height(png, info);
  });
  check_size(width, height);
  const std::size_t line = std::size_t{4} * width;  // with opacity, which is 255 where the file has none
  Bytes rgba(line * height);
  std::vector<std::uint8_t*> rows(height);
  for (std::size_t row = 0; row < height; ++row) rows[row] = rgba.data() + line * row;
  decoder.run([&] {
    png_set_expand(png);    // palettes, fewer than 8 bits, a colour that is transparent
    png_set_strip_16(png);  // the higher 8 bits
    png_set_gray_to_rgb(png);
    png_set_add_alpha(png, 255, PNG_FILLER_AFTER);
    png_set_interlace_handling(png);
    png_read_image(png, rows.data());
  });
  try {
    decoder.run([&] { png_read_end(png, info); });  // EXIF may stand at the end
  } catch (const Damaged&) {
    // all pixels are there
  }
  lay_on_white(rgba);
  return {{std::move(rgba), width, height}, orientation_in(decoder)};
}

}  // namespace service
