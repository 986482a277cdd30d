#include "generate.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "batch.h"
#include "stack.h"

namespace looplm {

namespace {

constexpr int64_t PROMPT_BUDGET = 4096;    // packed prompt tokens run at once
constexpr int64_t LOGIT_BYTES = 24 << 20;  // of one chunk of logits

struct Prompt {
  std::vector<int32_t> tokens;
  int32_t slot;  // its keys lie in [slot, slot + tokens.size())
};
struct Row {  // a sequence under way
  int32_t prompt;
  int32_t slot;  // keys of its new tokens lie from here on
};

void check_options(const Model& model, const std::vector<std::vector<int32_t>>& prompts, const GenerateOptions& o) {
  auto require = [](bool ok, const std::string& what) {
    if (!ok) throw Error("INVALID_ARGUMENT", "generate", what);
  };
  require(!prompts.empty(), "there are no prompts");
  require(o.max_new_tokens >= 1, "maxNewTokens must be at least 1");
  require(o.temperature >= 0 && std::isfinite(o.temperature), "temperature must be 0 (greedy) or positive");
  require(o.top_k >= 0 && o.top_p > 0 && o.top_p <= 1 && o.min_p >= 0 && o.min_p < 1,
          "topK must be >= 0, topP in (0, 1], minP in [0, 1)");
  require(o.exit_threshold > 0, "the exit threshold must be positive");
  for (size_t i = 0; i < prompts.size(); i++) {
    require(!prompts[i].empty(),
            "prompt " + std::to_string(i) + " is empty: give at least one token (a beginning-of-text token, say)");
    for (int32_t id : prompts[i])
      require(id >= 0 && id < model.config.vocabulary, "token id " + std::to_string(id) + " of prompt " + std::to_string(i) +
                                                           " is outside the vocabulary of " +
                                                           std::to_string(model.config.vocabulary));
  }
}

}  // namespace

struct Generation::State {
  Model& model;
  const GenerateOptions options;
  const int loops;
  const bool early;  // the gate is read
  std::vector<Prompt> prompts;
  std::vector<Row> rows;
  std::vector<Generated> results;
  std::vector<size_t> active;  // unfinished sequences
  int64_t slots = 0;
  Buffer keys, values;
  bool started = false;
  Workspace& w;
  const size_t act, real;

  State(Model& m, const std::vector<std::vector<int32_t>>& texts, const GenerateOptions& o)
      : model(m),
        options(o),
        loops(o.loops > 0 ? o.loops : m.config.loops),
        early(o.exit_threshold < 1),
        results(texts.size()),
        w(m.workspace()),
        act(loop_dtype_size(m.dt)),
        real(loop_dtype_size(m.real())) {
    check_options(m, texts, o);
    std::map<std::vector<int32_t>, int32_t> seen;
    for (auto& text : texts) {
      auto [at, fresh] = seen.try_emplace(text, int32_t(prompts.size()));
      if (fresh) {
        prompts.push_back({text, int32_t(slots)});
        slots += int64_t(text.size());
      }
      rows.push_back({at->second, 0});
    }
    for (auto& row : rows) {
      row.slot = int32_t(slots);
      slots += options.max_new_tokens - 1;  // the last token's keys are never read
    }
    for (size_t i = 0; i < rows.size(); i++) active.push_back(i);
    const size_t planes = size_t(m.config.layers) * size_t(options.shared_cache ? 1 : loops);
    const size_t bytes = planes * size_t(slots * m.config.kv_heads * m.config.head_dim) * act;
    keys = Buffer(m.device, bytes + 64);
    values = Buffer(m.device, bytes + 64);
  }

  CacheUse cache_use(int first_loop, const std::vector<int32_t>& slot_of_row, const LoopCacheContext* contexts) {
    return {keys.as<>(), values.as<>(),  slots, options.shared_cache, first_loop, upload_ints(w, "decode.slots", slot_of_row),
            contexts,    &model.packed()};
  }
  Buffer& readout(size_t count) { return w.get("decode.readout", count * size_t(model.config.hidden) * act); }

