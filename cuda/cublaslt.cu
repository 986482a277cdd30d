#include "cublaslt.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

namespace looplm::cuda {

// The library's C interface as its manual documents it, with opaque handles and enumerations as int.
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
// of A, B, C and D
constexpr int preference_workspace = 1, preference_reductions = 3, preference_alignments[] = {5, 6, 7, 8};
constexpr size_t workspace_bytes = 32 << 20;

// From this number of rows on, the library is worth its launch overhead. Smaller products, and everything that decoding
// needs, use our kernels: there the bits of a row do not depend on the number of rows.
constexpr int64_t library_rows = 1024;

// The algorithm for activations times a weight is always chosen for this number of rows, whatever the actual number. So all
// calls with the same weight use the same tiles and the same order of sums. If that algorithm does not support a number of
// rows, another one is chosen for it.
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

#ifdef __CUDACC__
const std::vector<std::string> places = {"libcublasLt.so.13",
                                         "libcublasLt.so.12",
                                         "libcublasLt.so",
                                         "/usr/local/cuda/lib64/libcublasLt.so",
                                         "/usr/local/cuda/targets/x86_64-linux/lib/libcublasLt.so",
                                         "/usr/local/cuda/targets/sbsa-linux/lib/libcublasLt.so",
                                         "/opt/cuda/lib64/libcublasLt.so"};
#else
const std::vector<std::string> places = {};  // NVIDIA's library cannot use the emulator's memory
#endif
}  // namespace

struct Lt {
  Functions f{};
  Handle handle = nullptr;
  void* workspace = nullptr;
  std::map<Key, Heuristic> algorithms;  // the key holds the number of rows that the algorithm was chosen for
  std::set<Key> refused;                // products without an algorithm, or whose algorithm failed
  std::string refusal;                  // the reason for the first refused product
  bool wanted = false;                  // LOOPLM_CUDA_GEMM=library: use it for every product, not only for large ones
};

namespace {

// Loads the library's functions; returns an error message, or "".
std::string load(Lt& lt, std::string& from) {
  const char* path = std::getenv("LOOPLM_CUBLASLT");  // a file chosen by the user; no other is tried
  void* library = nullptr;
  std::string tried;
  for (const std::string& place : path ? std::vector<std::string>{path} : places) {
    library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    from = place;
    if (library) break;
    tried += (tried.empty() ? "" : ", ") + (path ? std::string(dlerror()) : place);
  }
  if (!library) return "cuBLASLt was not found" + (tried.empty() ? "" : ": " + tried);
  std::string missing;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)> >(dlsym(library, name));
    if (!function) missing = name;
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
  if (!missing.empty()) return from + " has no function " + missing;
  if (int status = lt.f.create(&lt.handle)) return from + ": cublasLtCreate failed with status " + std::to_string(status);
  if (cudaMalloc(&lt.workspace, workspace_bytes) != cudaSuccess) {
    cudaGetLastError();
    return "no memory for the workspace of cuBLASLt";
  }
  return "";
}

