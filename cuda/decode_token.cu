// All blocks and loops of one token in one cooperative kernel (math.md §7): one thread block per multiprocessor, with grid
// barriers between the products. At batch size 1, a token of Ouro-1.4B reads 10 GB of weights and needs almost no arithmetic,
// so loading weights sets the speed. Every warp keeps a ring of weights that cp.async is loading. It keeps loading during
// barriers and norms, and across the ends of products, layers and loops.
//
// A product is split into tiles of 8 rows of its matrix. One warp sums up a tile: with mma, where the activations are the
// only used row of A, or with fmaf in float32. Rows come in pairs (p, p + group), so that the thread that gets both sums can
// rotate a pair of a head, or multiply gate and up. Every block computes the norms itself, and the residual stream stays in
// shared memory.
//
// Every sum runs in the same order as in the kernels for many rows (gemm.cu, norm.cu, decode_attention.cu), and shares their
// code where possible. So the token has exactly the same bits.
#include "context.h"
#include "cublaslt.h"
#include "decode_attention.h"
#include "elementwise.h"
#include "norm_row.h"

namespace looplm::cuda {
namespace {

constexpr int token_threads = 256, token_warps = token_threads / 32;
constexpr int tile_rows = 8, piece_bytes = 256;  // one stage of the ring is a piece of every row of a tile
constexpr int stages_choices[] = {11, 8};        // the first that fits: 227 KiB on compute capability 9.0, 163 KiB on 8.0
constexpr int attention_groups = token_threads / decode_threads;

template <class T>
constexpr int piece = piece_bytes / int(sizeof(T));  // elements per piece
template <class T>
constexpr int piece_stride = piece<T> + 16 / int(sizeof(T));  // 16 bytes of padding put the 8 rows of an ldmatrix on
                                                              // different banks
template <class T>
constexpr int stage_elements = tile_rows* piece_stride<T>;

enum { qkv_product, output_product, gate_up_product, down_product, products };

// y = W x. Tile i has the pairs 4i … 4i + 3. Pair p has the rows p / group · 2 group + p % group, and that plus group. Tiles
// are distributed over the blocks in turn, and those of a block over its warps, starting with warp `first`.
struct Product {
  int32_t columns, tiles, group, pieces, first;
};

template <class T>
struct Token {
  Product product[products];
  int32_t layers, loops, min_loops, with_gate, heads, kv_heads, head_dim, hidden, intermediate, slot;
  int64_t plane;
  float eps;
  double threshold;
  const LoopDecodeLayer* layer;
  const T *norm, *gate_weight, *gate_bias, *embedded;
  const float* angle;  // rotary table of the position: cosines, then sines
  LoopCacheContext context;
  Decode<T> decode;              // for every layer and loop; the plane is added later
  T *qkv, *branch, *activation;  // outputs of products, in memory that all blocks see; the output of attention is decode.out
  T* state;
  int32_t* exit_loop;
  int32_t x_elements;  // size of a product's input in shared memory, rounded up to whole pieces
};

// This warp's first tile of a product; its other tiles follow in steps of tile_step().
__device__ __forceinline__ int first_tile(const Product& p) {
  return int(blockIdx.x) + int(gridDim.x) * ((warp_id() - p.first) & (token_warps - 1));
}
__device__ __forceinline__ int tile_step() { return int(gridDim.x) * token_warps; }

// The weights that a warp is loading: the pieces of all its products, layers and loops, in the order of their use.
template <class T, int stages>
struct Ring {
  static constexpr int per_lane = 16 / int(sizeof(T));
  Shared<T> memory;
  Shared<const T*> matrices;             // [layers, products]
  int layer, product, tile, next_piece;  // the next piece to load
  const T* from;                         // source of this lane's 16 bytes, in the first or second row of the tile
  int64_t pair_stride;                   // elements from a row of one pair to that of the next pair
  int left;                              // pieces that remain to be loaded
  int put, taken;                        // stages of the ring: where the next piece is loaded, and where the next one is read