  // The first loop whose cumulative exit probability reaches the threshold, 0-based; gates[t] of one token.
  int exit_loop(const std::vector<double>& gates) const {
    double stay = 1;
    for (int t = 0; t + 1 < loops; t++) {
      stay *= 1 / (1 + std::exp(gates[size_t(t)]));
      if (early && 1 - stay >= options.exit_threshold) return t;
    }
    return loops - 1;
  }

  // Runs the prompts and reads out the first token of every sequence.
  void prefill() {
    Sequences all;
    all.offsets.push_back(0);
    for (auto& p : prompts) {
      all.tokens.insert(all.tokens.end(), p.tokens.begin(), p.tokens.end());
      all.offsets.push_back(int64_t(all.tokens.size()));
    }
    const PackOptions pack_options{PROMPT_BUDGET, false, false, true};
    const size_t D = size_t(model.config.hidden);
    Buffer& last = w.get("decode.last", prompts.size() * D * act);  // the state each prompt's next token is read from
    std::vector<int32_t> exits(prompts.size());
    for (size_t begin = 0; begin < all.count();) {
      PackedBatch packed = pack(all, begin, pack_options);
      std::vector<int32_t> slot_of_row(packed.ids.size()), index;
      for (size_t i = packed.begin; i < packed.end; i++)
        for (int64_t j = 0; j < all.length(i); j++)
          slot_of_row[size_t(packed.first_token[i - packed.begin] + j)] = prompts[i].slot + int32_t(j);
      CacheUse cache = cache_use(0, slot_of_row, nullptr);
      Stack stack(model.device, model.dt, model.config, model.weights(), w, model.rope_table(packed.max_position + 1),
                  upload(packed, w), loops, Stack::Keep::nothing, &cache);
      stack.forward_tokens();
      std::vector<double> gates;
      if (early) {
        Buffer& logits = w.get("exit.all_gates", size_t(loops * packed.tokens()) * real);
        stack.gate_logits(logits.as<>());
        gates = download_reals(logits, model.dt, size_t(loops * packed.tokens()));
      }
      for (size_t i = packed.begin; i < packed.end; i++) {
        const int64_t token = packed.first_token[i - packed.begin] + all.length(i) - 1;
        std::vector<double> own(size_t(loops), 0.0);
        if (early)
          for (int t = 0; t < loops; t++) own[size_t(t)] = gates[size_t(t * packed.tokens() + token)];
        exits[i] = exit_loop(own);
        index.push_back(int32_t(exits[i] * packed.tokens() + token));
      }
      model.device->run(&LoopBackend::gather_rows, "gather rows", model.dt, int64_t(index.size()), model.config.hidden,
                        upload_ints(w, "decode.index", index), static_cast<const void*>(stack.hidden()),
                        last.at(packed.begin * D * act));
      begin = packed.end;
    }
    std::vector<int32_t> index, loop_of_row;
    for (size_t i : active) {
      index.push_back(rows[i].prompt);
      loop_of_row.push_back(exits[size_t(rows[i].prompt)] + 1);
    }
    gather(index, last.as<>(), readout(active.size()).as<>());
    sample(loop_of_row);
  }

  void gather(const std::vector<int32_t>& index, const void* from, void* to) {
    model.device->run(&LoopBackend::gather_rows, "gather rows", model.dt, int64_t(index.size()), model.config.hidden,
                      upload_ints(w, "decode.index", index), from, to);
  }

  int32_t position(size_t i) const {  // of the newest token of sequence i
    return int32_t(prompts[size_t(rows[i].prompt)].tokens.size() + results[i].tokens.size()) - 1;
  }

