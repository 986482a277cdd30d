// A stand-in for NVIDIA's cuBLASLt in the tests of device cuda-emulated. It has the functions that cuda/cublaslt.cu uses,
// with the values and the rules of the manual (docs.nvidia.com/cuda/cublas, "Using the cuBLASLt API"). It computes products
// by plain loops in double. A violation of the rules ends the process with a message, because an error status would only make
// the engine use its own kernels.
//
//   LOOPLM_CUBLASLT_DOUBLE       what should fail: create (no handle), heuristic (a status), none (no algorithm), matmul,
//                                later (like matmul, except for the product with which the engine tests the library),
//                                rows (an algorithm for another number of rows than it was chosen for), wrong (one element)
//   LOOPLM_CUBLASLT_DOUBLE_LOG   a file that gets a line for every product: m n k, the types of A and C, the transpositions
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <set>
#include <string>

namespace {

enum Status { success = 0, not_initialized = 1, invalid_value = 7, execution_failed = 13, not_supported = 15 };
enum Type { real_32f = 0, real_16bf = 14 };
enum Compute { compute_32f = 68 };
enum Operation { no_transpose = 0, transpose = 1 };
enum DescAttribute { desc_transpose_a = 3, desc_transpose_b = 4 };
enum PreferenceAttribute {
  max_workspace = 1,
  reduction_mask = 3,
  alignment_a = 5,
  alignment_b = 6,
  alignment_c = 7,
  alignment_d = 8
};

// The first member of the emulator's streams: runs work in stream order.
using LooplmSubmit = int (*)(void* stream, const std::function<int()>& work);

[[noreturn]] void refuse(const char* function, const std::string& why) {
  std::fprintf(stderr, "cuBLASLt double, %s: %s\n", function, why.c_str());
  std::abort();
}
void require(bool holds, const char* function, const std::string& rule) {
  if (!holds) refuse(function, rule);
}

struct Handle {};
struct Desc {
  int32_t transpose_a = no_transpose, transpose_b = no_transpose;
};
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t ld;  // column-major: elements from one column to the next
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t reductions = 3 /* all */, alignment[4] = {256, 256, 256, 256};
};

// Objects that are alive, to detect leaks and uses after destruction.
template <class T>
struct Objects {
  const char* kind;
  std::set<const void*> alive;
  template <class... A>
  int create(void** out, const A&... arguments) {
    require(out != nullptr, kind, "no place for the new object");
    *out = new T{arguments...};
    alive.insert(*out);
    return success;
  }
  T& at(void* object, const char* function) {
    require(alive.count(object) == 1, function, std::string("a ") + kind + " that was not created or is destroyed");
    return *static_cast<T*>(object);
  }
  int destroy(void* object, const char* function) {
    T* found = &at(object, function);
    alive.erase(object);
    delete found;
    return success;
  }
};
Objects<Handle> handles{"handle", {}};
Objects<Desc> descs{"operation descriptor", {}};
Objects<Layout> layouts{"matrix layout", {}};
Objects<Preference> preferences{"preference", {}};

bool fails(const char* what) {
  const char* chosen = std::getenv("LOOPLM_CUBLASLT_DOUBLE");
  return chosen && std::strcmp(chosen, what) == 0;
}

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
static_assert(sizeof(Algorithm) == 64 && sizeof(Heuristic) == 96);

// What an algorithm was chosen for. The number of columns of B and D may be different when it is used, as the manual allows;
// everything else is checked against the call.
constexpr uint64_t chosen_magic = 0x6c6f6f706c6d4c74;
struct Chosen {
  uint64_t magic;
  uint32_t types, transpositions;
  uint64_t rows, depth, workspace;
  uint32_t alignment[4];
  uint64_t columns;  // of B and D
};
static_assert(sizeof(Chosen) == sizeof(Algorithm));

struct Product {
  uint64_t m, n, k;
  int type, out_type;
};

Product checked(const char* f, const Desc& desc, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
  const bool ta = desc.transpose_a == transpose, tb = desc.transpose_b == transpose;
  const Product p{ta ? a.columns : a.rows, tb ? b.rows : b.columns, ta ? a.rows : a.columns, a.type, d.type};
  require((tb ? b.columns : b.rows) == p.k, f, "op(A) and op(B) do not fit together");
  require(d.rows == p.m && d.columns == p.n && c.rows == p.m && c.columns == p.n, f, "C and D are not m × n");
  require(a.type == b.type && c.type == d.type, f, "A and B, or C and D, of two types");
  // With 32-bit arithmetic and a 32-bit scale: 16BF × 16BF → 16BF or 32F, 32F × 32F → 32F.
  require(a.type == real_16bf ? d.type == real_16bf || d.type == real_32f : d.type == real_32f, f,
          "types that do not go together");
  return p;
}

