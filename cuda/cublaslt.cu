#include "cublaslt.h"

#ifndef __CUDACC__  // the emulator has kernels of its own alone

namespace looplm::cuda {
Lt* open_lt() { return nullptr; }
void close_lt(Lt*) {}
std::string describe_lt(const Lt*) { return "own GEMM"; }
bool multiply_lt(Context&, LoopDType, const Gemm&) { return false; }
}  // namespace looplm::cuda

#else

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <tuple>

namespace looplm::cuda {

// The C interface of the library, as its manual documents it: opaque handles, enumerations as int.
namespace {
using Handle = void*;
using Desc = void*;
using Layout = void*;
using Preference = void*;
struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
constexpr int compute_32f = 68, real_32f = 0, real_16bf = 14, no_transpose = 0, transpose = 1;
constexpr int desc_transpose_a = 3, desc_transpose_b = 4;
constexpr int preference_workspace = 1, preference_reductions = 3, preference_alignments[] = {5, 6, 7, 8};  // of A, B, C and D
constexpr size_t workspace_bytes = 32 << 20;

// Rows for which the algorithm of a product of activations and a weight is chosen, whatever their number: so all calls with the
// same weight use the same tiles and the same order of sums.
constexpr int64_t canonical_rows = 4096;

struct Functions {
  int (*create)(Handle*);
  int (*destroy)(Handle);
  size_t (*version)();
  int (*desc_create)(Desc*, int compute, int scale_type);
  int (*desc_destroy)(Desc);
  int (*desc_set)(Desc, int attribute, const void*, size_t);
  int (*layout_create)(Layout*, int type, uint64_t rows, uint64_t columns, int64_t ld);
  int (*layout_destroy)(Layout);
  int (*preference_create)(Preference*);
  int (*preference_destroy)(Preference);
  int (*preference_set)(Preference, int attribute, const void*, size_t);
  int (*heuristic)(Handle, Desc, Layout a, Layout b, Layout c, Layout d, Preference, int requested, Heuristic*, int* returned);
  int (*matmul)(Handle, Desc, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta, const void* c,
                Layout, void* d, Layout, const Algorithm*, void* workspace, size_t, cudaStream_t);
};

using Key = std::tuple<int, bool, bool, bool, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int>;

const char* const places[] = {"libcublasLt.so.13",
                              "libcublasLt.so.12",
                              "libcublasLt.so",
                              "/usr/local/cuda/lib64/libcublasLt.so",
                              "/usr/local/cuda/targets/x86_64-linux/lib/libcublasLt.so",
                              "/usr/local/cuda/targets/sbsa-linux/lib/libcublasLt.so",
                              "/opt/cuda/lib64/libcublasLt.so"};
}  // namespace

struct Lt {
  Functions f{};
  Handle handle = nullptr;
  void* workspace = nullptr;
  std::map<Key, Heuristic> algorithms;
  std::string from;
};

Lt* open_lt() {
  const char *chosen = std::getenv("LOOPLM_CUDA_GEMM"), *path = std::getenv("LOOPLM_CUBLASLT");
  if (chosen && std::strcmp(chosen, "own") == 0) return nullptr;
  void* library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
  std::string from = library ? path : "";
  for (const char* place : places)
    if (!library && (library = dlopen(place, RTLD_NOW | RTLD_LOCAL))) from = place;
  if (!library) return nullptr;
  Lt lt;
  bool complete = true;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)> >(dlsym(library, name));
    complete = complete && function;
  };
  find(lt.f.create, "cublasLtCreate");
  find(lt.f.destroy, "cublasLtDestroy");
  find(lt.f.version, "cublasLtGetVersion");
  find(lt.f.desc_create, "cublasLtMatmulDescCreate");
  find(lt.f.desc_destroy, "cublasLtMatmulDescDestroy");
  find(lt.f.desc_set, "cublasLtMatmulDescSetAttribute");
  find(lt.f.layout_create, "cublasLtMatrixLayoutCreate");
  find(lt.f.layout_destroy, "cublasLtMatrixLayoutDestroy");
  find(lt.f.preference_create, "cublasLtMatmulPreferenceCreate");
  find(lt.f.preference_destroy, "cublasLtMatmulPreferenceDestroy");
  find(lt.f.preference_set, "cublasLtMatmulPreferenceSetAttribute");
  find(lt.f.heuristic, "cublasLtMatmulAlgoGetHeuristic");
  find(lt.f.matmul, "cublasLtMatmul");
  if (!complete || lt.f.create(&lt.handle) != 0) return nullptr;
  if (cudaMalloc(&lt.workspace, workspace_bytes) != cudaSuccess) {
    cudaGetLastError();
    lt.f.destroy(lt.handle);
    return nullptr;
  }
  lt.from = from;
  return new Lt(lt);
}

