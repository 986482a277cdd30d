#include "pass.h"

#include <algorithm>
#include <numeric>

#include "initial_state.h"

namespace looplm {

void check_vectors(const InputVectors& v, size_t tokens, int64_t hidden, const char* operation) {
  if (v.values.size() != v.tokens.size() * size_t(hidden))
    throw Error("INVALID_SHAPE", operation, "inputVectors must hold " + std::to_string(hidden) + " values each");
  for (size_t k = 0; k < v.tokens.size(); k++)
    if (v.tokens[k] < (k > 0 ? v.tokens[k - 1] + 1 : 0) || v.tokens[k] >= int64_t(tokens))
      throw Error("INVALID_ARGUMENT", operation, "positions of inputVectors must ascend and lie within their sequence");
}

namespace {

// Refuses exits that training cannot replay.
void check_exits(const Model& model, const Sequences& s, const char* operation) {
  if (s.exits.empty()) return;
  if (s.exits.size() != s.tokens.size() - s.count())
    throw Error("INVALID_SHAPE", operation, "exits hold " + std::to_string(s.exits.size()) + " values: give len-1 per sequence");
  const Architecture& a = model.config;
  const std::string family = "exits: this model of family " + a.family;
  if (a.blocks(a.read) > 0)
    throw Error("UNSUPPORTED", operation,
                family + " has layers after its loops, and exits cannot be replayed through them: train it without exits");
  if (model.weights().shift_rank > 0)
    throw Error(
        "UNSUPPORTED", operation,
        family + " has an adapter with shifts, and exits cannot be replayed through them: add the adapter without shifts");
}

}  // namespace

void check_sequences(const Model& model, const Sequences& s, const char* operation) {
  if (s.count() == 0) throw Error("INVALID_ARGUMENT", operation, "the batch holds no sequences");
  if (!s.states.empty() && s.states.size() != s.tokens.size() * size_t(model.config.hidden))
    throw Error("INVALID_SHAPE", operation,
                "initialStates must hold len × " + std::to_string(model.config.hidden) + " values per sequence");
  check_vectors(s.vectors, s.tokens.size(), model.config.hidden, operation);
  check_exits(model, s, operation);
  for (size_t i = 0; i < s.count(); i++) {
    if (s.length(i) < 1 || s.prompt(i) < 1 || s.prompt(i) > s.length(i))
      throw Error("INVALID_ARGUMENT", operation,
                  "sequence " + std::to_string(i) + " has " + std::to_string(s.length(i)) + " tokens and a prompt of " +
                      std::to_string(s.prompt(i)) + ": a prompt has at least 1 token and at most all of them");
    for (int64_t j = s.offsets[i]; j < s.offsets[i + 1]; j++)
      if (s.tokens[size_t(j)] < 0 || s.tokens[size_t(j)] >= model.config.vocabulary)
        throw Error("INVALID_ARGUMENT", operation,
                    "token id " + std::to_string(s.tokens[size_t(j)]) + " of sequence " + std::to_string(i) +
                        " is outside the vocabulary of " + std::to_string(model.config.vocabulary));
  }
}

void check_mask(const Sequences& sequences, const std::vector<int32_t>& mask, const char* operation) {
  const size_t predictions = sequences.tokens.size() - sequences.count();
  if (!mask.empty() && mask.size() != predictions)
    throw Error("INVALID_SHAPE", operation,
                "mask holds " + std::to_string(mask.size()) + " values, expected " + std::to_string(predictions));
}

const char* training_remedy(Recompute recompute) {
  return recompute == Recompute::layer
             ? "use shorter sequences, fewer loops, a lower tokensPerMicroBatch (trainers), or an adapter"
             : "use recompute 'layer', shorter sequences, fewer loops, a lower tokensPerMicroBatch "
               "(trainers), or an adapter";
}

namespace {

// Approximate bytes that each token of a micro-batch holds between its forward and its backward pass.
int64_t kept_bytes(const Architecture& c, LoopDType dt, int loops, Stack::Keep keep) {
  const int64_t state = c.hidden, block = c.qkv_width() + c.attention_width() + 4 * state + 2 * c.intermediate;
  const int64_t values = keep == Stack::Keep::all         ? loops * c.layers * block
                         : keep == Stack::Keep::per_loop  ? loops * state + c.layers * block
                         : keep == Stack::Keep::per_layer ? loops * c.layers * state + block
                                                          : block;
  return values * int64_t(loop_dtype_size(dt));
}

// Upper bound on the activations of a micro-batch. On a host it is a constant, not a share of its memory: then every machine
// splits a batch in the same way and gets the same bits.
int64_t most_kept(const Device& device) { return device.host_visible() ? int64_t(2) << 30 : int64_t(device.memory().total / 8); }
constexpr int64_t FEWEST_TOKENS = 256;  // with fewer rows, the matrix products of large models are slow

}  // namespace

int64_t default_budget(const Device& device, const Architecture& a, LoopDType dt, int loops, Stack::Keep keep) {
  const int64_t least = device.micro_batch_tokens();
  const int64_t near_cache =
      std::clamp<int64_t>(device.micro_batch_bytes() / kept_bytes(a, dt, loops, Stack::Keep::all), least, 4 * least);
  return std::min(near_cache, std::max(FEWEST_TOKENS, most_kept(device) / kept_bytes(a, dt, loops, keep)));
}

Stack::Keep keep_for(Recompute r) {
  return r == Recompute::none ? Stack::Keep::all : r == Recompute::loop ? Stack::Keep::per_loop : Stack::Keep::per_layer;
}

void check_loops(const Model& model, int loops, const char* operation) {
  const Architecture& a = model.config;
  if (!a.fixed_loops || loops <= a.loops) return;
  throw Error("INVALID_ARGUMENT", operation,
              "loops: models of family " + a.family + " have " + std::to_string(a.loops) + ", got " + std::to_string(loops) +
                  ": they were trained with this number only, pass at most " + std::to_string(a.loops));
}

LoopPlan plan_of(const Model& model, const LoopOptions& o, const char* operation) {
  const auto require = [&](bool ok, const std::string& what) {
    if (!ok) throw Error("INVALID_ARGUMENT", operation, what);
  };
  const int loops = o.run > 0 ? o.run : model.config.loops;
  check_loops(model, loops, operation);
  LoopPlan plan(o.read.empty() ? loops : int(o.read.back()));
  if (!o.read.empty()) plan.read.clear();
  for (size_t k = 0; k < o.read.size(); k++) {
    const int32_t before = k > 0 ? o.read[k - 1] : 0;
    require(o.read[k] > before && o.read[k] <= loops,
            "readLoops must be ascending numbers from 1 to the " + std::to_string(loops) + " loops that run");
    plan.read.push_back(int(o.read[k]) - 1);
  }
  require(o.backward >= 0, "backwardLoops must be at least 1");
  plan.backward = o.backward;
  require(o.constant_steps.empty() || int(o.constant_steps.size()) >= plan.loops, "constantSteps must have one entry per loop");
  plan.constant_steps.assign(o.constant_steps.begin(), o.constant_steps.end());
  return plan;
}

namespace {

VectorRuns runs_of_vectors(const Sequences& s, const PackedBatch& packed, int64_t hidden) {
  VectorRuns out;
  if (s.vectors.count() == 0) return out;
  for (size_t i = 0; i < packed.ids.size(); i++)
    out.add(s.vectors, s.offsets[size_t(packed.sources[i])] + packed.positions[i], int64_t(i), hidden);
  return out;
}

void add_vectors(Model& model, const Sequences& s, const PackedBatch& packed, DeviceBatch& batch) {
  VectorRuns found = runs_of_vectors(s, packed, model.config.hidden);
  if (found.runs.empty()) return;
  BatchMemory& memory = model.memory().batch;
  const std::vector<uint8_t> raw = rounded(model.dt, found.values);
  memory.vectors.reserve(model.device, raw.size());
  memory.vectors.upload(raw.data(), raw.size());
  const size_t bytes = found.values.size() * loop_dtype_size(model.real());
  memory.d_vectors.reserve(model.device, bytes);
  memory.d_vectors.zero(bytes);
  batch.vector_runs = std::move(found.runs);
  batch.vectors = memory.vectors.as<>();
  batch.d_vectors = memory.d_vectors.as<>();
}

// Only response tokens can exit early. The prompt always runs all loops, even if its last token was read from an earlier
// loop.
std::vector<int32_t> exits_of(const Sequences& s, const PackedBatch& packed) {
  std::vector<int32_t> out;
  if (s.exits.empty()) return out;
  for (size_t i = 0; i < packed.ids.size(); i++) {
    const size_t sequence = size_t(packed.sources[i]);
    const int64_t position = packed.positions[i], predictions = s.length(sequence) - 1;
    const bool may_leave = position >= s.prompt(sequence) && position < predictions;
    out.push_back(may_leave ? s.exits[size_t(s.offsets[sequence] - int64_t(sequence) + position)] : NEVER_EXITS);
  }
  return out;
}

}  // namespace

DeviceBatch device_batch(Model& model, const Sequences& s, const PackedBatch& packed) {
  BatchMemory& memory = model.memory().batch;
  DeviceBatch batch = upload(packed, model.device, memory);
  add_vectors(model, s, packed, batch);
  batch.exits = exits_of(s, packed);
  const Architecture& a = model.config;
  if (!begins_with_state(a) || s.zero_states) return batch;
  const size_t D = size_t(a.hidden);
  std::vector<double> values(packed.ids.size() * D);
  for (size_t i = 0; i < packed.ids.size();) {
    size_t end = i + 1;  // [i, end): consecutive tokens of one sequence
    while (end < packed.ids.size() && packed.sources[end] == packed.sources[i] &&
           packed.positions[end] == packed.positions[end - 1] + 1)
      end++;
    const int64_t first = s.offsets[size_t(packed.sources[i])];
    if (!s.states.empty())
      std::copy_n(s.states.begin() + (first + packed.positions[i]) * int64_t(D), (end - i) * D,
                  values.begin() + ptrdiff_t(i * D));
    else {
      StateKey key;
      for (int32_t j = 0; j <= packed.positions[end - 1]; j++) {
        key.append(s.tokens[size_t(first + j)]);
        if (j >= packed.positions[i]) key.draw(a, s.state_seed, &values[(i + size_t(j - packed.positions[i])) * D]);
      }
    }
    i = end;
  }
  const std::vector<uint8_t> raw = rounded(model.dt, values);
  memory.states.reserve(model.device, raw.size());
  memory.states.upload(raw.data(), raw.size());
  batch.states = memory.states.as<>();
  return batch;
}

void read_vector_gradients(Model& model, const Sequences& s, const PackedBatch& packed, std::vector<double>& out) {
  const int64_t D = model.config.hidden;
  const std::vector<VectorRun> runs = runs_of_vectors(s, packed, D).runs;
  int64_t count = 0;
  for (const VectorRun& v : runs) count += v.count;
  if (count == 0) return;
  const std::vector<double> d = download_reals(model.memory().batch.d_vectors, model.dt, size_t(count * D));
  auto from = d.begin();
  for (const VectorRun& v : runs) {
    std::copy_n(from, v.count * D, out.begin() + v.vector * D);
    from += v.count * D;
  }
}

void require_exit_gate(const Model& model, const char* operation, const char* what) {
  if (model.config.exit_gate) return;
  throw Error("UNSUPPORTED", operation,
              std::string(what) + " needs an exit gate, and this model of family " + model.config.family +
                  " has none: create or load the model with exitGate: true");
}

std::vector<int32_t> row_index(const PackedBatch& batch, const std::vector<int>& loops) {
  std::vector<int32_t> index;
  index.reserve(loops.size() * batch.rows.size());
  for (int t : loops)
    for (auto& row : batch.rows) index.push_back(int32_t(t * batch.tokens() + row.token));
  return index;
}

std::vector<int> all_loops(int loops) {
  std::vector<int> all(static_cast<size_t>(loops));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

}  // namespace looplm
