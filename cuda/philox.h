// native/numeric/philox.h for kernels: the same counters and bits, and the same numbers up to float32 rounding.
#pragma once
#include "simt.h"

#ifndef __CUDACC__
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = float(sin(3.14159265358979323846 * double(x)));
  *cosine = float(cos(3.14159265358979323846 * double(x)));
}
#endif

namespace looplm::cuda {

struct PhiloxBits {
  uint32_t w[4];
};

__device__ __forceinline__ PhiloxBits philox4x32(PhiloxBits c, uint64_t key) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c.w[0], p1 = uint64_t(0xCD9E8D57u) * c.w[2];
    c = {{uint32_t(p1 >> 32) ^ c.w[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c.w[3] ^ k1, uint32_t(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// uniform(seed, sequence, position) of philox.h, in double.
__device__ __forceinline__ double philox_uniform(uint64_t seed, uint32_t sequence, uint32_t position) {
  const PhiloxBits b = philox4x32({{position, sequence, 0, 0}}, seed);
  const uint64_t bits = (uint64_t(b.w[0]) << 32 | b.w[1]) >> 11;
  return bits ? double(bits) * 0x1p-53 : 0x1p-54;
}

// latent_noise of philox.h: elements 4·block to 4·block + 3. Near 1, the uniform number is computed from its distance to 1,
// and the angle from a signed turn. So float32 keeps its precision.
__device__ __forceinline__ void latent_noise(uint64_t seed, uint32_t stream, uint32_t position, uint32_t loop, uint32_t block,
                                             float (&out)[4]) {
  const PhiloxBits b = philox4x32({{block, position, stream, 2 + 4 * loop}}, seed);
#pragma unroll
  for (int pair = 0; pair < 2; pair++) {
    const uint32_t u = b.w[2 * pair];
    const float log_u = u < 0x80000000u ? logf((float(u) + 0.5f) * 0x1p-32f) : log1pf(-(float(~u) + 0.5f) * 0x1p-32f);
    const float radius = sqrtf(-2 * log_u), half_turns = float(int32_t(b.w[2 * pair + 1])) * 0x1p-31f;
    float sine, cosine;
    sincospif(half_turns, &sine, &cosine);
    out[2 * pair] = radius * cosine;
    out[2 * pair + 1] = radius * sine;
  }
}

}  // namespace looplm::cuda
