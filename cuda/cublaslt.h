// NVIDIA's GEMM library, opened at run time where the machine has it. Its headers are not needed to build: the few functions and
// constants used are declared in cublaslt.cu.
#pragma once
#include <string>

#include "context.h"

namespace looplm::cuda {

struct Gemm {
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  const void* a;
  int64_t lda;
  const void* b;
  int64_t ldb;
  void* c;
  int64_t ldc;
  bool real_out, accumulate;
};

// Opens the library unless LOOPLM_CUDA_GEMM=own, tries it on a small product, and adds to the context's description what came of
// it.
void open_lt(Context& c);
void close_lt(Context& c);
// Whether it is there and this product is one for it: many rows, or a weight's gradient; with LOOPLM_CUDA_GEMM=library every one.
bool prefers_lt(const Context& c, const Gemm& g);
// Whether it did the product. It does not when it has no algorithm for it, and then says so in the description.
bool multiply_lt(Context& c, LoopDType dt, const Gemm& g);

}  // namespace looplm::cuda