  __device__ void open(const Token<T>& a, Shared<const T*> of_layers) {
    matrices = of_layers;
    memory = dynamic_shared<T>(size_t(warp_id()) * stages * stage_elements<T> * sizeof(T), size_t(stages) * stage_elements<T>);
    layer = product = next_piece = put = taken = left = 0;
    for (int p = 0; p < products; ++p)
      for (int i = first_tile(a.product[p]); i < a.product[p].tiles; i += tile_step()) left += a.product[p].pieces;
    left *= a.layers * a.loops;
    tile = first_tile(a.product[0]);
    if (left > 0) start(a);
    for (int i = 0; i < stages - 1; ++i) fetch(a);
  }
  // Starts at the first piece of `tile`. If this warp has no more tiles of the product, continues with its first tile of the
  // next product that has one.
  __device__ void start(const Token<T>& a) {
    while (tile >= a.product[product].tiles) {
      if (++product == products) {
        product = 0;
        if (++layer == a.layers) layer = 0;  // continue with the next loop
      }
      tile = first_tile(a.product[product]);
    }
    const Product& p = a.product[product];
    const int pair = 4 * tile, lane = lane_id();
    const int64_t row = int64_t(pair / p.group) * 2 * p.group + pair % p.group + lane / 16 * p.group;
    const T* const matrix = matrices[layer * products + product];
    from = matrix + row * p.columns + lane % 16 * per_lane;
    pair_stride = int64_t(p.group == 1 ? 2 : 1) * p.columns;
    next_piece = 0;
  }
  // Loads one piece if any remains. Always commits a group of copies.
  __device__ void fetch(const Token<T>& a) {
    if (left > 0) {
      const Product& p = a.product[product];
      const Shared<T> stage = memory + put * stage_elements<T>;
      const int lane = lane_id(), column = next_piece * piece<T> + lane % 16 * per_lane;
      const int valid = column < p.columns ? 16 : 0;  // columns are a multiple of 16 bytes
#pragma unroll
      for (int pair = 0; pair < 4; ++pair)
        copy_async<16>(stage + (2 * pair + lane / 16) * piece_stride<T> + lane % 16 * per_lane,
                       valid ? from + pair * pair_stride : a.norm, valid);
      from += piece<T>;
      --left;
      put = put + 1 == stages ? 0 : put + 1;
      if (++next_piece == p.pieces && left > 0) {
        tile += tile_step();
        start(a);
      }
    }
    copy_async_commit();
  }
  // Waits for the next piece and returns it. After that, the stage of the piece before it may be overwritten.
  __device__ Shared<T> take() {
    copy_async_wait<stages - 2>();
    __syncwarp();
    const Shared<T> stage = memory + taken * stage_elements<T>;
    taken = taken + 1 == stages ? 0 : taken + 1;
    return stage;
  }
};

// Calls put(pair, first row's sum, second row's sum) for every pair of this warp's tiles. x: `columns` values in shared
// memory, then zeros.
template <class T, int stages, class Put>
__device__ __forceinline__ void multiply(const Token<T>& a, Ring<T, stages>& ring, int product, Shared<T> x, Put put) {
  const Product& p = a.product[product];
  const int lane = lane_id();
  for (int tile = first_tile(p); tile < p.tiles; tile += tile_step()) {
    float first, second;
    if constexpr (sizeof(T) == 2) {
      float sum[4] = {};
      for (int i = 0; i < p.pieces; ++i) {
        const Shared<T> rows = ring.take() + lane % 8 * piece_stride<T> + lane / 8 * 8, columns = x + i * piece<T> + lane / 8 * 8;
        constexpr int steps = piece<T> / 32;  // with two products each
        uint32_t w[steps][4], v[steps][4];    // four 8 × 8 matrices along k; in v all rows are the activations
#pragma unroll
        for (int k = 0; k < steps; ++k) {
          load_matrix(w[k], rows + 32 * k);
          load_matrix(v[k], columns + 32 * k);
        }
        ring.fetch(a);  // overlaps with these reads
#pragma unroll
        for (int k = 0; k < steps; ++k) {
          const uint32_t low[4] = {v[k][0], v[k][0], v[k][1], v[k][1]}, high[4] = {v[k][2], v[k][2], v[k][3], v[k][3]};
          mma_bf16(sum, low, w[k][0], w[k][1]);
          mma_bf16(sum, high, w[k][2], w[k][3]);
        }
      }
      first = sum[0], second = sum[1];
    } else {
      float sum = 0;
      for (int i = 0; i < p.pieces; ++i) {
        const Shared<T> row = ring.take() + lane % 8 * piece_stride<T>, columns = x + i * piece<T>;
        ring.fetch(a);
#pragma unroll 4
        for (int k = 0; k < piece<T>; k += 4) {
          const float4 w = shared_cast<float4>(row + k)[0], v = shared_cast<float4>(columns + k)[0];
          sum = fmaf(v.x, w.x, sum), sum = fmaf(v.y, w.y, sum), sum = fmaf(v.z, w.z, sum), sum = fmaf(v.w, w.w, sum);
        }
      }
      first = __shfl_sync(full_warp, sum, 2 * (lane % 4));
      second = __shfl_sync(full_warp, sum, 2 * (lane % 4) + 1);
    }
    if (lane < 4) put(4 * tile + lane, first, second);
  }
}

// Loads the output of all blocks as the input of a product.
template <class T>
__device__ __forceinline__ void gather_input(int columns, int elements, const T* from, Shared<T> x) {
  constexpr int each = 16 / int(sizeof(T));
  for (int i = int(threadIdx.x) * each; i < elements; i += token_threads * each)
    shared_cast<uint4>(x + i)[0] = i < columns ? load<uint4>(from + i) : uint4{0, 0, 0, 0};
  __syncthreads();
}

// Prefetches a row with all threads of a block.
template <class T>
__device__ __forceinline__ void prefetch_row(const T* row, int count) {
  constexpr int line = 128 / int(sizeof(T));
  for (int i = int(threadIdx.x) * line; i < count; i += token_threads * line) prefetch(row + i);
}

template <class T, int stages>
__global__ void __launch_bounds__(token_threads, 1) token_kernel(const __grid_constant__ Token<T> a) {
  constexpr int W = wide<T>;
  SHARED_ARRAY(float, scratch, token_warps);
  SHARED_ARRAY(int, leaves, 1);
  size_t at = size_t(token_warps) * stages * stage_elements<T> * sizeof(T);
  const Shared<T> h = dynamic_shared<T>(at, size_t(a.hidden));
  at += size_t(a.hidden) * sizeof(T);
  const Shared<T> x = dynamic_shared<T>(at, size_t(a.x_elements));
  at += size_t(a.x_elements) * sizeof(T);
  const int group = int(threadIdx.x) / decode_threads, of_group = int(threadIdx.x) % decode_threads;
  const size_t sums_count = size_t(decode_threads / a.decode.lanes) * size_t(a.head_dim + 2);
  const Shared<float> sums = dynamic_shared<float>(at + size_t(group) * sums_count * sizeof(float), sums_count);

  at += attention_groups * sums_count * sizeof(float);
  const Shared<const T*> matrices = dynamic_shared<const T*>(at, size_t(a.layers) * products);
  for (int l = int(threadIdx.x); l < a.layers; l += token_threads) {
    const LoopDecodeLayer& layer = a.layer[l];
    matrices[l * products + qkv_product] = static_cast<const T*>(layer.qkv);
    matrices[l * products + output_product] = static_cast<const T*>(layer.output);
    matrices[l * products + gate_up_product] = static_cast<const T*>(layer.gate_up);
    matrices[l * products + down_product] = static_cast<const T*>(layer.down);
  }
  __syncthreads();

  Ring<T, stages> ring;
  ring.open(a, matrices);
  const auto from_h = [&](int j, float(&v)[W]) { read_shared(h + j, v); };
  const auto to_h = [&](int j, const float(&v)[W]) { write_shared(h + j, v); };
  const auto to_x = [&](int j, const float(&v)[W]) { write_shared(x + j, v); };
  const int half = a.head_dim / 2, kv_width = a.kv_heads * a.head_dim, width = a.heads * a.head_dim, d = a.hidden;
  // Pads x, which a norm has written, with zeros for the next product.
  const auto input_of_norm = [&] {
    for (int i = d + int(threadIdx.x); i < a.product[qkv_product].pieces * piece<T>; i += token_threads)
      x[i] = from_float<T>(0.0f);
    __syncthreads();
  };

  for (int j = int(threadIdx.x) * W; j < d; j += token_threads * W) {
    float v[W];
    read<W>(a.embedded + j, v);
    to_h(j, v);
  }
  double stay = 1;
  int loop = 0;
  for (bool more = true; more; ++loop) {
    const int64_t behind = loop * a.plane;  // in slots
    put_normed<W>(d, a.eps, sum_of_squares<W>(d, from_h), static_cast<const T*>(a.layer[0].attention_norm), scratch, from_h,
                  to_x);
    input_of_norm();
    for (int l = 0; l < a.layers; ++l) {
      // Read now: after a barrier, the addresses would have to arrive before the data.
      const LoopDecodeLayer layer = a.layer[l];
      const T *norm_2 = static_cast<const T*>(layer.attention_norm_2), *mlp_norm = static_cast<const T*>(layer.mlp_norm),
              *mlp_norm_2 = static_cast<const T*>(layer.mlp_norm_2),
              *next_norm = l + 1 < a.layers ? static_cast<const T*>(a.layer[l + 1].attention_norm) : a.norm;
      if (blockIdx.x == 0) {  // prefetch into the L2 cache what is needed after barriers
        prefetch_row(norm_2, d);
        prefetch_row(mlp_norm, d);
        prefetch_row(mlp_norm_2, d);
        prefetch_row(next_norm, d);
      }
      T *keys = static_cast<T*>(layer.keys) + behind * kv_width, *values = static_cast<T*>(layer.values) + behind * kv_width;
      Decode<T> decode = a.decode;
      decode.keys = keys, decode.values = values;
      const Parts parts = parts_of(length_of(a.context));
      const int units = a.heads * parts.count, first_unit = int(blockIdx.x) + group * int(gridDim.x);
      if (first_unit < units) prefetch_part(decode, a.context, parts, first_unit % a.heads, first_unit / a.heads, of_group);

      multiply(a, ring, qkv_product, x, [&](int pair, float first, float second) {
        const int head = pair / half, j = pair % half;
        T low = from_float<T>(first), high = from_float<T>(second);
        if (head < a.heads + a.kv_heads) {
          float u = to_float(low), v = to_float(high);
          rotate(u, v, a.angle[j], a.angle[half + j]);
          low = from_float<T>(u), high = from_float<T>(v);
        }
        T* to = head < a.heads ? a.qkv + head * a.head_dim
                               : (head < a.heads + a.kv_heads ? keys + (head - a.heads) * a.head_dim
                                                              : values + (head - a.heads - a.kv_heads) * a.head_dim) +
                                     int64_t(a.slot) * kv_width;
        to[j] = low, to[half + j] = high;
      });
      grid_barrier();

      for (int unit = first_unit; unit < units; unit += attention_groups * int(gridDim.x)) {
        const int head = unit % a.heads, part = unit / a.heads;
        decode_parts<8, 1, true>(
            decode, PlainKeys<T>{decode, a.context}, 0, head, part, parts.count, of_group, sums,
            [&] { named_barrier(1 + group, decode_threads); },
            [&](int, int r, int e, int, float most, float total, float value) {
              if (parts.count == 1) {
                Running only;
                only.add(most, total, value);
                a.decode.out[(head + r) * a.head_dim + e] = from_float<T>(only.value / only.sum);
              } else {
                keep_part(decode, head + r, part, e, most, total, value);
              }
            });
      }
      grid_barrier();
      if (parts.count > 1) {
        for (int i = int(blockIdx.x) * token_threads + int(threadIdx.x); i < width; i += int(gridDim.x) * token_threads)
          a.decode.out[i] = combined(a.decode, i / a.head_dim, parts.count, i % a.head_dim);
        grid_barrier();
      }

      gather_input<T>(width, a.product[output_product].pieces * piece<T>, a.decode.out, x);
      const auto to_branch = [&](int pair, float first, float second) {
        a.branch[2 * pair] = from_float<T>(first), a.branch[2 * pair + 1] = from_float<T>(second);
      };
      multiply(a, ring, output_product, x, to_branch);
      grid_barrier();

      float square = add_normed<W>(d, a.eps, static_cast<const T*>(a.branch), norm_2, scratch, from_h, to_h);
      put_normed<W>(d, a.eps, square, mlp_norm, scratch, from_h, to_x);
      input_of_norm();
      multiply(a, ring, gate_up_product, x, [&](int pair, float first, float second) {
        a.activation[pair] = from_float<T>(swiglu_of(to_float(from_float<T>(first)), to_float(from_float<T>(second))));
      });
      grid_barrier();

      gather_input<T>(a.intermediate, a.product[down_product].pieces * piece<T>, a.activation, x);
      multiply(a, ring, down_product, x, to_branch);
      grid_barrier();

      square = add_normed<W>(d, a.eps, static_cast<const T*>(a.branch), mlp_norm_2, scratch, from_h, to_h);
      if (l + 1 < a.layers) {
        put_normed<W>(d, a.eps, square, next_norm, scratch, from_h, to_x);
        input_of_norm();
      } else {
        put_normed<W>(d, a.eps, square, next_norm, scratch, from_h, to_h);
        __syncthreads();
      }
    }

    // Every block decides for itself, from the same numbers.
    more = loop + 1 < a.loops;
    if (more && a.with_gate) {
      if (warp_id() == 0) {
        const float gate = warp_dot<W>(d, a.gate_weight, from_h) + to_float(a.gate_bias[0]);
        stay = __dmul_rn(stay, 1 / __dadd_rn(1, exp(double(gate))));  // same rounding as on the host
        if (lane_id() == 0) leaves[0] = loop + 1 >= a.min_loops && 1 - stay >= a.threshold;
      }
      __syncthreads();
      more = leaves[0] == 0;
    }
  }
  copy_async_wait<0>();  // pieces that were loaded for a loop that does not run
  if (blockIdx.x == 0) {
    for (int j = int(threadIdx.x) * W; j < d; j += token_threads * W) {
      float v[W];
      from_h(j, v);
      write<W>(a.state + j, v);
    }
    if (threadIdx.x == 0) *a.exit_loop = loop;
  }
}

// Lays out scratch memory; each piece starts at a multiple of 256 bytes.
struct Layout {
  size_t bytes = 0;
  size_t take(size_t count) {
    const size_t at = bytes;
    bytes += (count + 255) / 256 * 256;
    return at;
  }
};

template <class T, int stages>
int run(Context& c, const LoopDecodeToken& t, Token<T>& a, int blocks, size_t shared) {
  if (resident_blocks(c.device, token_kernel<T, stages>, token_threads, shared) < 1) return LOOP_DECLINED;
  const size_t size = sizeof(T), layer_bytes = size_t(t.layers) * sizeof(LoopDecodeLayer);
  Layout layout;
  const size_t layers = layout.take(layer_bytes), qkv = layout.take(size_t(t.heads) * t.head_dim * size),
               attention = layout.take(size_t(t.heads) * t.head_dim * size), branch = layout.take(size_t(t.hidden) * size),
               activation = layout.take(size_t(t.intermediate) * size),
               partial = layout.take(size_t(t.heads) * most_parts * size_t(t.head_dim + 2) * 4);
  auto* memory = static_cast<char*>(scratch(c, layout.bytes));
  if (!memory) return LOOP_OUT_OF_MEMORY;
  if (int status = send(c, memory + layers, t.host_layers, layer_bytes)) return status;
  const auto place = [&](size_t at) { return reinterpret_cast<T*>(memory + at); };
  a.layer = reinterpret_cast<const LoopDecodeLayer*>(memory + layers);
  a.qkv = place(qkv), a.branch = place(branch), a.activation = place(activation);
  a.decode.qkv = a.qkv, a.decode.out = place(attention), a.decode.partial = reinterpret_cast<float*>(memory + partial);
  return check(c, launch_cooperative(token_kernel<T, stages>, dim3(unsigned(blocks)), dim3(token_threads), shared, c.stream, a),
               "decode_token");
}

// Whether all rows are multiples of 16 bytes and aligned.
bool fits(const LoopDecodeToken& t) {
  bool aligned = t.hidden % 8 == 0 && t.intermediate % 8 == 0 && t.head_dim % 8 == 0 && t.head_dim <= 256;
  const auto require = [&](std::initializer_list<const void*> pointers) {
    for (const void* p : pointers) aligned = aligned && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  };
  require({t.norm, t.gate_weight, t.embedded, t.state});
  for (int32_t l = 0; l < t.layers; ++l) {
    const LoopDecodeLayer& w = t.host_layers[l];
    require(
        {w.attention_norm, w.qkv, w.output, w.attention_norm_2, w.mlp_norm, w.gate_up, w.down, w.mlp_norm_2, w.keys, w.values});
  }
  return aligned;
}

int decode_token(void* ctx, LoopDType dt, const LoopDecodeToken* given) {
  const LoopDecodeToken& t = *given;
  if (static_cast<Context*>(ctx)->decode != DecodeBy::token || !fits(t)) return LOOP_DECLINED;
  return with_dtype(ctx, "decode_token", dt, [&]<class T>(Context& c, T) {
    Gemm one{};  // a product with one row: decline if the library would compute it, because it sums in another order
    one.m = 1, one.n = one.k = t.hidden, one.transpose_b = true;
    if (prefers_lt(c, one)) return int(LOOP_DECLINED);
    int blocks = 0, shared_limit = 0, cooperative = 0;
    cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, c.device);
    cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, c.device);
    cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, c.device);