  // One new token for every active sequence: its newest token through the loops, rows leaving as their gates say.
  void decode() {
    const size_t n = active.size(), D = size_t(model.config.hidden);
    std::vector<size_t> left(n);  // rows still looping, as indices into `active`
    for (size_t r = 0; r < n; r++) left[r] = r;
    std::vector<int32_t> loop_of_row(n, loops);
    std::vector<double> stay(n, 1.0);
    void* out = readout(n).as<>();
    const void* states = nullptr;
    for (int t = 0; t < loops; t++) {
      Stack stack = loop_stack(t, left);
      if (t == 0) stack.forward_tokens();
      else stack.forward_states(states);
      states = stack.hidden();
      if (t + 1 == loops) {
        scatter(states, left, out);
        break;
      }
      if (!early) continue;
      Buffer& logits = w.get("exit.all_gates", left.size() * real);
      stack.gate_logits(logits.as<>());
      std::vector<double> gates = download_reals(logits, model.dt, left.size());
      std::vector<int32_t> staying;
      std::vector<size_t> next;
      for (size_t k = 0; k < left.size(); k++) {
        const size_t r = left[k];
        stay[r] *= 1 / (1 + std::exp(gates[k]));
        if (1 - stay[r] < options.exit_threshold) {
          staying.push_back(int32_t(k));
          next.push_back(r);
          continue;
        }
        loop_of_row[r] = t + 1;
        model.device->run(&LoopBackend::copy, "read out", static_cast<void*>(static_cast<char*>(out) + r * D * act),
                          static_cast<const void*>(static_cast<const char*>(states) + k * D * act), D * act);
        if (!options.shared_cache) copy_up(active[r], t);
      }
      if (next.empty()) break;
      if (next.size() < left.size()) {
        void* kept = w.get("decode.states", next.size() * D * act).as<>();
        gather(staying, states, kept);
        states = kept;
        left = std::move(next);
      }
    }
    sample(loop_of_row);
  }

  Stack loop_stack(int t, const std::vector<size_t>& left) {
    std::vector<int32_t> ids, positions, slot_of_row;
    std::vector<LoopCacheContext> contexts;
    int32_t last_position = 0;
    for (size_t r : left) {
      const size_t i = active[r];
      const Row& row = rows[i];
      const int32_t made = int32_t(results[i].tokens.size());
      ids.push_back(results[i].tokens.back());
      positions.push_back(position(i));
      last_position = std::max(last_position, positions.back());
      slot_of_row.push_back(row.slot + made - 1);
      contexts.push_back({prompts[size_t(row.prompt)].slot, int32_t(prompts[size_t(row.prompt)].tokens.size()), row.slot, made});
    }
    Buffer& where = w.get("decode.contexts", contexts.size() * sizeof(LoopCacheContext));
    where.upload(contexts.data(), contexts.size() * sizeof(LoopCacheContext));
    cache_ = cache_use(t, slot_of_row, where.as<LoopCacheContext>());
    DeviceBatch batch{
        int64_t(left.size()), upload_ints(w, "batch.ids", ids), upload_ints(w, "batch.positions", positions), nullptr, 0, 0, 0,
        last_position};
    return Stack(model.device, model.dt, model.config, model.weights(), w, model.rope_table(last_position + 1), batch, 1,
                 Stack::Keep::nothing, &cache_);
  }

  // Rows of `states` to the rows `left` of `out`.
  void scatter(const void* states, const std::vector<size_t>& left, void* out) {
    const size_t bytes = size_t(model.config.hidden) * act;
    for (size_t k = 0; k < left.size();) {  // runs of neighbours at once
      size_t run = 1;
      while (k + run < left.size() && left[k + run] == left[k] + run) run++;
      model.device->run(&LoopBackend::copy, "read out", static_cast<void*>(static_cast<char*>(out) + left[k] * bytes),
                        static_cast<const void*>(static_cast<const char*>(states) + k * bytes), run * bytes);
      k += run;
    }
  }

  // A token that left at loop t lends its keys and values of loop t to the deeper planes, where later, deeper tokens look for
  // them.
  void copy_up(size_t i, int t) {
    const size_t width = size_t(model.config.kv_heads * model.config.head_dim) * act, L = size_t(model.config.layers);
    const size_t slot = size_t(rows[i].slot) + results[i].tokens.size() - 1;
    for (size_t deeper = size_t(t) + 1; deeper < size_t(loops); deeper++)
      for (size_t l = 0; l < L; l++)
        for (Buffer* plane : {&keys, &values})
          model.device->run(&LoopBackend::copy, "copy up", plane->at(((deeper * L + l) * size_t(slots) + slot) * width),
                            static_cast<const void*>(plane->at(((size_t(t) * L + l) * size_t(slots) + slot) * width)), width);
  }

