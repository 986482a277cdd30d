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

Lt* open_lt();  // NULL: not there, or LOOPLM_CUDA_GEMM=own
void close_lt(Lt* lt);
std::string describe_lt(const Lt* lt);
// Whether it did the product. It does not when it has no algorithm for it.
bool multiply_lt(Context& c, LoopDType dt, const Gemm& g);

}  // namespace looplm::cuda
