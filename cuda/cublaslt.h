// NVIDIA's GEMM library, opened at run time if it is installed. Building needs no headers of it: the few functions and
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

// Opens the library unless LOOPLM_CUDA_GEMM=own, tests it with a product, and adds the outcome to the context's description.
void open_lt(Context& c);
void close_lt(Context& c);
// Whether the library is available and faster for this product: one with many rows, or a weight's gradient. With
// LOOPLM_CUDA_GEMM=library, every product.
bool prefers_lt(const Context& c, const Gemm& g);
// Returns whether it computed the product. It does not if it has no algorithm for it; the description then says so.
bool multiply_lt(Context& c, LoopDType dt, const Gemm& g);

}  // namespace looplm::cuda
