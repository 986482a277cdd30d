#include "model_constants.h"

#include <cmath>

namespace looplm {

ModelConstants::ModelConstants(std::shared_ptr<Device> device, LoopDType dt, const Architecture& config)
    : device_(std::move(device)), dt_(dt), rotary_(config.rotary), head_dim_(config.head_dim) {
  const std::vector<uint8_t> ones = rounded(dt, std::vector<double>(size_t(config.hidden), 1.0));
  ones_ = Buffer(device_, ones.size() + 64);
  ones_.upload(ones.data(), ones.size());
  for (const Step& step : config.begin) {
    if (step.kind != Step::Kind::embed || step.scale == 1) continue;
    const std::vector<uint8_t> act = rounded(dt, {step.scale}), accurate = rounded(loop_real(dt), {step.scale});
    embedding_scale_ = Buffer(device_, 2 * sizeof(double));
    embedding_scale_.upload(act.data(), act.size());
    embedding_scale_.upload(accurate.data(), accurate.size(), sizeof(double));
  }
}

void ModelConstants::point(Weights& weights) {
  for (LayerWeights& layer : weights.layers)
    for (void** norm : {&layer.attention_norm, &layer.attention_norm_2, &layer.mlp_norm, &layer.mlp_norm_2})
      if (!*norm) *norm = ones_.as<>();
  weights.ones = ones_.as<>();
  if (embedding_scale_) {
    weights.embedding_scale = embedding_scale_.as<>();
    weights.embedding_scale_real = embedding_scale_.at(sizeof(double));
  }
}

const void* ModelConstants::rope_table(int64_t positions) {
  if (positions > rope_positions_) {
    int64_t n = 64;
    while (n < positions) n *= 2;
    const int64_t half = head_dim_ / 2;
    std::vector<double> table(size_t(n * 2 * half));
    for (int64_t p = 0; p < n; p++)
      for (int64_t j = 0; j < half; j++) {
        const double angle = double(p) * rotary_.frequency(j, head_dim_);
        table[size_t(p * 2 * half + j)] = std::cos(angle);
        table[size_t(p * 2 * half + half + j)] = std::sin(angle);
      }
    Buffer larger(device_, table.size() * loop_dtype_size(loop_real(dt_)));
    upload_reals(larger, dt_, table.data(), table.size());
    rope_table_ = std::move(larger);
    rope_positions_ = n;
  }
  return rope_table_.as<>();
}

}  // namespace looplm