// Whether a test product gives the right result: the library may be for another chip, or of a version with another interface.
// Uses canonical_rows, so that no other algorithm has to be chosen.
bool trial(Context& c) {
  constexpr int m = canonical_rows, n = 64, k = 32;
  std::vector<bf16> a, b;
  std::vector<float> expected(m * n), got(m * n);
  for (int i = 0; i < m * k; i++) a.push_back({uint16_t(0x3F80 + (i % 7) * 0x10)});  // 1, 1.125 … 1.75
  for (int i = 0; i < n * k; i++) b.push_back({uint16_t(0xBF80 + (i % 5) * 0x20)});  // -1, -1.25, -1.5, -1.75, -2
  for (int i = 0; i < m; i++)
    for (int j = 0; j < n; j++)
      for (int l = 0; l < k; l++) expected[i * n + j] -= float((1 + 0.125 * ((i * k + l) % 7)) * (1 + 0.25 * ((j * k + l) % 5)));
  char* memory = nullptr;
  const size_t bytes_a = a.size() * 2, bytes_b = b.size() * 2, bytes_c = got.size() * 4;  // each is a multiple of 256
  if (cudaMalloc(reinterpret_cast<void**>(&memory), bytes_a + bytes_b + bytes_c) != cudaSuccess) return false;
  char *at_b = memory + bytes_a, *at_c = at_b + bytes_b;
  const Gemm g{false, true, m, n, k, memory, k, at_b, k, at_c, n, true, false};
  const auto move = [&](void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return cudaMemcpyAsync(to, from, bytes, kind, c.stream) == cudaSuccess;
  };
  const bool right = move(memory, a.data(), bytes_a, cudaMemcpyHostToDevice) &&
                     move(at_b, b.data(), bytes_b, cudaMemcpyHostToDevice) && multiply_lt(c, LOOP_BF16, g) &&
                     move(got.data(), at_c, bytes_c, cudaMemcpyDeviceToHost) && cudaStreamSynchronize(c.stream) == cudaSuccess &&
                     got == expected;
  cudaFree(memory);
  cudaGetLastError();
  return right;
}

}  // namespace

void open_lt(Context& c) {
  const char* chosen = std::getenv("LOOPLM_CUDA_GEMM");
  const std::string choice = chosen ? chosen : "";
  if (choice == "own") {
    c.description += ", own GEMM (LOOPLM_CUDA_GEMM=own)";
    return;
  }
  c.lt = new Lt;
  c.lt->wanted = choice == "library";
  std::string from, why = load(*c.lt, from);
  const std::string before = c.description;
  if (why.empty() && !trial(c))
    why = from + ": a trial product " + (c.lt->refusal.empty() ? "came out wrong" : "failed at " + c.lt->refusal);
  c.description =
      before + (why.empty() ? ", cuBLASLt " + std::to_string(c.lt->f.version()) + " from " + from : ", own GEMM (" + why + ")");
  if (!why.empty()) close_lt(c);
}

void close_lt(Context& c) {
  if (!c.lt) return;
  if (c.lt->workspace) cudaFree(c.lt->workspace);
  if (c.lt->handle) c.lt->f.destroy(c.lt->handle);
  delete c.lt;
  c.lt = nullptr;
}

bool prefers_lt(const Context& c, const Gemm& g) {
  return c.lt && g.k > 0 && (c.lt->wanted || g.m >= library_rows || g.transpose_a);
}

