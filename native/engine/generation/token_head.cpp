#include "token_head.h"

#include <algorithm>

namespace looplm {

void TokenHead::run(std::vector<HeadRow>& rows, const Stack::Registers& after, const void* before) {
  for (HeadRow& row : rows)
    row.exits = row.ask == HeadRow::Ask::always || (row.ask == HeadRow::Ask::rule && row.loop >= row.row->max_loops);
  meter_.apply_states(rows, after[0], before);
  const auto at_head = [](const HeadRow& row) { return row.draws() || row.needs(exit_needs::distribution); };
  const void* hidden = after[0];
  std::vector<int32_t> readable;  // rows that `hidden` contains
  if (g_.architecture().read.empty()) {
    for (size_t i = 0; i < rows.size(); i++) readable.push_back(int32_t(i));
  } else {
    readable = rows_where(rows, [&](const HeadRow& row) { return row.draws() || row.needs(exit_needs::hidden); });
    hidden = read(rows, readable, after);
  }
  meter_.apply_gates(rows, readable, hidden);

  std::vector<int32_t> of_rows, of_hidden;
  for (size_t k = 0; k < readable.size(); k++)
    if (at_head(rows[size_t(readable[k])])) of_rows.push_back(readable[k]), of_hidden.push_back(int32_t(k));
  Model& model = g_.model;
  const int64_t D = model.config.hidden, V = model.config.vocabulary;
  const size_t real = loop_dtype_size(model.real());
  const size_t most = size_t(std::max<int64_t>(1, model.device->logits_bytes() / (V * int64_t(real))));
  for (size_t first = 0; first < of_rows.size(); first += most) {
    const auto part = [&](const std::vector<int32_t>& all) {
      return std::vector<int32_t>(all.begin() + ptrdiff_t(first), all.begin() + ptrdiff_t(std::min(first + most, all.size())));
    };
    const std::vector<int32_t> chunk = part(of_rows);
    const void* inputs = gather_(memory_.hidden, model.dt, part(of_hidden), D, int64_t(readable.size()), hidden);
    memory_.logits.reserve(model.device, chunk.size() * size_t(V) * real);
    model.head(int64_t(chunk.size()), inputs, memory_.logits.as<>());
    meter_.apply_distributions(rows, chunk, memory_.logits);
    sampler_.draw(rows, chunk, memory_.logits);
  }
}

// The blocks of a readout have one cache plane for all loops, which keeps the keys of the loop at which a token exits. The
// first new token is read from the prompt's last token. Prompts may be shared, so that readout is stored in the row's first
// own slot.
const void* TokenHead::read(const std::vector<HeadRow>& rows, const std::vector<int32_t>& index, const Stack::Registers& after) {
  if (index.empty()) return nullptr;
  Model& model = g_.model;
  const int64_t n = int64_t(index.size()), D = model.config.hidden;
  const size_t R = g_.registers(), bytes = size_t(n) * g_.state_bytes;
  memory_.registers.reserve(model.device, R * bytes);
  Stack::Registers registers;
  for (size_t r = 0; r < R; r++) {
    registers.push_back(memory_.registers.at(r * bytes));
    gather_.into(registers[r], model.dt, index, D, after[r]);
  }
  std::vector<int32_t> slots, before, positions, first;
  std::vector<LoopCacheContext> contexts;
  int32_t last_position = 0;
  for (int32_t i : index) {
    const HeadRow& row = rows[size_t(i)];
    const int32_t shared = int32_t(row.row->prompt->length()) - 1;
    slots.push_back(int32_t(row.row->slot) + row.made);
    before.push_back(row.made > 0 ? slots.back() - 1 : int32_t(row.row->prompt->slot_of(std::max(0, shared - 1))));
    positions.push_back(row.position() - 1);
    if (positions.back() == 0) first.push_back(int32_t(positions.size()) - 1);
    contexts.push_back(recent_.add(*row.row, shared, row.made + 1, 0));
    last_position = std::max(last_position, positions.back());
  }
  DeviceBatch batch{n, nullptr, upload(model.device, memory_.positions, positions), nullptr, 0, 0, 0, last_position};
  if (model.weights().adapter_loops > 0)
    for (size_t i = 0; i < index.size(); i++) batch.loops.push_back({int64_t(i), 1, rows[size_t(index[i])].loop - 1});
  CacheUse use = g_.cache.decoding(upload(model.device, memory_.slots, slots), upload(model.device, memory_.contexts, contexts),
                                   upload(model.device, memory_.before, before));
  recent_.upload_to(use);
  use.first = &first;
  Stack stack(model, model.weights(), batch, 1, Stack::Keep::nothing, &use);
  stack.forward_read(registers);
  return stack.hidden();
}

}  // namespace looplm
