// Latent noise, W Philox blocks of four numbers at a time: Philox4x32-10 and Box-Muller as native/numeric/philox.h defines
// them, in float32.
#include "kernels.h"

namespace looplm::cpu::LOOPLM_ISA {

namespace {

typedef uint64_t vu64 __attribute__((vector_size(W * 8)));

struct Words {
  vu w[4];
};

inline Words philox(Words c, uint64_t seed) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; round++) {
    const vu64 p0 = __builtin_convertvector(c.w[0], vu64) * 0xD2511F53u, p1 = __builtin_convertvector(c.w[2], vu64) * 0xCD9E8D57u;
    const vu high0 = __builtin_convertvector(p0 >> 32, vu), high1 = __builtin_convertvector(p1 >> 32, vu);
    c = {{high1 ^ c.w[1] ^ k0, __builtin_convertvector(p1, vu), high0 ^ c.w[3] ^ k1, __builtin_convertvector(p0, vu)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// log of (u + 1/2) / 2³² to the relative precision of float32. Near 1 it is computed as log(1 - v/2³²) with a small v, which
// the conversion to float keeps exact enough.
inline vf log_uniform(vu u) {
  const vu rest = ~u;  // 2³² - 1 - u
  const vf near_one = (__builtin_convertvector(rest, vf) + 0.5f) * 0x1p-32f;
  // log(1 - x) by its series for x < 2^-7; for larger x the plain conversion is precise enough
  const vf series = -near_one * (1.0f + near_one * (0.5f + near_one * (0.33333333f + near_one * 0.25f)));
  const vf plain = vlog((__builtin_convertvector(u, vf) + 0.5f) * 0x1p-32f);
  return near_one < splat(0x1p-7f) ? series : plain;
}

inline vf root(vf x) {
  vf out = {};
  for (int i = 0; i < W; i++) out[i] = __builtin_sqrtf(x[i]);
  return out;
}

// cos and sin of 2π u / 2³²: the nearest quarter turn, plus polynomials in the rest (at most an eighth of a turn).
inline void turn(vu u, vf& cosine, vf& sine) {
  const vu quarter = (u + 0x20000000u) >> 30;
  const vf t = __builtin_convertvector((vi)(u - (quarter << 30)), vf) * (6.283185307179586f * 0x1p-32f), t2 = t * t;
  const vf s = t + t * t2 * (-1.6666667e-1f + t2 * (8.3333310e-3f + t2 * -1.9839334e-4f));
  const vf c = 1.0f + t2 * (-0.5f + t2 * (4.1666638e-2f + t2 * (-1.3888378e-3f + t2 * 2.4760495e-5f)));
  const vi odd = -(vi)(quarter & 1u), minus_cos = (vi)(((quarter + 1u) >> 1 & 1u) << 31),
           minus_sin = (vi)((quarter >> 1 & 1u) << 31);
  cosine = (vf)((((vi)s & odd) | ((vi)c & ~odd)) ^ minus_cos);
  sine = (vf)((((vi)c & odd) | ((vi)s & ~odd)) ^ minus_sin);
}

// The noise of elements [4·block, 4·block + 4·W) at one position.
inline void noise(uint64_t seed, uint32_t stream, uint32_t position, uint32_t loop, uint32_t block, float out[4 * W]) {
  vu blocks = {};
  for (int i = 0; i < W; i++) blocks[i] = block + uint32_t(i);
  const vu zero = {};
  const Words bits = philox({{blocks, zero + position, zero + stream, zero + (2 + 4 * loop)}}, seed);
  vf values[4];
  for (int pair = 0; pair < 2; pair++) {
    vf cosine, sine;
    turn(bits.w[2 * pair + 1], cosine, sine);
    const vf radius = root(-2.0f * log_uniform(bits.w[2 * pair]));
    values[2 * pair] = radius * cosine;
    values[2 * pair + 1] = radius * sine;
  }
  for (int i = 0; i < W; i++)
    for (int j = 0; j < 4; j++) out[4 * i + j] = values[j][i];
}

template <class E>
int add(Context& ctx, int64_t n, int64_t d, float sigma, uint64_t seed, uint32_t loop, const int32_t* streams,
        const int32_t* positions, E* x) {
  for_rows(ctx, n, d, [=](int64_t begin, int64_t end, int) {
    alignas(64) float values[4 * W];
    for (int64_t i = begin; i < end; i++)
      for (int64_t k = 0; k < d; k += 4 * W) {
        noise(seed, uint32_t(streams[i]), uint32_t(positions[i]), loop, uint32_t(k / 4), values);
        const int64_t last = d - k < 4 * W ? d - k : 4 * W;
        E* row = x + i * d + k;
        for (int64_t j = 0; j < last; j++) set(row[j], to_float(row[j]) + sigma * values[j]);
      }
  });
  return 0;
}

}  // namespace

int add_noise(void* ctx, LoopDType dt, int64_t n, int64_t d, double sigma, uint64_t seed, uint32_t loop, const int32_t* streams,
              const int32_t* positions, void* x) {
  auto& context = *static_cast<Context*>(ctx);
  return dt == LOOP_BF16 ? add(context, n, d, float(sigma), seed, loop, streams, positions, static_cast<bf16*>(x))
                         : add(context, n, d, float(sigma), seed, loop, streams, positions, static_cast<float*>(x));
}

}  // namespace looplm::cpu::LOOPLM_ISA
