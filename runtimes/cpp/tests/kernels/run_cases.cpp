// Linear products with the kernels of the instruction set that the only argument names, for machines without Python.
//
// stdin: cases one after the other, each of 7 int64 (rows and columns of the weights, bits, block, zero points, int8
// activations, rows of x), the tiles and x. stdout: y of each.
#include <cstdint>
#include <cstdio>
#include <vector>

struct l4cpu_format {
  std::int64_t rows, columns, bits, block, zero_points;
};

extern "C" {
const char* l4cpu_isa(int i);
void l4cpu_linear(const char* isa, const l4cpu_format* format, int int8_activations, const std::uint8_t* tiles,
                  const float* x, std::int64_t rows, const float* bias, float* y);
}

template <class T>
static std::vector<T> read(std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  values.resize(std::fread(values.data(), sizeof(T), values.size(), stdin));
  return values;
}

int main(int, char** arguments) {
  for (int i = 0; l4cpu_isa(i) != nullptr; i++) std::fprintf(stderr, "%s\n", l4cpu_isa(i));
  for (;;) {
    const auto head = read<std::int64_t>(7);
    if (head.size() < 7) return 0;
    const l4cpu_format format{head[0], head[1], head[2], head[3], head[4]};
    const std::int64_t block_bytes = 64 + 64 * format.zero_points + 4 * format.block * format.bits;
    const auto tiles = read<std::uint8_t>((format.rows + 31) / 32 * (format.columns / format.block) * block_bytes);
    const auto x = read<float>(head[6] * format.columns);
    std::vector<float> y(static_cast<std::size_t>(head[6] * format.rows));
    l4cpu_linear(arguments[1], &format, static_cast<int>(head[5]), tiles.data(), x.data(), head[6], nullptr, y.data());
    std::fwrite(y.data(), sizeof(float), y.size(), stdout);
  }
}
