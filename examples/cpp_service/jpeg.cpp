#include <csetjmp>
#include <cstdio>

#include <jpeglib.h>

#include <jerror.h>

#include "picture_files.hpp"

namespace service {
namespace {

constexpr int kMostScans = 100;  // a progressive file has about ten, and each of them costs a pass over all pixels
constexpr int kApplication1 = JPEG_APP0 + 1;  // the marker of EXIF and XMP

// libjpeg with an owner. Where it fails, it leaves by longjmp.
class Decoder {
 public:
  Decoder() {
    info.err = jpeg_std_error(&errors_);
    info.client_data = this;
    errors_.error_exit = [](j_common_ptr common) {
      common->err->format_message(common, of(common).message_);
      std::longjmp(of(common).jump_, 1);
    };
    errors_.emit_message = [](j_common_ptr common, int) {  // of other damages it warns and goes on, as in Pillow
      if (common->err->msg_code == JWRN_JPEG_EOF) common->err->error_exit(common);
    };
    progress_.progress_monitor = [](j_common_ptr common) {
      if (of(common).info.input_scan_number <= kMostScans) return;
      std::snprintf(of(common).message_, JMSG_LENGTH_MAX, "more than %d scans", kMostScans);
      std::longjmp(of(common).jump_, 1);
    };
  }
  ~Decoder() { jpeg_destroy_decompress(&info); }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // Call libjpeg. A jump leaves `calls` in their midst: nothing may be made there that has a destructor.
  template <typename Calls>
  void run(const Calls& calls) {
    if (setjmp(jump_) != 0) throw Damaged(message_);
    calls();
  }

  void open(const Bytes& file) {
    run([&] {
      jpeg_create_decompress(&info);
      info.progress = &progress_;
      jpeg_mem_src(&info, file.data(), static_cast<unsigned long>(file.size()));
      jpeg_save_markers(&info, kApplication1, 0xFFFF);
      jpeg_read_header(&info, TRUE);
    });
  }

  jpeg_decompress_struct info{};

 private:
  static Decoder& of(j_common_ptr common) { return *static_cast<Decoder*>(common->client_data); }

  jpeg_error_mgr errors_{};
  jpeg_progress_mgr progress_{};
  std::jmp_buf jump_;
  char message_[JMSG_LENGTH_MAX] = {};
};

// EXIF's, or else XMP's.
int orientation_in(const jpeg_decompress_struct& info) {
  constexpr std::string_view exif("Exif\0\0", 6), xmp("http://ns.adobe.com/xap/1.0/\0", 29);
  int of_xmp = 0;
  for (const jpeg_marker_struct* marker = info.marker_list; marker != nullptr; marker = marker->next) {
    const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (data.substr(0, exif.size()) == exif) {
      const int found = exif_orientation(marker->data + exif.size(), data.size() - exif.size());
      if (found != 0) return found;
    }
    if (data.substr(0, xmp.size()) == xmp) of_xmp = xmp_orientation(data.substr(xmp.size()));
  }
  return of_xmp;
}

// Colours of printing as Pillow shows them. Files have them inverted, as Adobe began to do.
void from_cmyk(const std::uint8_t* cmyk, std::size_t count, std::uint8_t* rgb) {
  for (std::size_t i = 0; i < count; ++i) {
    const int light = cmyk[4 * i + 3];
    for (std::size_t c = 0; c < 3; ++c) {
      const int product = (255 - cmyk[4 * i + c]) * light + 128;
      rgb[3 * i + c] = static_cast<std::uint8_t>(light - ((product + (product >> 8)) >> 8));
    }
  }
}

}  // namespace

Stored stored_jpeg(const Bytes& file) {
  Decoder decoder;
  jpeg_decompress_struct& info = decoder.info;
  decoder.open(file);
  check_size(info.image_width, info.image_height);
  const bool is_printing = info.num_components == 4;
  info.out_color_space = is_printing ? JCS_CMYK : JCS_RGB;
  const std::size_t width = info.image_width, line = 3 * width;
  Stored stored{{Bytes(line * info.image_height), info.image_width, info.image_height}, orientation_in(info)};
  Bytes inks(is_printing ? 4 * width : 0);
  decoder.run([&] {
    jpeg_start_decompress(&info);
    while (info.output_scanline < info.output_height) {
      std::uint8_t* const rgb = stored.pixels.rgb.data() + line * info.output_scanline;
      JSAMPROW row = is_printing ? inks.data() : rgb;
      jpeg_read_scanlines(&info, &row, 1);
      if (is_printing) from_cmyk(inks.data(), width, rgb);
    }
    jpeg_finish_decompress(&info);
  });
  return stored;
}

}  // namespace service
