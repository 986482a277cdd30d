// The quantized KV cache: encodes rows into records and decodes them (backend.h, LoopCacheCodes). Attention over records is
// in decode_attention.cu.
#include "coded_cache.h"

namespace looplm::cuda {
namespace {

constexpr int coder_warps = 4, coder_threads = 32 * coder_warps;

// x rounded away from zero to a bfloat16.
__device__ __forceinline__ uint32_t away_from_zero(float x) {
  const uint32_t bits = __float_as_uint(x);
  return (bits >> 16) + ((bits & 0xFFFF) != 0);
}
// The largest bfloat16 that is not above x.
__device__ __forceinline__ uint32_t not_above(float x) {
  return __float_as_uint(x) >> 31 ? away_from_zero(x) : __float_as_uint(x) >> 16;
}

// One warp encodes group g of a record. x(i) is number i of the group.
template <class Numbers>
__device__ __forceinline__ void encode_group(const Records& r, int g, uint32_t* record, Numbers x) {
  const int lane = lane_id();
  float high = -INFINITY, negated_low = -INFINITY, not_finite = 0;
  for (int i = lane; i < r.group; i += 32) {
    const float y = x(i);
    high = y > high ? y : high;
    negated_low = -y > negated_low ? -y : negated_low;
    if (!(y - y == 0)) not_finite = 1;
  }
  high = warp_max(high), negated_low = warp_max(negated_low);
  const bool finite = warp_max(not_finite) == 0;
  const float most = float((1 << r.bits) - 1);
  const uint32_t minimum = finite ? not_above(-negated_low) : 0x7FC0;
  const float from = bf16_low(minimum);
  const uint32_t scale = finite ? away_from_zero((high - from) / most) : 0;
  const float inverse = scale ? 1.0f / bf16_low(scale) : 0;
  if (lane == 0) record[r.groups * r.words + g] = minimum << 16 | scale;
  for (int w = lane; w < r.words; w += 32) {
    uint32_t codes = 0;
    if (scale)
      for (int i = w, shift = 0; i < r.group; i += r.words, shift += r.bits) {
        const float code = rintf(__fmul_rn(x(i) - from, inverse));
        codes |= uint32_t(code < most ? code : most) << shift;
      }
    record[g * r.words + w] = codes;
  }
}

// The same with `kept`. sorted: room for `group` floats. codes: room for `kept` codes.
template <class Numbers>
__device__ __forceinline__ void encode_pruned_group(const Records& r, int g, uint32_t* record, Numbers x, Shared<float> sorted,
                                                    Shared<uint32_t> codes) {
  const int lane = lane_id(), pruned = r.group - r.kept;
  // The rank of number i in ascending order; equal numbers are ordered by index.
  const auto rank = [&](int i) {
    const float y = x(i);
    int before = 0;
    for (int j = 0; j < r.group; ++j) {
      const float z = x(j);
      before += z < y || (z == y && j < i);
    }
    return before;
  };
  float not_finite = 0;
  for (int i = lane; i < r.group; i += 32) {
    const float y = x(i);
    if (!(y - y == 0)) not_finite = 1;
    else sorted[rank(i)] = y;
  }
  const bool finite = warp_max(not_finite) == 0;
  __syncwarp();
  uint32_t minimum = 0x7FC0, scale = 0, restored = 0;
  int first = 0;
  float from = 0, inverse = 0;
  if (finite) {
    // The first shortest interval.
    float least = INFINITY;
    for (int i = lane; i <= r.kept; i += 32) {
      const float length = float(sorted[i + pruned - 1]) - float(sorted[i]);
      if (i == lane || length < least) least = length, first = i;
    }
    const float shortest = -warp_max(lane <= r.kept ? -least : -INFINITY);
    first = -warp_max(lane <= r.kept && least == shortest ? -first : -r.group);
    minimum = not_above(sorted[0]);
    from = bf16_low(minimum);
    scale = away_from_zero((float(sorted[r.group - 1]) - from) / 14);
    inverse = scale ? 1.0f / bf16_low(scale) : 0;
    const float middle = float(sorted[first]) / 2 + float(sorted[first + pruned - 1]) / 2;
    if (scale) restored = uint32_t(fminf(rintf(__fmul_rn(middle - from, inverse)), 14));
  }
  int count = 0;  // number of kept numbers at the places before this iteration
  for (int m = 0; m < r.mask_words; ++m) {
    const int place = 32 * m + lane, i = r.at_place(place);
    bool kept = scale && place < 8 * r.words && i < r.group;
    if (kept) {
      const int at = rank(i);
      kept = at < first || at >= first + pruned;
    }
    const uint32_t mask = __ballot_sync(full_warp, kept);
    if (kept) codes[count + __popc(mask & ((1u << lane) - 1))] = uint32_t(fminf(rintf(__fmul_rn(x(i) - from, inverse) / 2), 7));
    count += __popc(mask);
    if (lane == 0) record[r.masks_at() + g * r.mask_words + m] = mask;
  }
  __syncwarp();
  for (int w = lane; w < r.kept_words; w += 32) {
    uint32_t word = 0;
    for (int k = 32 * w / 3; k < count && 3 * k < 32 * w + 32; ++k) {
      const int shift = 3 * k - 32 * w;
      const uint32_t code = codes[k];
      word |= shift < 0 ? code >> -shift : code << shift;
    }
    record[g * r.kept_words + w] = word;
  }
  if (lane == 0) {
    record[r.pairs_at() + g] = minimum << 16 | scale;
    auto* bytes = reinterpret_cast<uint8_t*>(record + r.restored_at());
    bytes[g] = uint8_t(restored);
    for (int b = g + 1; g + 1 == r.groups && b % 4; ++b) bytes[b] = 0;
  }
  __syncwarp();
}

// One block per row encodes its keys or values, which start at column `first`.
template <class T>
__global__ void __launch_bounds__(coder_threads)
    encode_kernel(const Records r, int64_t row_width, int64_t first, const int32_t* slots, const T* qkv, uint32_t* records,
                  KernelFault* fault) {
  const int32_t slot = slots[blockIdx.x];
  if (slot < 0) {
    if (threadIdx.x == 0) *fault = {1, slot, INT32_MAX};
    return;
  }
  const T* row = qkv + int64_t(blockIdx.x) * row_width + first;
  uint32_t* record = records + int64_t(slot) * r.size;
  const size_t room = size_t(r.group) * 4;  // bytes per warp for each of its two arrays
  for (int g = warp_id(); g < r.groups; g += coder_warps) {
    const auto number = [&](int i) { return to_float(row[g * r.group + i]); };
    if (r.kept == 0) encode_group(r, g, record, number);
    else
      encode_pruned_group(r, g, record, number, dynamic_shared<float>(2 * warp_id() * room, size_t(r.group)),
                          dynamic_shared<uint32_t>((2 * warp_id() + 1) * room, size_t(r.group)));
  }
}

// One block per token encodes its keys or values: first the anchor, then for each earlier loop the difference from the
// anchor's decoded numbers.
template <class T>
__global__ void __launch_bounds__(coder_threads)
    encode_residuals_kernel(const Records anchor, const Records residual, int64_t width, int64_t exact_slots, int64_t slots,
                            const LoopResidualToken* tokens, const T* exact, uint32_t* anchors, uint32_t* residuals) {
  const LoopResidualToken token = tokens[blockIdx.x];
  uint32_t* const record = anchors + int64_t(token.slot) * anchor.size;
  const T* last = exact + ((token.loops - 1) * exact_slots + token.exact) * width;
  for (int g = warp_id(); g < anchor.groups; g += coder_warps)
    encode_group(anchor, g, record, [&](int i) { return to_float(last[g * anchor.group + i]); });
  __syncthreads();
  for (int unit = warp_id(); unit < (token.loops - 1) * residual.groups; unit += coder_warps) {
    const int loop = unit / residual.groups, g = unit % residual.groups;
    const T* row = exact + (loop * exact_slots + token.exact) * width;
    encode_group(residual, g, residuals + (loop * slots + token.slot) * residual.size, [&](int i) {
      const int at = g * residual.group + i;
      return __fadd_rn(to_float(row[at]), -anchor.number(record, at));
    });
  }
}

// One block per record decodes its numbers and, if there is a residual record, adds those of the residual.
template <class T>
__global__ void __launch_bounds__(coder_threads)
    decode_records_kernel(const Records r, const uint32_t* records, const Records residual, const uint32_t* residuals,
                          int64_t stride, T* out) {
  const uint32_t* record = records + int64_t(blockIdx.x) * r.size;
  const uint32_t* added = residuals ? residuals + int64_t(blockIdx.x) * residual.size : nullptr;
  for (int i = int(threadIdx.x); i < r.groups * r.group; i += coder_threads) {
    const float x = r.number(record, i);
    out[int64_t(blockIdx.x) * stride + i] = from_float<T>(added ? __fadd_rn(x, residual.number(added, i)) : x);
  }
}

int cache_encode(void* ctx, LoopDType dt, LoopCacheCodes codes, int64_t rows, int32_t heads, int32_t kv_heads, int32_t head_dim,
                 const int32_t* slots, const void* qkv, void* keys, void* values) {
  return with_dtype(ctx, "cache_encode", dt, [&]<class T>(Context& c, T) {
    const int64_t width = int64_t(kv_heads) * head_dim, column = int64_t(heads) * head_dim;
    const auto half = [&](LoopCacheCodes of, int64_t first, void* records) {
      const size_t shared = of.kept > 0 ? size_t(2 * coder_warps * of.group) * 4 : 0;
      return check(
          c,
          launch(encode_kernel<T>, dim3(unsigned(rows)), dim3(coder_threads), shared, c.stream, Records(of, width),
                 column + 2 * width, first, slots, static_cast<const T*>(qkv), static_cast<uint32_t*>(records), c.kernel_fault),
          "cache_encode");
    };
    const int status = half(codes, column, keys);
    return status ? status : half(loop_whole_codes(codes), column + width, values);
  });
}

int cache_encode_residuals(void* ctx, LoopDType dt, const LoopResidualEncode* e) {
  return with_dtype(ctx, "cache_encode_residuals", dt, [&]<class T>(Context& c, T) {
    const auto half = [&](const void* exact, void* anchors, void* residuals) {
      return check(
          c,
          launch(encode_residuals_kernel<T>, dim3(unsigned(e->count)), dim3(coder_threads), 0, c.stream,
                 Records(e->anchor, e->width), Records(e->residual, e->width), e->width, e->exact_slots, e->slots, e->tokens,
                 static_cast<const T*>(exact), static_cast<uint32_t*>(anchors), static_cast<uint32_t*>(residuals)),
          "cache_encode_residuals");
    };
    const int status = half(e->keys, e->anchor_keys, e->residual_keys);
    return status ? status : half(e->values, e->anchor_values, e->residual_values);
  });
}

int cache_decode(void* ctx, LoopDType dt, LoopCacheCodes codes, int64_t rows, int64_t width, const void* records,
                 LoopCacheCodes residual, const void* residuals, int64_t stride, void* out) {
  return with_dtype(ctx, "cache_decode", dt, [&]<class T>(Context& c, T) {
    return check(c,
                 launch(decode_records_kernel<T>, dim3(unsigned(rows)), dim3(coder_threads), 0, c.stream, Records(codes, width),
                        static_cast<const uint32_t*>(records), Records(residuals ? residual : codes, width),
                        static_cast<const uint32_t*>(residuals), stride, static_cast<T*>(out)),
                 "cache_decode");
  });
}

}  // namespace

void add_coded_cache(LoopBackend& table) {
  table.cache_encode = guarded<cache_encode>;
  table.cache_encode_residuals = guarded<cache_encode_residuals>;
  table.cache_decode = guarded<cache_decode>;
}

}  // namespace looplm::cuda
