#include "head.h"

#include <algorithm>
#include <numeric>

#include "operation_memory.h"

namespace looplm {

namespace {

// The LoopLoss for the rows from `first` on: its arrays of reals, moved ahead by `first`.
LoopLoss from_row(const LoopLoss& loss, int64_t first, size_t real_bytes) {
  auto at = [&](const void* p) -> const void* { return p ? static_cast<const char*>(p) + size_t(first) * real_bytes : nullptr; };
  LoopLoss out = loss;
  out.scale = at(loss.scale);
  out.advantage = at(loss.advantage);
  out.old_logprob = at(loss.old_logprob);
  out.reference_logprob = at(loss.reference_logprob);
  out.kl_scale = at(loss.kl_scale);
  out.entropy_scale = at(loss.entropy_scale);
  return out;
}

// Adds the most probable tokens of the rows of `logits`. logits: real [m, V], where row 0 is row `first` of all rows.
void add_top(HeadTop& top, const Buffer& logits, LoopDType dt, double temperature, int64_t first, int64_t m, int64_t V) {
  std::vector<int32_t> order(static_cast<size_t>(V));
  for (int64_t r = std::max(first, top.first_row); r < first + m; r++) {
    const std::vector<double> row = download_reals(logits, dt, size_t(V), size_t((r - first) * V));
    const double target = row[size_t(top.targets[size_t(r - top.first_row)])];
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + top.count, order.end(), [&](int32_t a, int32_t b) {
      return row[size_t(a)] > row[size_t(b)] || (row[size_t(a)] == row[size_t(b)] && a < b);
    });
    for (int k = 0; k < top.count; k++) {
      top.tokens.push_back(order[size_t(k)]);
      top.margins.push_back((row[size_t(order[size_t(k)])] - target) / temperature);
    }
  }
}

void run_head(Model& model, const HeadRows& in, const LoopLoss* loss, void* logprobs, void* entropies, void* d_hidden,
              int32_t* predicted, HeadTop* top) {
  Device& device = *model.device;
  HeadMemory& memory = model.memory().head;
  const LoopDType dt = model.dt;
  const int64_t D = model.config.hidden, V = model.config.vocabulary;
  const size_t act = loop_dtype_size(dt), real = loop_dtype_size(model.real());
  // A chunk of rows bounds the memory for logits for any T and N. Their gradient overwrites them.
  const int64_t chunk = std::clamp<int64_t>(device.logits_bytes() / (V * int64_t(real)), 16, std::max<int64_t>(in.rows, 16));
  memory.hidden.reserve(model.device, size_t(chunk * D) * act);
  memory.logits.reserve(model.device, size_t(chunk * V) * real);
  if (loss) memory.d_hidden.reserve(model.device, size_t(chunk * D) * real);
  void *hidden = memory.hidden.as<>(), *logits = memory.logits.as<>(), *d_rows = memory.d_hidden.as<>();
  const void* weight = in.weight;
  void* d_weight = loss ? model.gradients().head : nullptr;
  const int64_t row_stride = V * int64_t(real / act);  // the gradient overwrites the logits in act, so its rows are real/act
                                                       // times as far apart

  for (int64_t first = 0; first < in.rows; first += chunk) {
    const int64_t m = std::min(chunk, in.rows - first);
    auto at = [&](void* p) -> void* { return p ? static_cast<char*>(p) + size_t(first) * real : nullptr; };
    device.run(&LoopBackend::gather_rows, "gather rows", dt, m, D, in.index + first, in.hidden, hidden);
    if (weight)
      device.run(&LoopBackend::gemm, "head", dt, 0, 1, m, V, D, hidden, D, weight, D, logits, V, int(LOOP_GEMM_REAL_OUT));
    else model.head(m, hidden, logits);  // quantized head
    if (predicted)
      device.run(&LoopBackend::reduce, "argmax", model.real(), LOOP_ARGMAX, m, V, int64_t(1), logits, predicted + first);
    if (top) add_top(*top, memory.logits, dt, in.temperature, first, m, V);
    LoopLoss part{};
    if (loss) part = from_row(*loss, first, real);
    device.run(&LoopBackend::head_rows, "head rows", dt, m, V, in.temperature, logits, in.targets + first,
               loss ? static_cast<const LoopLoss*>(&part) : nullptr, at(logprobs), at(entropies));
    if (!loss) continue;
    device.run(&LoopBackend::gemm, "head backward", dt, 0, 0, m, D, V, logits, row_stride, weight, D, d_rows, D,
               int(LOOP_GEMM_REAL_OUT));
    device.run(&LoopBackend::scatter_add_rows, "scatter rows", dt, m, D, in.index + first, d_rows, d_hidden);
    if (!d_weight) continue;
    device.run(&LoopBackend::gemm, "head gradient", dt, 1, 0, V, D, m, logits, row_stride, hidden, D, d_weight, D,
               int(LOOP_GEMM_ACCUMULATE));
  }
}

}  // namespace

void head_forward(Model& model, const HeadRows& in, void* logprobs, void* entropies, int32_t* predicted, HeadTop* top) {
  run_head(model, in, nullptr, logprobs, entropies, nullptr, predicted, top);
}
void head_backward(Model& model, const HeadRows& in, const LoopLoss& loss, void* logprobs, void* entropies, void* d_hidden) {
  run_head(model, in, &loss, logprobs, entropies, d_hidden, nullptr, nullptr);
}

}  // namespace looplm
