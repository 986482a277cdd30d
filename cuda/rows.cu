// Rows chosen by an index: the embedding and its gradient, gather, scatter, and the cache's planes.
#include "context.h"
#include "vector.h"

namespace looplm::cuda {
namespace {

// Rows of `units` Units from one place to another; an index that is given says which row. One row per block.
struct RowCopy {
  int64_t units;
  const void* from;
  int64_t from_stride;
  const int32_t* from_index;
  void* to;
  int64_t to_stride;
  const int32_t* to_index;
  int32_t limit;  // indices outside 0 .. limit - 1 are reported; 0: not checked
  Complaint* complaint;
};

__device__ bool accept(int32_t index, int64_t limit, Complaint* complaint) {
  if (index >= 0 && index < limit) return true;
  if (threadIdx.x == 0) *complaint = {1, index, int32_t(limit)};
  return false;
}

template <class Unit>
__global__ void copy_rows_kernel(RowCopy r) {
  const int64_t row = blockIdx.x;
  const int32_t from = r.from_index ? r.from_index[row] : int32_t(row), to = r.to_index ? r.to_index[row] : int32_t(row);
  if (r.limit && !accept(from, r.limit, r.complaint)) return;
  const auto* src = static_cast<const Unit*>(r.from) + from * r.from_stride;
  auto* dst = static_cast<Unit*>(r.to) + to * r.to_stride;
  for (int64_t u = int64_t(blockIdx.y) * blockDim.x + threadIdx.x; u < r.units; u += int64_t(gridDim.y) * blockDim.x)
    dst[u] = src[u];
}

// Lengths and strides of r in bytes.
int copy_rows(Context& c, const char* operation, int64_t rows, size_t element, RowCopy r) {
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
  return copy_rows(enter(ctx), "gather_rows", n, loop_dtype_size(type),
                   {bytes, src, bytes, index, dst, bytes, nullptr, 0, nullptr});
}

// out[i] = table[ids[i]]                 table [*, d], out [n, d]
int embed(void* ctx, LoopDType dt, int64_t n, int64_t d, const int32_t* ids, const void* table, void* out) {
  return with_dtype(ctx, "embed", dt, [&](Context&, auto) { return gather_rows(ctx, dt, n, d, ids, table, out); });
}

// keys[slots[i]] = k part of qkv[i],  values[slots[i]] = v part              planes [slots, kv_heads * head_dim]
int cache_write(void* ctx, LoopDType dt, int64_t rows, int32_t heads, int32_t kv_heads, int32_t head_dim, const int32_t* slots,
                const void* qkv, void* keys, void* values) {
  return with_dtype(ctx, "cache_write", dt, [&](Context& c, auto) {
    const int64_t size = int64_t(loop_dtype_size(dt)), width = kv_heads * int64_t(head_dim) * size;
    const int64_t row = (heads + 2 * int64_t(kv_heads)) * head_dim * size;
    const char* k = static_cast<const char*>(qkv) + int64_t(heads) * head_dim * size;
    const int status = copy_rows(c, "cache_write", rows, size_t(size), {width, k, row, nullptr, keys, width, slots, 0, nullptr});
    return status ? status
                  : copy_rows(c, "cache_write", rows, size_t(size),
                              {width, k + width, row, nullptr, values, width, slots, 0, nullptr});
  });
}

// dtable[id] += Σ dout[i] over the rows i of that id, in their order. Block (i, p) does part p of the columns if i is the first
// row of its id; the search through the ids costs less than a sort would at the sizes of a micro-batch (the ids stay in the L2
// cache).
template <int W>
__global__ void embed_backward_kernel(int64_t n, int64_t d, int64_t vocabulary, const int32_t* ids, const float* dout,
                                      float* dtable, Complaint* complaint) {
  SHARED_ARRAY(unsigned, found, 8);  // a bit for each of the rows that the block looks at together
  SHARED_ARRAY(int, counts, 8);
  const int64_t row = blockIdx.x, column = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * W;
  const int32_t id = ids[row];
  if (!accept(id, vocabulary, complaint)) return;
  for (int64_t base = 0; base < row; base += blockDim.x) {
    const int64_t i = base + threadIdx.x;
    if (block_sum(int(i < row && ids[i] == id), counts) > 0) return;
  }
  float sum[W] = {};
  if (column < d) read<W>(dtable + id * d + column, sum);
  for (int64_t base = row; base < n; base += blockDim.x) {
    const int64_t i = base + threadIdx.x;
    const unsigned same = __ballot_sync(full_warp, i < n && ids[i] == id);
    if (lane_id() == 0) found[warp_id()] = same;
    __syncthreads();
    for (int warp = 0; warp < int(blockDim.x / 32); warp++)
      for (unsigned bits = found[warp]; bits; bits &= bits - 1) {
        const int64_t match = base + warp * 32 + __ffs(int(bits)) - 1;
        float x[W];
        if (column < d) read<W>(dout + match * d + column, x);
        else continue;
#pragma unroll
        for (int k = 0; k < W; k++) sum[k] += x[k];
      }
    __syncthreads();
  }
  if (column < d) write<W>(dtable + id * d + column, sum);
}

int embed_backward(void* ctx, LoopDType dt, int64_t n, int64_t d, int64_t vocabulary, const int32_t* ids, const void* dout,
                   void* dtable) {
  return with_dtype(ctx, "embed_backward", dt, [&](Context& c, auto) {
    const auto go = [&](auto kernel, int width) {
      const int threads = row_threads(d, width);
      return check(
          c,
          launch(kernel, dim3(unsigned(n), unsigned(ceil_div(d, int64_t(threads) * width))), dim3(unsigned(threads)), 0, c.stream,
                 n, d, vocabulary, ids, static_cast<const float*>(dout), static_cast<float*>(dtable), c.complaint),
          "embed_backward");
    };
    return vectorizable(d, 4, {dout, dtable}) ? go(embed_backward_kernel<4>, 4) : go(embed_backward_kernel<1>, 1);
  });
}

// dst[index[i]] += src[i], every index at most once
template <int W>
__global__ void scatter_add_kernel(int64_t d, const int32_t* index, const float* src, float* dst) {
  const int64_t column = (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * W;
  if (column >= d) return;
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
                          c.stream, d, index, static_cast<const float*>(src), static_cast<float*>(dst)),
                   "scatter_add_rows");
    };
    return vectorizable(d, 4, {src, dst}) ? go(scatter_add_kernel<4>, 4) : go(scatter_add_kernel<1>, 1);
  });
}

}  // namespace

void add_rows(LoopBackend& table) {
  table.embed = embed;
  table.embed_backward = embed_backward;
  table.gather_rows = gather_rows;
  table.scatter_add_rows = scatter_add_rows;
  table.cache_write = cache_write;
}

}  // namespace looplm::cuda
