// Rows selected by an index: the embedding and its gradient, gather, scatter, and writes to the cache.
#include "context.h"
#include "vector.h"

namespace looplm::cuda {
namespace {

// Copies rows of `units` Units. An index, if given, selects the rows of the source or the destination. One row per block.
struct RowCopy {
  int64_t units;
  const void* from;
  int64_t from_stride;
  const int32_t* from_index;
  void* to;
  int64_t to_stride;
  const int32_t* to_index;
  KernelFault* fault;
};

// The number of rows in the table is not known here, so only negative indices can be detected.
__device__ __forceinline__ bool accept(int32_t index, KernelFault* fault) {
  if (index >= 0) return true;
  if (threadIdx.x == 0) *fault = {1, index, INT32_MAX};
  return false;
}

template <class Unit>
__global__ void copy_rows_kernel(RowCopy r) {
  const int64_t row = blockIdx.x;
  const int32_t from = r.from_index ? r.from_index[row] : int32_t(row), to = r.to_index ? r.to_index[row] : int32_t(row);
  if (!accept(from < to ? from : to, r.fault)) return;
  const auto* src = static_cast<const Unit*>(r.from) + from * r.from_stride;
  auto* dst = static_cast<Unit*>(r.to) + to * r.to_stride;
  for (int64_t u = int64_t(blockIdx.y) * blockDim.x + threadIdx.x; u < r.units; u += int64_t(gridDim.y) * blockDim.x)
    dst[u] = src[u];
}

// In r, lengths and strides are in bytes.
int copy_rows(Context& c, const char* operation, int64_t rows, size_t element, RowCopy r) {
  r.fault = c.kernel_fault;
  const auto go = [&]<class Unit>(Unit) {
    constexpr int64_t size = sizeof(Unit);
    r.units /= size, r.from_stride /= size, r.to_stride /= size;
    const int threads = row_threads(r.units, 1);
    const int64_t pieces = std::min<int64_t>(ceil_div(r.units, threads), 64);
    return check(c,
                 launch(copy_rows_kernel<Unit>, dim3(unsigned(rows), unsigned(pieces)), dim3(unsigned(threads)), 0, c.stream, r),
                 operation);
  };
  const bool aligned = vectorizable(r.units, 16, {r.from, r.to}) && r.from_stride % 16 == 0 && r.to_stride % 16 == 0;
  return aligned ? go(uint4{}) : element == 2 ? go(uint16_t{}) : element == 4 ? go(uint32_t{}) : go(uint64_t{});
}

int gather_rows(void* ctx, LoopDType type, int64_t n, int64_t d, const int32_t* index, const void* src, void* dst) {
  const int64_t bytes = d * int64_t(loop_dtype_size(type));
  return copy_rows(enter(ctx), "gather_rows", n, loop_dtype_size(type), {bytes, src, bytes, index, dst, bytes, nullptr, nullptr});
}

// out[i] = table[ids[i]]. table [*, d], out [n, d].
int embed(void* ctx, LoopDType dt, int64_t n, int64_t d, const int32_t* ids, const void* table, void* out) {
  return with_dtype(ctx, "embed", dt, [&](Context&, auto) { return gather_rows(ctx, dt, n, d, ids, table, out); });
}

// keys[slots[i]] = k part of qkv[i],  values[slots[i]] = v part. Planes are [slots, kv_heads * head_dim].
int cache_write(void* ctx, LoopDType dt, int64_t rows, int32_t heads, int32_t kv_heads, int32_t head_dim, const int32_t* slots,
                const void* qkv, void* keys, void* values) {
  return with_dtype(ctx, "cache_write", dt, [&](Context& c, auto) {
    const int64_t size = int64_t(loop_dtype_size(dt)), width = kv_heads * int64_t(head_dim) * size;
    const int64_t row = (heads + 2 * int64_t(kv_heads)) * head_dim * size;
    const char* k = static_cast<const char*>(qkv) + int64_t(heads) * head_dim * size;
    const int status = copy_rows(c, "cache_write", rows, size_t(size), {width, k, row, nullptr, keys, width, slots, nullptr});
    return status
               ? status
               : copy_rows(c, "cache_write", rows, size_t(size), {width, k + width, row, nullptr, values, width, slots, nullptr});
  });
}

// The gradient of the embedding. Pairs (id, i) are sorted as 64-bit keys, so that the rows of one id are consecutive and in
// order. Blocks sort `tile` keys each. Then groups of `fan` sorted runs are merged until one run is left. Each key finds its
// place independently: one lane per run counts the smaller keys in it. All keys are different, so the result does not depend
// on the order of work.
constexpr int tile = 2048, fan = 16;
constexpr uint64_t no_key = UINT64_MAX;  // for an id that is not in the table; sorted after all others
__device__ __forceinline__ int32_t id_of(uint64_t key) { return int32_t(key >> 32); }

__global__ void __launch_bounds__(tile / 2)
    sort_tiles_kernel(int64_t n, int64_t vocabulary, const int32_t* ids, uint64_t* keys, KernelFault* fault) {
  SHARED_ARRAY(uint64_t, key, tile);
  const int64_t first = int64_t(blockIdx.x) * tile;
  for (int k = int(threadIdx.x); k < tile; k += tile / 2) {
    const int64_t i = first + k;
    const int32_t id = i < n ? ids[i] : 0;
    const bool valid = id >= 0 && id < vocabulary;
    if (!valid) *fault = {1, id, int32_t(vocabulary)};
    key[k] = i < n && valid ? uint64_t(uint32_t(id)) << 32 | uint64_t(i) : no_key;
  }
  for (int length = 2; length <= tile; length *= 2)  // bitonic sort: runs of `length` are alternately ascending and
                                                     // descending
    for (int distance = length / 2; distance > 0; distance /= 2) {
      __syncthreads();
      const int low = 2 * int(threadIdx.x) - (int(threadIdx.x) & (distance - 1)), high = low + distance;
      const uint64_t a = key[low], b = key[high];
      if ((a > b) == ((low & length) == 0)) key[low] = b, key[high] = a;
    }
  __syncthreads();
  for (int k = int(threadIdx.x); k < tile && first + k < n; k += tile / 2) keys[first + k] = key[k];
}

// Merges sorted runs of `run` keys into runs of fan · run, with `fan` lanes per key.
__global__ void __launch_bounds__(256) merge_runs_kernel(int64_t n, int64_t run, const uint64_t* keys, uint64_t* merged) {
  const int64_t at = (int64_t(blockIdx.x) * 256 + threadIdx.x) / fan, group = at / (run * fan) * (run * fan);
  const uint64_t key = at < n ? keys[at] : no_key;
  const int64_t begin = group + run * (threadIdx.x % fan);
  int64_t low = begin, high = begin + run < n ? begin + run : n;
  // keys of invalid ids are equal; their position breaks the tie
  const auto before = [&](int64_t other) { return keys[other] < key || (key == no_key && keys[other] == key && other < at); };
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (before(middle)) low = middle + 1;
    else high = middle;
  }
  const int smaller = warp_sum<fan>(begin < n ? int(low - begin) : 0);
  if (at < n && threadIdx.x % fan == 0) merged[group + smaller] = key;
}

// dtable[id] += Σ dout[i] over the rows i of that id, in order. A block handles the ids whose first key is one of its
// `keys_per_block`, for part blockIdx.y of the columns. `batch` rows are loaded at a time.
constexpr int keys_per_block = 8, batch = 8;
template <int W>
__global__ void __launch_bounds__(256)
    add_sorted_kernel(int64_t n, int64_t d, const uint64_t* keys, const float* dout, float* dtable) {
  const int64_t column = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * W;
  if (column >= d) return;
  const int64_t begin = int64_t(blockIdx.x) * keys_per_block, end = begin + keys_per_block < n ? begin + keys_per_block : n;
  for (int64_t first = begin; first < end; first++) {
    if (keys[first] == no_key) return;
    const int32_t id = id_of(keys[first]);
    if (first > 0 && id_of(keys[first - 1]) == id) continue;
    float sum[W];
    read<W>(dtable + id * d + column, sum);
    bool more = true;
    for (int64_t at = first; more; at += batch) {
      float x[batch][W];
      int count = 0;  // how many rows of the batch have this id
#pragma unroll
      for (int k = 0; k < batch; k++) {
        const uint64_t key = at + k < n ? keys[at + k] : no_key;
        more = key != no_key && id_of(key) == id;
        if (!more) continue;
        read<W>(dout + int64_t(uint32_t(key)) * d + column, x[k]);
        count++;
      }
#pragma unroll
      for (int k = 0; k < batch; k++)
        if (k < count) {
#pragma unroll
          for (int w = 0; w < W; w++) sum[w] += x[k][w];
        }
    }
    write<W>(dtable + id * d + column, sum);
  }
}

int embed_backward(void* ctx, LoopDType dt, int64_t n, int64_t d, int64_t vocabulary, const int32_t* ids, const void* dout,
                   void* dtable) {
  return with_dtype(ctx, "embed_backward", dt, [&](Context& c, auto) {
    if (n == 0) return 0;
    auto* keys = static_cast<uint64_t*>(scratch(c, size_t(n) * 16));
    if (!keys) return int(LOOP_OUT_OF_MEMORY);
    uint64_t* merged = keys + n;
    int status = check(c,
                       launch(sort_tiles_kernel, dim3(unsigned(ceil_div(n, tile))), dim3(tile / 2), 0, c.stream, n, vocabulary,
                              ids, keys, c.kernel_fault),
                       "embed_backward");
    for (int64_t run = tile; !status && run < n; run *= fan, std::swap(keys, merged))
      status = check(c,
                     launch(merge_runs_kernel, dim3(unsigned(ceil_div(n * fan, 256))), dim3(256), 0, c.stream, n, run,
                            static_cast<const uint64_t*>(keys), merged),
                     "embed_backward");
    const auto go = [&](auto kernel, int width) {
      const int threads = row_threads(d, width);
      return check(c,
                   launch(kernel, dim3(unsigned(ceil_div(n, keys_per_block)), unsigned(ceil_div(d, int64_t(threads) * width))),
                          dim3(unsigned(threads)), 0, c.stream, n, d, static_cast<const uint64_t*>(keys),
                          static_cast<const float*>(dout), static_cast<float*>(dtable)),
                   "embed_backward");
    };
    if (status) return status;
    return vectorizable(d, 4, {dout, dtable}) ? go(add_sorted_kernel<4>, 4) : go(add_sorted_kernel<1>, 1);
  });
}

// dst[index[i]] += src[i]; every index occurs at most once.
template <int W>
__global__ void scatter_add_kernel(int64_t d, const int32_t* index, const float* src, float* dst, KernelFault* fault) {
  const int64_t column = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * W;
  if (column >= d || !accept(index[blockIdx.x], fault)) return;
  float x[W], y[W];
  read<W>(src + blockIdx.x * d + column, x);
  float* to = dst + index[blockIdx.x] * d + column;
  read<W>(to, y);
#pragma unroll
  for (int k = 0; k < W; k++) y[k] += x[k];
  write<W>(to, y);
}

int scatter_add_rows(void* ctx, LoopDType dt, int64_t n, int64_t d, const int32_t* index, const void* src, void* dst) {
  return with_dtype(ctx, "scatter_add_rows", dt, [&](Context& c, auto) {
    const auto go = [&](auto kernel, int width) {
      const int threads = row_threads(d, width);
      return check(c,
                   launch(kernel, dim3(unsigned(n), unsigned(ceil_div(d, int64_t(threads) * width))), dim3(unsigned(threads)), 0,
                          c.stream, d, index, static_cast<const float*>(src), static_cast<float*>(dst), c.kernel_fault),
                   "scatter_add_rows");
    };
    return vectorizable(d, 4, {src, dst}) ? go(scatter_add_kernel<4>, 4) : go(scatter_add_kernel<1>, 1);
  });
}

// out [n, 4]: |x - y|², |x|², x·y, |y|². One block per row.
template <class T>
__global__ void compare_rows_kernel(int64_t d, const T* x, const T* y, double* out) {
  SHARED_ARRAY(double, scratch, 8);
  double sums[4] = {};
  for (int64_t j = threadIdx.x; j < d; j += blockDim.x) {
    const double a = to_float(x[blockIdx.x * d + j]), b = to_float(y[blockIdx.x * d + j]), difference = a - b;
    sums[0] = fma(difference, difference, sums[0]);
    sums[1] = fma(a, a, sums[1]);
    sums[2] = fma(a, b, sums[2]);
    sums[3] = fma(b, b, sums[3]);
  }
#pragma unroll
  for (int k = 0; k < 4; k++) {
    const double sum = block_sum(sums[k], scratch);
    if (threadIdx.x == 0) out[4 * blockIdx.x + k] = sum;
  }
}

int compare_rows(void* ctx, LoopDType dt, int64_t n, int64_t d, const void* x, const void* y, double* host_out) {
  return with_dtype(ctx, "compare_rows", dt, [&]<class T>(Context& c, T) {
    if (n == 0) return 0;
    auto* sums = static_cast<double*>(scratch(c, size_t(n) * 4 * sizeof(double)));
    if (!sums) return int(LOOP_OUT_OF_MEMORY);
    const int status = check(c,
                             launch(compare_rows_kernel<T>, dim3(unsigned(n)), dim3(256), 0, c.stream, d,
                                    static_cast<const T*>(x), static_cast<const T*>(y), sums),
                             "compare_rows");
    return status ? status : read_back(c, host_out, sums, size_t(n) * 4 * sizeof(double));
  });
}

}  // namespace

void add_rows(LoopBackend& table) {
  table.embed = guarded<embed>;
  table.embed_backward = guarded<embed_backward>;
  table.gather_rows = guarded<gather_rows>;
  table.scatter_add_rows = guarded<scatter_add_rows>;
  table.cache_write = guarded<cache_write>;
  table.compare_rows = guarded<compare_rows>;
}

}  // namespace looplm::cuda