    Token<T> a{};
    const int width = t.heads * t.head_dim, half = t.head_dim / 2;
    int first = 0;
    const auto product = [&](int64_t columns, int64_t pairs, int64_t group) {
      const Product p{int32_t(columns), int32_t(pairs / 4), int32_t(group), int32_t(ceil_div(columns, piece<T>)), first};
      first = int((first + ceil_div(p.tiles, blocks)) % token_warps);  // the next product starts with the warps that have
                                                                       // fewer tiles of this one
      a.x_elements = std::max(a.x_elements, p.pieces * piece<T>);
      return p;
    };
    a.product[qkv_product] = product(t.hidden, int64_t(t.heads + 2 * t.kv_heads) * half, half);
    a.product[output_product] = product(width, t.hidden / 2, 1);
    a.product[gate_up_product] = product(t.hidden, t.intermediate, t.intermediate);
    a.product[down_product] = product(t.intermediate, t.hidden / 2, 1);
    a.layers = t.layers, a.loops = t.loops, a.min_loops = t.min_loops, a.with_gate = t.with_gate;
    a.heads = t.heads, a.kv_heads = t.kv_heads, a.head_dim = t.head_dim;
    a.hidden = int32_t(t.hidden), a.intermediate = int32_t(t.intermediate);
    a.slot = t.slot, a.plane = t.plane, a.context = t.context;
    a.eps = float(t.norm_eps), a.threshold = t.threshold;
    a.norm = static_cast<const T*>(t.norm), a.embedded = static_cast<const T*>(t.embedded);
    a.gate_weight = static_cast<const T*>(t.gate_weight), a.gate_bias = static_cast<const T*>(t.gate_bias);
    a.angle = static_cast<const float*>(t.cos_sin) + int64_t(t.position) * t.head_dim;
    a.state = static_cast<T*>(t.state), a.exit_loop = t.exit_loop;
    a.decode.heads = t.heads, a.decode.kv_heads = t.kv_heads, a.decode.head_dim = t.head_dim;
    a.decode.ratio = t.heads / t.kv_heads, a.decode.scale = float(t.scale), a.decode.lanes = lanes_of(t.head_dim, 8);

    const size_t sums = size_t(decode_threads / a.decode.lanes) * size_t(t.head_dim + 2) * sizeof(float);
    const auto shared = [&](int stages) {
      return (size_t(token_warps) * size_t(stages) * stage_elements<T> + size_t(t.hidden + a.x_elements)) * sizeof(T) +
             attention_groups * sums + size_t(t.layers) * products * sizeof(T*);
    };
    const auto fits = [&](int stages) { return cooperative && shared(stages) + 1024 <= size_t(shared_limit); };
    constexpr int most = stages_choices[0], fewer = stages_choices[1];
    if (fits(most)) return run<T, most>(c, t, a, blocks, shared(most));
    return fits(fewer) ? run<T, fewer>(c, t, a, blocks, shared(fewer)) : int(LOOP_DECLINED);
  });
}

}  // namespace

void add_decode_token(LoopBackend& table) { table.decode_token = guarded<decode_token>; }

}  // namespace looplm::cuda
