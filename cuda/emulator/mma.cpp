#include "device.h"

namespace looplm::cuda {

// mma_bf16 in simt.h shows the layout of the operands. Sums run over k in order, in float32.
void mma_bf16_warp(emulator::Collective& warp) {
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto* in = static_cast<const uint32_t*>(warp.in[lane]);
    const auto* out = static_cast<const float*>(warp.out[lane]);
    const int g = lane / 4, p = 2 * (lane % 4);
    for (int i = 0; i < 2; ++i) {
      const auto value = [&](uint32_t pair) { return __uint_as_float(i == 0 ? pair << 16 : pair & 0xFFFF0000u); };
      a[g][p + i] = value(in[0]);
      a[g + 8][p + i] = value(in[1]);
      a[g][p + 8 + i] = value(in[2]);
      a[g + 8][p + 8 + i] = value(in[3]);
      b[p + i][g] = value(in[4]);
      b[p + 8 + i][g] = value(in[5]);
      c[g][p + i] = out[i];
      c[g + 8][p + i] = out[2 + i];
    }
  }
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
  for (int lane = 0; lane < 32; ++lane) {
    auto* out = static_cast<float*>(warp.out[lane]);
    const int g = lane / 4, p = 2 * (lane % 4);
    for (int i = 0; i < 2; ++i) {
      out[i] = c[g][p + i];
      out[2 + i] = c[g + 8][p + i];
    }
  }
}

}  // namespace looplm::cuda