Chosen describe(const Desc& desc, const Product& p, const Preference& preference) {
  Chosen chosen{};
  chosen.magic = chosen_magic;
  chosen.types = uint32_t(p.type) << 8 | uint32_t(p.out_type);
  chosen.transpositions = uint32_t(desc.transpose_a) << 1 | uint32_t(desc.transpose_b);
  chosen.rows = p.m;
  chosen.depth = p.k;
  chosen.columns = p.n;
  chosen.workspace = 1 << 20;
  std::memcpy(chosen.alignment, preference.alignment, sizeof chosen.alignment);
  return chosen;
}

double element(const void* at, int type, uint64_t index) {
  if (type == real_32f) return static_cast<const float*>(at)[index];
  const uint32_t bits = uint32_t(static_cast<const uint16_t*>(at)[index]) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
void store(void* at, int type, uint64_t index, double value) {
  const float x = float(value);
  if (type == real_32f) {
    static_cast<float*>(at)[index] = x;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  static_cast<uint16_t*>(at)[index] = uint16_t(x != x ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

}  // namespace

extern "C" {

size_t cublasLtGetVersion() { return 130000; }

int cublasLtCreate(void** handle) { return fails("create") ? int(not_initialized) : handles.create(handle); }

int cublasLtDestroy(void* handle) {
  require(descs.alive.empty() && layouts.alive.empty() && preferences.alive.empty(), "cublasLtDestroy",
          "descriptors were leaked");
  return handles.destroy(handle, "cublasLtDestroy");
}

int cublasLtMatmulDescCreate(void** desc, int compute, int scale_type) {
  require(compute == compute_32f && scale_type == real_32f, "cublasLtMatmulDescCreate", "not CUBLAS_COMPUTE_32F with CUDA_R_32F");
  return descs.create(desc);
}
int cublasLtMatmulDescDestroy(void* desc) { return descs.destroy(desc, "cublasLtMatmulDescDestroy"); }
int cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value, size_t bytes) {
  const char* f = "cublasLtMatmulDescSetAttribute";
  Desc& d = descs.at(desc, f);
  require(attribute == desc_transpose_a || attribute == desc_transpose_b, f, "attribute " + std::to_string(attribute));
  require(value && bytes == 4, f, "a transposition of " + std::to_string(bytes) + " bytes");
  int32_t operation;
  std::memcpy(&operation, value, 4);
  require(operation == no_transpose || operation == transpose, f, "operation " + std::to_string(operation));
  (attribute == desc_transpose_a ? d.transpose_a : d.transpose_b) = operation;
  return success;
}

int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t ld) {
  const char* f = "cublasLtMatrixLayoutCreate";
  require(type == real_32f || type == real_16bf, f, "type " + std::to_string(type));
  require(rows > 0 && columns > 0, f, "an empty matrix");
  require(ld >= int64_t(rows), f, "a leading dimension below the number of rows");
  return layouts.create(layout, type, rows, columns, ld);
}
int cublasLtMatrixLayoutDestroy(void* layout) { return layouts.destroy(layout, "cublasLtMatrixLayoutDestroy"); }

int cublasLtMatmulPreferenceCreate(void** preference) { return preferences.create(preference); }
int cublasLtMatmulPreferenceDestroy(void* preference) {
  return preferences.destroy(preference, "cublasLtMatmulPreferenceDestroy");
}
int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
  const char* f = "cublasLtMatmulPreferenceSetAttribute";
  Preference& p = preferences.at(preference, f);
  require(value && bytes == (attribute == max_workspace ? 8u : 4u), f,
          "attribute " + std::to_string(attribute) + " of " + std::to_string(bytes) + " bytes");
  if (attribute == max_workspace) {
    std::memcpy(&p.workspace, value, 8);
  } else if (attribute == reduction_mask) {
    std::memcpy(&p.reductions, value, 4);
  } else {
    require(attribute >= alignment_a && attribute <= alignment_d, f, "attribute " + std::to_string(attribute));
    uint32_t& alignment = p.alignment[attribute - alignment_a];
    std::memcpy(&alignment, value, 4);
    require(alignment > 0 && (alignment & (alignment - 1)) == 0, f, "an alignment that is no power of two");
  }
  return success;
}

int cublasLtMatmulAlgoGetHeuristic(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int requested,
                                   Heuristic* results, int* returned) {
  const char* f = "cublasLtMatmulAlgoGetHeuristic";
  handles.at(handle, f);
  const Desc& operation = descs.at(desc, f);
  const Product p = checked(f, operation, layouts.at(a, f), layouts.at(b, f), layouts.at(c, f), layouts.at(d, f));
  const Preference& wishes = preferences.at(preference, f);
  require(requested > 0 && results && returned, f, "no place for results");
  require(wishes.reductions == 0, f, "algorithms that split the sum are let in: the result would depend on the shape");
  *returned = 0;
  if (fails("heuristic")) return not_supported;
  if (fails("none")) return success;
  const Chosen chosen = describe(operation, p, wishes);
  require(chosen.workspace <= wishes.workspace, f, "no workspace is allowed");
  std::memset(results, 0xFF, sizeof *results);
  std::memcpy(&results->algorithm, &chosen, sizeof chosen);
  results->workspace = chosen.workspace;
  results->state = success;
  results->waves = 1;
  *returned = 1;
  return success;
}

int cublasLtMatmul(void* handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b, void* b_layout,
                   const void* beta, const void* c, void* c_layout, void* d, void* d_layout, const Algorithm* algorithm,
                   void* workspace, size_t workspace_bytes, void* stream) {
  const char* f = "cublasLtMatmul";
  handles.at(handle, f);
  const Desc& operation = descs.at(desc, f);
  const Layout &la = layouts.at(a_layout, f), &lb = layouts.at(b_layout, f), &lc = layouts.at(c_layout, f),
               &ld = layouts.at(d_layout, f);
  const Product p = checked(f, operation, la, lb, lc, ld);
  require(alpha && beta && a && b && d && algorithm && stream, f, "a pointer is missing");
  const auto number = [](const void* at) {
    float value;
    std::memcpy(&value, at, 4);
    return value;
  };
  const float scale = number(alpha), keep = number(beta);
  require(scale == 1 && (keep == 0 || keep == 1), f, "alpha or beta is not a float on the host");
  require(keep == 0 || c, f, "beta without C");
  if (c == d) require(lc.type == ld.type && lc.ld == ld.ld, f, "C and D are one matrix with two layouts");

  Chosen chosen;
  std::memcpy(&chosen, algorithm, sizeof chosen);
  Preference same;
  std::memcpy(same.alignment, chosen.alignment, sizeof same.alignment);
  if (fails("rows") && chosen.columns != p.n) return not_supported;
  Chosen expected = describe(operation, p, same);
  expected.columns = chosen.columns;
  require(std::memcmp(&chosen, &expected, sizeof chosen) == 0, f, "an algorithm that was chosen for another product");
  const void* const matrices[] = {a, b, c, d};
  for (int i = 0; i < 4; i++)
    require(reinterpret_cast<uintptr_t>(matrices[i]) % chosen.alignment[i] == 0, f,
            "matrix " + std::string(1, "ABCD"[i]) + " is less aligned than the preference said");
  require(workspace && workspace_bytes >= chosen.workspace, f, "less workspace than the algorithm needs");
  require(reinterpret_cast<uintptr_t>(workspace) % 256 == 0, f, "the workspace is not aligned to 256 bytes");

  const bool trial = p.m == 64 && p.n == 4096 && p.k == 32;  // the product with which cuda/cublaslt.cu tests the library when
                                                             // it opens a device
  if (fails("matmul") || (fails("later") && !trial)) return execution_failed;
  const bool ta = operation.transpose_a == transpose, tb = operation.transpose_b == transpose;
  // Runs in stream order. The stream may be recording, so the descriptors may be destroyed before it runs.
  const int status = (*static_cast<LooplmSubmit*>(stream))(stream, [=, la = la, lb = lb, lc = lc, ld = ld] {
    std::memset(workspace, 0xAB, chosen.workspace);
    for (uint64_t j = 0; j < p.n; j++)
      for (uint64_t i = 0; i < p.m; i++) {
        double sum = 0;
        for (uint64_t l = 0; l < p.k; l++)
          sum += element(a, la.type, ta ? i * uint64_t(la.ld) + l : l * uint64_t(la.ld) + i) *
                 element(b, lb.type, tb ? l * uint64_t(lb.ld) + j : j * uint64_t(lb.ld) + l);
        const uint64_t at = j * uint64_t(ld.ld) + i;
        if (keep == 1) sum += element(c, lc.type, at);
        store(d, ld.type, at, sum);
      }
    if (fails("wrong")) store(d, ld.type, 0, 1e6);
    return int(success);
  });
  if (status != success) return execution_failed;
  if (const char* path = std::getenv("LOOPLM_CUBLASLT_DOUBLE_LOG"))
    if (std::FILE* log = std::fopen(path, "a")) {
      std::fprintf(log, "%llu %llu %llu %s %s %c%c\n", static_cast<unsigned long long>(p.m), static_cast<unsigned long long>(p.n),
                   static_cast<unsigned long long>(p.k), p.type == real_32f ? "f32" : "bf16",
                   p.out_type == real_32f ? "f32" : "bf16", ta ? 'T' : 'N', tb ? 'T' : 'N');
      std::fclose(log);
    }
  return success;
}

}  // extern "C"