  // Head and sampling over the readout rows of all active sequences, in chunks; then the finished leave.
  void sample(const std::vector<int32_t>& loop_of_row) {
    const int64_t D = model.config.hidden, V = model.config.vocabulary, n = int64_t(active.size());
    const int64_t chunk = std::clamp<int64_t>(LOGIT_BYTES / (V * int64_t(real)), 1, n);
    Buffer& logits = w.get("decode.logits", size_t(chunk * V) * real);
    Buffer &tokens = w.get("decode.tokens", size_t(n) * 4), &logprobs = w.get("decode.logprobs", size_t(n) * real);
    std::vector<int32_t> sequences, positions;
    for (size_t i : active) {
      sequences.push_back(int32_t(i));
      positions.push_back(position(i) + 1);
    }
    const int32_t *sequence_ids = upload_ints(w, "decode.sequences", sequences),
                  *position_ids = upload_ints(w, "decode.positions", positions);
    const PackedWeights& packed = model.packed();
    for (int64_t first = 0; first < n; first += chunk) {
      const int64_t m = std::min(chunk, n - first);
      model.device->run(&LoopBackend::gemm, "head", model.dt, 0, 1, m, V, D,
                        static_cast<const void*>(readout(size_t(n)).at(size_t(first * D) * act)), D,
                        static_cast<const void*>(model.weights().head), D, logits.as<>(), V, int(LOOP_GEMM_REAL_OUT),
                        static_cast<const void*>(packed.head.as<>()));
      LoopSample s{m,
                   V,
                   logits.as<>(),
                   options.temperature,
                   options.top_k,
                   options.top_p,
                   options.min_p,
                   options.seed,
                   sequence_ids + first,
                   position_ids + first,
                   tokens.as<int32_t>() + first,
                   logprobs.at(size_t(first) * real)};
      model.device->run(&LoopBackend::sample, "sample", model.dt, static_cast<const LoopSample*>(&s));
    }
    std::vector<int32_t> made(static_cast<size_t>(n));
    tokens.download(made.data(), size_t(n) * 4);
    std::vector<double> values_of = download_reals(logprobs, model.dt, size_t(n));
    std::vector<size_t> still;
    for (size_t r = 0; r < size_t(n); r++) {
      Generated& g = results[active[r]];
      g.tokens.push_back(made[r]);
      g.logprobs.push_back(values_of[r]);
      g.loops.push_back(loop_of_row[r]);
      const bool stop = std::find(options.stop_tokens.begin(), options.stop_tokens.end(), made[r]) != options.stop_tokens.end();
      if (stop) g.finish = Finish::stop;
      else if (int(g.tokens.size()) >= options.max_new_tokens) g.finish = Finish::length;
      else still.push_back(active[r]);
    }
    active = std::move(still);
  }

  CacheUse cache_{};
};

Generation::Generation(Model& model, const std::vector<std::vector<int32_t>>& prompts, const GenerateOptions& options)
    : state_(std::make_unique<State>(model, prompts, options)) {}
Generation::~Generation() = default;

bool Generation::step(int tokens) {
  State& s = *state_;
  for (int k = 0; k < tokens && !s.active.empty(); k++) {
    if (s.started) s.decode();
    else s.prefill();
    s.started = true;
  }
  return !s.active.empty();
}

void Generation::finish(size_t sequence, int drop) {
  State& s = *state_;
  Generated& g = s.results.at(sequence);
  const size_t keep = g.tokens.size() - std::min(g.tokens.size(), size_t(std::max(drop, 0)));
  g.tokens.resize(keep);
  g.logprobs.resize(keep);
  g.loops.resize(keep);
  g.finish = Finish::stop;
  s.active.erase(std::remove(s.active.begin(), s.active.end(), sequence), s.active.end());
}

const std::vector<Generated>& Generation::results() const { return state_->results; }

}  // namespace looplm
