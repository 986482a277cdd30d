// looplm_count_products float32|bfloat16|int8|int4 M N K TIMES
// Multiplies with a weight [N, K] on one thread of the CPU backend, TIMES times. tools/count-arm64.mjs counts the
// instructions; the difference between running twice and once belongs to the product. Prints the device's description.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "../cpu/cpu.h"

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const std::string type = argv[1];
  const int64_t m = std::atoll(argv[2]), n = std::atoll(argv[3]), k = std::atoll(argv[4]), times = std::atoll(argv[5]);
  const LoopBackend* table = looplm_cpu_backend();
  void* ctx = table ? table->open(0, 1) : nullptr;
  if (!ctx) return 1;
  const LoopDType dt = type == "bfloat16" ? LOOP_BF16 : LOOP_F32;
  const int bits = type == "int8" ? 8 : type == "int4" ? 4 : 0, group = 64;
  // zeros are enough: no instruction depends on a value
  const auto zeros = [&](size_t bytes) {
    void* p = table->allocate(ctx, bytes);
    if (p) table->zero(ctx, p, bytes);
    return p;
  };
  const size_t rows = size_t(n + 15) / 16 * 16;
  void *a = zeros(size_t(m * k) * 4), *b = zeros(rows * size_t(k) * 4 + 64), *c = zeros(size_t(m * n) * 4);
  void* scales = zeros(rows * size_t(k / group + 1) * 4);
  if (!a || !b || !c || !scales) return 1;
  const LoopQuantized quantized{bits, group, b, static_cast<const float*>(scales), 8};
  int status = 0;
  for (int64_t i = 0; i < times; i++)
    status |= bits ? table->gemm_quantized(ctx, dt, m, n, k, a, k, &quantized, c, n, LOOP_GEMM_REAL_OUT)
                   : table->gemm(ctx, dt, 0, 1, m, n, k, a, k, b, k, c, n, LOOP_GEMM_REAL_OUT);
  std::printf("%s\n", table->describe(ctx));
  return status;
}
