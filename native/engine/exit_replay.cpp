#include "exit_replay.h"

#include <algorithm>

namespace looplm {

ExitReplay::ExitReplay(std::shared_ptr<Device> device, LoopDType dt, const Architecture& architecture, const DeviceBatch& batch,
                       bool backward, StackMemory& memory)
    : device_(std::move(device)),
      dt_(dt),
      a_(architecture),
      batch_(batch),
      memory_(memory),
      width_(2 * architecture.kv_width()),
      act_(loop_dtype_size(dt)) {
  for (int32_t exit : batch.exits)
    if (exit != NEVER_EXITS) loops_ = std::max(loops_, exit + 2);
  if (loops_ == 0) return;
  const int64_t N = batch.tokens, blocks = a_.blocks(a_.loop);
  const size_t row_bytes = size_t(width_) * act_;
  memory.reserve(memory.replay_kept, size_t(2 * N * blocks) * row_bytes);
  memory.reserve(memory.replay_mixed, size_t(N) * row_bytes);
  if (backward) {
    memory.reserve(memory.replay_gradients, size_t(2 * N + 1) * row_bytes);
    memory.reserve(memory.replay_waiting, size_t(N * blocks) * row_bytes);
  }
  const std::vector<int32_t> index = places();
  tables_ = static_cast<const int32_t*>(memory.reserve(memory.replay_index, index.size() * sizeof(int32_t)));
  memory.replay_index.upload(index.data(), index.size() * sizeof(int32_t));
}

// For each table, loop and row: the index that a gather reads from; [tables, loops, N].
std::vector<int32_t> ExitReplay::places() const {
  const int32_t N = int32_t(batch_.tokens), own = 0, second = N, zero = 2 * N;
  std::vector<int32_t> out;
  for (Table table : {KEPT, GRADIENT, WAITING})
    for (int32_t t = 0; t < loops_; t++)
      for (int32_t i = 0; i < N; i++) {
        const int32_t exit = batch_.exits[size_t(i)];
        const bool left = exit < t, leaves = exit == t;
        if (table == KEPT) out.push_back((left ? second : own) + i);
        else if (table == GRADIENT) out.push_back(left ? zero : (leaves ? second : own) + i);
        else out.push_back(left ? second + i : zero);
      }
  return out;
}

void ExitReplay::gather(Table table, int loop, const void* from, void* to) const {
  const int64_t at = (int64_t(table) * loops_ + std::min(loop, loops_ - 1)) * batch_.tokens;
  device_->run(&LoopBackend::gather_rows, "exit replay", dt_, batch_.tokens, width_, tables_ + at, from, to);
}
void ExitReplay::copy(const void* from, int64_t from_width, void* to, int64_t to_width) const {
  const int64_t shape[] = {batch_.tokens, width_}, in[] = {from_width, 1}, out[] = {to_width, 1};
  device_->run(&LoopBackend::copy_strided, "exit replay", dt_, dt_, 2, shape, from, in, to, out);
}
void* ExitReplay::columns(void* qkv) const { return static_cast<char*>(qkv) + size_t(a_.attention_width()) * act_; }

// Each block keeps two matrices: the rows of this loop, then the rows as attention saw them last (exited tokens keep theirs).
void ExitReplay::forward(int loop, int64_t block, void* qkv) const {
  if (!acts(loop)) return;
  const int64_t N = batch_.tokens;
  void *own = of_block(memory_.replay_kept, block, 2 * N), *mixed = memory_.replay_mixed.as<>();
  copy(columns(qkv), a_.qkv_width(), own, width_);
  gather(KEPT, loop, own, mixed);
  copy(mixed, width_, row(own, N), width_);
  copy(mixed, width_, columns(qkv), a_.qkv_width());
}

void ExitReplay::begin_backward() const {
  if (loops_ == 0) return;
  const size_t rows = size_t(batch_.tokens * a_.blocks(a_.loop));
  device_->run(&LoopBackend::zero, "exit replay", memory_.replay_waiting.as<>(), rows * size_t(width_) * act_);
  device_->run(&LoopBackend::zero, "exit replay", row(memory_.replay_gradients.as<>(), 2 * batch_.tokens), size_t(width_) * act_);
}

// `own` holds three parts: this loop's gradient, its sum with the gradient waiting from deeper loops, and a row of zeros.
void ExitReplay::backward(int loop, int64_t block, void* d_qkv) const {
  if (!acts(loop)) return;
  const int64_t N = batch_.tokens, elements = N * width_, stride = 1;
  void *own = memory_.replay_gradients.as<>(), *sum = row(own, N), *mixed = memory_.replay_mixed.as<>();
  void* waiting = of_block(memory_.replay_waiting, block, N);
  copy(columns(d_qkv), a_.qkv_width(), own, width_);
  device_->run(&LoopBackend::binary, "exit replay", dt_, LOOP_ADD, 1, &elements, own, &stride, waiting, &stride, sum);
  gather(GRADIENT, loop, own, mixed);
  copy(mixed, width_, columns(d_qkv), a_.qkv_width());
  gather(WAITING, loop, own, waiting);
}

}  // namespace looplm