// The library's matrices are column-major, so it computes Cᵀ [n, m] = op(B)ᵀ op(A)ᵀ on the same memory. In a recording, the
// product has already run once, so its algorithm is known. It uses a separate workspace, so it can be recorded like our
// kernels.
bool multiply_lt(Context& c, LoopDType dt, const Gemm& g) {
  Lt& lt = *c.lt;
  const int type = dt == LOOP_BF16 ? real_16bf : real_32f, out_type = g.real_out ? real_32f : type;
  const int first = g.transpose_b ? transpose : no_transpose, second = g.transpose_a ? transpose : no_transpose;
  // an algorithm requires an alignment: 16 bytes, or that of an element
  const bool aligned =
      (reinterpret_cast<uintptr_t>(g.a) | reinterpret_cast<uintptr_t>(g.b) | reinterpret_cast<uintptr_t>(g.c)) % 16 == 0;
  const auto key_of = [&](int64_t rows) {
    return Key{dt, g.transpose_a, g.transpose_b, g.real_out, rows, g.n, g.k, g.lda, g.ldb, g.ldc, g.accumulate};
  };
  const Key own = key_of(g.m);
  if (!aligned || lt.refused.count(own)) return false;

  Desc desc = nullptr;
  Layout a = nullptr, b = nullptr, out = nullptr;
  const auto layout_of_a = [&](Layout* layout, int64_t m) {
    return g.transpose_a ? lt.f.layout_create(layout, type, uint64_t(m), uint64_t(g.k), g.lda)
                         : lt.f.layout_create(layout, type, uint64_t(g.k), uint64_t(m), g.lda);
  };
  const auto describe = [&]() -> int {
    if (int s = lt.f.desc_create(&desc, compute_32f, real_32f)) return s;
    if (int s = lt.f.desc_set(desc, desc_transpose_a, &first, sizeof first)) return s;
    if (int s = lt.f.desc_set(desc, desc_transpose_b, &second, sizeof second)) return s;
    if (int s = g.transpose_b ? lt.f.layout_create(&b, type, uint64_t(g.k), uint64_t(g.n), g.ldb)
                              : lt.f.layout_create(&b, type, uint64_t(g.n), uint64_t(g.k), g.ldb))
      return s;
    if (int s = layout_of_a(&a, g.m)) return s;
    return lt.f.layout_create(&out, out_type, uint64_t(g.n), uint64_t(g.m), g.ldc);
  };
  const auto choose = [&](int64_t rows, Heuristic* best) -> int {
    const uint32_t no_split = 0, alignment = 16;
    const uint64_t workspace = workspace_bytes;
    Layout model_a = nullptr, model_out = nullptr;
    Preference preference = nullptr;
    int count = 0;
    const auto ask = [&]() -> int {
      if (int s = layout_of_a(&model_a, rows)) return s;
      if (int s = lt.f.layout_create(&model_out, out_type, uint64_t(g.n), uint64_t(rows), g.ldc)) return s;
      if (int s = lt.f.preference_create(&preference)) return s;
      if (int s = lt.f.preference_set(preference, preference_workspace, &workspace, sizeof workspace)) return s;
      if (int s = lt.f.preference_set(preference, preference_reductions, &no_split, sizeof no_split)) return s;
      for (int which : preference_alignments)
        if (int s = lt.f.preference_set(preference, which, &alignment, sizeof alignment)) return s;
      return lt.f.heuristic(lt.handle, desc, b, model_a, model_out, model_out, preference, 1, best, &count);
    };
    const int status = ask();
    if (preference) lt.f.preference_destroy(preference);
    for (Layout layout : {model_a, model_out})
      if (layout) lt.f.layout_destroy(layout);
    return status ? status : count == 0 ? -1 : best->state;
  };

  const char* step = "its descriptors";
  // Runs the algorithm that is chosen for `rows` rows, now or in an earlier call.
  const auto multiply = [&](int64_t rows) -> int {
    const Key key = key_of(rows);
    if (!lt.algorithms.count(key)) {
      Heuristic best{};
      step = "the choice of an algorithm";
      if (int s = choose(rows, &best)) return s;
      lt.algorithms.emplace(key, best);
    }
    const float alpha = 1, beta = g.accumulate ? 1 : 0;
    step = "the product";
    return lt.f.matmul(lt.handle, desc, &alpha, g.b, b, g.a, a, &beta, g.c, out, g.c, out, &lt.algorithms.at(key).algorithm,
                       lt.workspace, workspace_bytes, c.stream);
  };
  int status = describe();
  if (status == 0) {
    const int64_t rows = g.transpose_a || lt.algorithms.count(own) ? g.m : canonical_rows;
    status = multiply(rows);
    if (status != 0 && rows != g.m) status = multiply(g.m);
  }
  for (Layout layout : {a, b, out})
    if (layout) lt.f.layout_destroy(layout);
  if (desc) lt.f.desc_destroy(desc);
  if (status == 0) return true;
  if (lt.refused.empty()) {
    lt.refusal = std::string(step) + (status == -1 ? ": none was found" : " with status " + std::to_string(status));
    c.description += "; own GEMM for products that it refused, the first at " + lt.refusal;
  }
  lt.refused.insert(own);
  return false;
}

}  // namespace looplm::cuda