void close_lt(Lt* lt) {
  if (!lt) return;
  cudaFree(lt->workspace);
  lt->f.destroy(lt->handle);
  delete lt;
}

std::string describe_lt(const Lt* lt) {
  return lt ? "cuBLASLt " + std::to_string(lt->f.version()) + " from " + lt->from : "own GEMM (no cuBLASLt)";
}

// Its matrices are column-major, so it computes Cᵀ [n, m] = op(B)ᵀ op(A)ᵀ from the same memory.
bool multiply_lt(Context& c, LoopDType dt, const Gemm& g) {
  Lt& lt = *c.lt;
  const int type = dt == LOOP_BF16 ? real_16bf : real_32f, out_type = g.real_out ? real_32f : type;
  const int first = g.transpose_b ? transpose : no_transpose, second = g.transpose_a ? transpose : no_transpose;
  // Alignment is a part of what an algorithm asks for: 16 bytes or that of an element.
  const bool aligned =
      (reinterpret_cast<uintptr_t>(g.a) | reinterpret_cast<uintptr_t>(g.b) | reinterpret_cast<uintptr_t>(g.c)) % 16 == 0;
  if (!aligned) return false;

  Desc desc = nullptr;
  Layout a = nullptr, b = nullptr, out = nullptr, model_a = nullptr, model_out = nullptr;
  Preference preference = nullptr;
  const auto make = [&] {
    const int64_t rows = g.transpose_a ? g.m : canonical_rows;
    const auto layout_of_a = [&](Layout* layout, int64_t m) {
      return g.transpose_a ? lt.f.layout_create(layout, type, uint64_t(m), uint64_t(g.k), g.lda)
                           : lt.f.layout_create(layout, type, uint64_t(g.k), uint64_t(m), g.lda);
    };
    return lt.f.desc_create(&desc, compute_32f, real_32f) == 0 &&
           lt.f.desc_set(desc, desc_transpose_a, &first, sizeof first) == 0 &&
           lt.f.desc_set(desc, desc_transpose_b, &second, sizeof second) == 0 &&
           (g.transpose_b ? lt.f.layout_create(&b, type, uint64_t(g.k), uint64_t(g.n), g.ldb)
                          : lt.f.layout_create(&b, type, uint64_t(g.n), uint64_t(g.k), g.ldb)) == 0 &&
           layout_of_a(&a, g.m) == 0 && lt.f.layout_create(&out, out_type, uint64_t(g.n), uint64_t(g.m), g.ldc) == 0 &&
           layout_of_a(&model_a, rows) == 0 &&
           lt.f.layout_create(&model_out, out_type, uint64_t(g.n), uint64_t(rows), g.ldc) == 0 &&
           lt.f.preference_create(&preference) == 0;
  };
  const auto algorithm = [&]() -> const Heuristic* {
    const Key key{dt,    g.transpose_a, g.transpose_b, g.real_out,  g.transpose_a ? g.m : 0, g.n, g.k,
                  g.lda, g.ldb,         g.ldc,         g.accumulate};
    if (const auto found = lt.algorithms.find(key); found != lt.algorithms.end()) return &found->second;
    const uint32_t no_split = 0, alignment = 16;
    Heuristic best{};
    int count = 0;
    lt.f.preference_set(preference, preference_workspace, &workspace_bytes, sizeof workspace_bytes);
    lt.f.preference_set(preference, preference_reductions, &no_split, sizeof no_split);
    for (int which : preference_alignments) lt.f.preference_set(preference, which, &alignment, sizeof alignment);
    if (lt.f.heuristic(lt.handle, desc, b, model_a, model_out, model_out, preference, 1, &best, &count) != 0 || count == 0)
      return nullptr;
    return &lt.algorithms.emplace(key, best).first->second;
  };
  bool done = false;
  if (make()) {
    const float alpha = 1, beta = g.accumulate ? 1 : 0;
    if (const Heuristic* h = algorithm())
      done = lt.f.matmul(lt.handle, desc, &alpha, g.b, b, g.a, a, &beta, g.c, out, g.c, out, &h->algorithm, lt.workspace,
                         workspace_bytes, c.stream) == 0;
  }
  if (preference) lt.f.preference_destroy(preference);
  for (Layout layout : {a, b, out, model_a, model_out})
    if (layout) lt.f.layout_destroy(layout);
  if (desc) lt.f.desc_destroy(desc);
  return done;
}

}  // namespace looplm::cuda
#endif
