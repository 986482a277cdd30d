// The parts of the scheduler: exit rules, the cache, prompts and rows in a batch. Uses a model with one register, and one
// with two registers and with blocks before and after the loops.
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <set>

#include "../../engine/generation/cache.h"
#include "../../engine/generation/scheduler.h"
#include "../../engine/generation/wave.h"
#include "claims.h"
#include "models.h"

namespace looplm::test {
namespace {

const SmallSizes generation_sizes{50, 32, 64, 2, 4, 2, 8, 3, false, 0.2};
std::shared_ptr<Model> model_of(const Architecture& architecture) {
  auto model = std::make_shared<Model>(open_device("cpu", 2), LOOP_F32, architecture);
  model->initialize(7);
  return model;
}

// ---- Exit rules

// The loop at which a token exits, given its measures after every loop; 0: not before the last loop.
int exit_loop(const ExitOptions& options, const std::vector<ExitMeasures>& measures) {
  ExitState state;
  for (int t = 1; t <= int(measures.size()); t++)
    if (exits(options, t, measures[size_t(t - 1)], state)) return t;
  return 0;
}

ENGINE_TEST(test_exit_rules, "exit rules") {
  const auto rule = [](ExitRule r, double threshold, int min_loops = 1, int patience = 1) {
    return ExitOptions{r, threshold, min_loops, 0, patience};
  };
  const auto series = [](std::vector<double> values, double ExitMeasures::*field) {
    std::vector<ExitMeasures> out(values.size());
    for (size_t t = 0; t < values.size(); t++) out[t].*field = values[t];
    return out;
  };
  claim("exit rule fixed: never before the last loop", exit_loop(rule(ExitRule::fixed, 9), std::vector<ExitMeasures>(9)) == 0);
  // λ = 1/2 at every loop: Σ p = 1/2, 3/4, 7/8
  const auto halves = series({0, 0, 0}, &ExitMeasures::gate_logit);
  claim("exit rule gate: the cumulative probability",
        exit_loop(rule(ExitRule::gate, 0.5), halves) == 1 && exit_loop(rule(ExitRule::gate, 0.7), halves) == 2 &&
            exit_loop(rule(ExitRule::gate, 0.8), halves) == 3 && exit_loop(rule(ExitRule::gate, 0.9), halves) == 0);
  claim("exit rule gate: not before minLoops", exit_loop(rule(ExitRule::gate, 0.1, 3), halves) == 3);
  const auto drawn = [&](double u) {
    auto measures = halves;
    for (ExitMeasures& each : measures) each.draw = u;
    return exit_loop(rule(ExitRule::sampled, 0), measures);
  };
  claim("exit rule sampled: where the cumulative probability reaches the draw",
        drawn(0.5) == 1 && drawn(0.51) == 2 && drawn(0.8) == 3 && drawn(0.9) == 0);
  ExitMeasures settled;
  settled.norm = 2, settled.previous_norm = 3, settled.difference = 1, settled.product = 6;
  const std::vector<ExitMeasures> states(3, settled);
  claim("exit rules over states need two",
        exit_loop(rule(ExitRule::hidden_delta, 0.5), states) == 2 && exit_loop(rule(ExitRule::cosine, 0), states) == 2);
  claim("exit rule hidden-delta is relative to the newer state", exit_loop(rule(ExitRule::hidden_delta, 0.49), states) == 0);
  const auto falling = series({3, 2, 1.5, 1.4}, &ExitMeasures::entropy);
  claim("exit rule entropy",
        exit_loop(rule(ExitRule::entropy, 2), falling) == 2 && exit_loop(rule(ExitRule::entropy, 3), falling) == 1);
  claim("exit rule entropy-change", exit_loop(rule(ExitRule::entropy_change, 1), falling) == 2 &&
                                        exit_loop(rule(ExitRule::entropy_change, 0.2), falling) == 4);
  claim("exit rule kl needs two loops, kl-previous one",
        exit_loop(rule(ExitRule::kl, 0), std::vector<ExitMeasures>(2)) == 2 &&
            exit_loop(rule(ExitRule::kl_previous, 0), std::vector<ExitMeasures>(2)) == 1);
  std::vector<ExitMeasures> tokens(7);
  for (size_t t = 0; t < 7; t++) tokens[t].argmax = std::vector<int32_t>{4, 4, 9, 9, 9, 9, 9}[t];
  claim("exit rule argmax-stable counts agreements in a row",
        exit_loop(rule(ExitRule::argmax_stable, 0), tokens) == 2 &&
            exit_loop(rule(ExitRule::argmax_stable, 0, 1, 2), tokens) == 5 &&
            exit_loop(rule(ExitRule::argmax_stable, 0, 1, 4), tokens) == 7 &&
            exit_loop(rule(ExitRule::argmax_stable, 0, 1, 5), tokens) == 0);
  bool in_order = true;
  for (int r = 0; r <= int(ExitRule::argmax_stable); r++) {
    const ExitRuleEntry& entry = entry_of(ExitRule(r));
    in_order &= entry.rule == ExitRule(r) && exit_rule_named(entry.name) == entry.rule;
  }
  claim("exit rules are where their number says", in_order);
  try {
    exit_rule_named("never");
    claim("exit rules are named", false);
  } catch (const Error& e) {
    claim("exit rules are named",
          exit_rule_named("kl-previous") == ExitRule::kl_previous &&
              std::string(e.what()).find("argmax-stable") != std::string::npos,
          e.what());
  }
}

// ---- The cache

void fill(Cache& cache, Model& model, int64_t slot, float value) {
  const Architecture& a = model.config;
  const size_t width = size_t(a.kv_width());
  const CacheUse use = cache.prompts(nullptr, nullptr, 0, 0);
  const int64_t planes = int64_t(a.blocks(a.loop) * use.planes + a.blocks(a.begin) + a.blocks(a.read));
  const std::vector<float> row(width, value);
  for (int64_t plane = 0; plane < planes; plane++)
    for (void* base : {use.keys, use.values}) {
      const std::vector<float> own(width, value + float(plane));
      void* to = static_cast<char*>(base) + size_t((plane * use.slots + slot) * int64_t(width)) * sizeof(float);
      model.device->run(&LoopBackend::copy_in, "fill", to, static_cast<const void*>(own.data()), width * sizeof(float));
    }
}
float value_at(Cache& cache, Model& model, int64_t plane, int64_t slot, bool of_keys) {
  const CacheUse use = cache.prompts(nullptr, nullptr, 0, 0);
  const size_t width = size_t(model.config.kv_width());
  float out = 0;
  const char* from = static_cast<const char*>(of_keys ? use.keys : use.values) +
                     size_t((plane * use.slots + slot) * int64_t(width)) * sizeof(float);
  model.device->run(&LoopBackend::copy_out, "value", static_cast<void*>(&out), static_cast<const void*>(from), sizeof out);
  return out;
}

ENGINE_TEST(test_cache, "cache") {
  const auto model = model_of(small_prelude_architecture(generation_sizes));
  Cache::Runs runs;
  Cache cache(*model, 3, false, 100, [&] { return runs; });
  claim("cache: planes of every block, those that run once too",
        cache.slot_bytes() == size_t(2 * (1 * 3 + 1 + 1) * model->config.kv_width()) * sizeof(float));
  claim("cache: nothing is there at first", cache.allocate(4) == -1 && cache.allocate(0) == 0);
  claim("cache: grows", cache.grow_for(6, 0));
  const int64_t a = cache.allocate(2), b = cache.allocate(3), c = cache.allocate(1);
  claim("cache: hands out neighbours", a == 0 && b == 2 && c == 5 && cache.used() == 6);
  cache.release(a, 2), cache.release(b, 3);
  claim("cache: released runs join", cache.allocate(5) == 0);
  runs = {{0, 5}};
  for (int64_t slot = 0; slot < 5; slot++) fill(cache, *model, slot, float(100 * slot));
  const uint64_t generation = cache.generation();
  claim("cache: grows beyond what is used", cache.grow_for(20, 0) && cache.generation() != generation);
  bool kept = true;
  for (int64_t plane = 0; plane < 5; plane++)
    for (int64_t slot = 0; slot < 5; slot++)
      for (bool keys : {true, false}) kept &= value_at(cache, *model, plane, slot, keys) == float(100 * slot + plane);
  claim("cache: keeps what is written when it grows", kept);
  cache.copy_up(3, 0, 0, 3);
  const float planes[] = {300, 300, 300, 303, 304};
  bool copied = true;
  for (int64_t plane = 0; plane < 5; plane++) copied &= value_at(cache, *model, plane, 3, true) == planes[plane];
  claim("cache: a token that exits has its keys in deeper planes of the loop alone", copied);
  claim("cache: other slots stay", value_at(cache, *model, 1, 2, true) == 201);
  claim("cache: not beyond its limit", !cache.grow_for(96, 0));
}

// ---- Requests together with others

GenerateRequest request(const Model& model, int i) {
  const ExitRule rules[] = {ExitRule::cosine,         ExitRule::hidden_delta, ExitRule::kl,
                            ExitRule::kl_previous,    ExitRule::fixed,        ExitRule::entropy,
                            ExitRule::entropy_change, ExitRule::argmax_stable};
  GenerateRequest r;
  for (int j = 0; j < 3 + i % 4; j++) r.prompt.push_back((3 * j + i / 2) % 50);
  r.max_new_tokens = 4 + i % 3;
  r.sequence = i;
  r.exit.rule = rules[i % 8];
  r.exit.threshold = r.exit.rule == ExitRule::entropy ? 3.5 : 0.3;
  r.states.seed = uint64_t(i % 3);
  if (r.exit.rule == ExitRule::fixed) r.draft_loops = 1, r.draft_tokens = 3;
  if (i % 8 == 7 && model.config.exit_gate) r.exit.rule = ExitRule::gate, r.exit.threshold = 0.6;
  return r;
}
using Tokens = std::vector<std::pair<int32_t, double>>;
std::map<int64_t, Tokens> run_all(Scheduler& scheduler) {
  std::map<int64_t, Tokens> out;
  for (const GenerateEvent& event : scheduler.run(Until::idle))
    for (const GeneratedToken& t : event.tokens) out[event.request].emplace_back(t.token + 1000 * t.loop, t.logprob);
  return out;
}

void batches(const std::string& name, const Architecture& architecture) {
  const auto model = model_of(architecture);
  constexpr int COUNT = 16;
  std::vector<Tokens> alone;
  for (int i = 0; i < COUNT; i++) {
    Scheduler scheduler(model, {});
    const int64_t id = scheduler.add(request(*model, i));
    alone.push_back(run_all(scheduler)[id]);
  }
  for (const SchedulerOptions& options :
       {SchedulerOptions{16}, SchedulerOptions{5, 0, 0, false, false, 2}, SchedulerOptions{3, 60, 0, false, false, 1}}) {
    Scheduler scheduler(model, options);
    std::vector<int64_t> ids;
    for (int i = 0; i < COUNT; i++) ids.push_back(scheduler.add(request(*model, i)));
    const auto together = run_all(scheduler);
    bool same = true;
    for (int i = 0; i < COUNT; i++) same &= together.at(ids[size_t(i)]) == alone[size_t(i)];
    claim(name + ": a request has the bits that it has alone, " + std::to_string(options.max_rows) + " rows", same);
    claim(name + ": nothing is held when all have ended",
          scheduler.stats().rows == 0 && scheduler.stats().cached_tokens == 0 && scheduler.stats().waiting == 0);
  }
  // Half of them are cancelled after the first tokens, one of them twice.
  Scheduler scheduler(model, {COUNT});
  std::map<int64_t, Tokens> made;
  std::vector<int64_t> ids;
  for (int i = 0; i < COUNT; i++) ids.push_back(scheduler.add(request(*model, i)));
  const auto collect = [&](bool until_token) {
    for (const GenerateEvent& event : scheduler.run(until_token ? Until::token : Until::idle))
      for (const GeneratedToken& t : event.tokens) made[event.request].emplace_back(t.token + 1000 * t.loop, t.logprob);
  };
  collect(true);
  for (int i = 0; i < COUNT; i += 2) scheduler.cancel(ids[size_t(i)]);
  scheduler.cancel(ids[0]);
  collect(false);
  bool same = true, ended = true, early = false;
  for (int i = 0; i < COUNT; i++) {
    const Tokens &own = made[ids[size_t(i)]], &whole = alone[size_t(i)];
    if (i % 2) same &= own == whole;
    else ended &= own.size() <= whole.size(), early |= own.size() < whole.size();
  }
  claim(name + ": the others go on when some are cancelled", same && ended && early && scheduler.stats().cached_tokens == 0);
}

// Requests without drafts, decoded by wavefront. Alone and together, they must have the bits of plain decoding. share: scales
// what the blocks add to the residual stream; with a small share, readouts settle early.
void ahead(const std::string& name, const Architecture& architecture, double share) {
  const auto model = model_of(architecture);
  const std::set<Role> scaled{Role::attention_output, Role::down, Role::attention_norm_2, Role::mlp_norm_2, Role::inject};
  for (const Parameter& p : model->parameters())
    if (scaled.count(p.role) > 0) {
      std::vector<double> values = model->read(p);
      for (double& value : values) value *= share;
      model->write(p, values.data());
    }
  constexpr int COUNT = 24;
  const auto ask = [&](int i, bool wavefront) {
    GenerateRequest r = request(*model, i);
    r.draft_loops = r.draft_tokens = 0;
    r.max_new_tokens = 12 + i % 5;
    r.sampling.temperature = i % 3 ? 0.8 : 0;
    if (i % 2) r.exit.rule = ExitRule::fixed;
    r.exit.threshold = r.exit.rule == ExitRule::entropy ? 3.5 : 0.1;
    r.logits.repetition = i % 4 ? 1 : 1.3;
    r.wavefront = wavefront;
    return r;
  };
  Scheduler alone(model, {1}), together(model, {5, 0, 0, false, false, 2});
  std::vector<int64_t> plain, single, beside;
  for (int i = 0; i < COUNT; i++) {
    plain.push_back(alone.add(ask(i, false)));
    single.push_back(alone.add(ask(i, true)));
    beside.push_back(together.add(ask(i, i % 5 != 0)));
  }
  const auto one = run_all(alone), many = run_all(together);
  bool same = true;
  for (size_t i = 0; i < COUNT; i++) same &= one.at(single[i]) == one.at(plain[i]) && many.at(beside[i]) == one.at(plain[i]);
  claim(name + ": wavefront decoding has the bits of plain decoding", same);
  for (const Scheduler* scheduler : {&alone, &together}) {
    const SchedulerStats s = scheduler->stats();
    claim(name + ": drafts hold and fail", s.accepted > 0 && s.drafted > s.accepted && s.cached_tokens == 0,
          std::to_string(s.accepted) + " of " + std::to_string(s.drafted));
  }
}

ENGINE_TEST(test_wavefront, "wavefront decoding") {
  for (double share : {0.1, 1.0}) {
    ahead("one register", small_architecture(generation_sizes), share);
    ahead("two registers, blocks before and behind", small_prelude_architecture(generation_sizes), share);
  }
}

ENGINE_TEST(test_wavefront_pace, "wavefront pace") {
  TokenCosts costs;
  costs.blocks = 10, costs.head = 2, costs.reading = 8;
  claim("wavefront: costs of a token alone", costs.plain(4, 1) == 10 * 4 * 9 + 2 * 9 && costs.wave(4, 1, 1) == 12 * 12);
  claim("wavefront: sequences share the reading", costs.plain(4, 8) == 10 * 4 * 2 + 2 * 5 && costs.wave(4, 2, 8) == 12 * 2 * 5);
  const Readouts early{true, 5, 1}, late{true, 5, 4}, none{};
  WavefrontPace pace(costs, 4, 1, 1);
  bool drafts = true;
  for (int i = 0; i < 10; i++) {
    drafts &= pace.drafts();
    pace.add(early, 4, 1);
  }
  claim("wavefront: goes on while readouts settle early", drafts);
  int tokens = 0;
  while (pace.drafts() && tokens < 100) pace.add(late, 4, 1), tokens++;
  claim("wavefront: stops where they do not", tokens > 1 && tokens < 20, std::to_string(tokens));
  for (int pause : {8, 16, 32, 64, 64}) {
    int plain = 0;
    while (!pace.reads() && plain < 1000) pace.add(none, 4, 1), plain++;
    for (int i = 0; i < 4; i++) pace.add(late, 4, 1);
    claim("wavefront: tries again, later every time", plain == pause && !pace.drafts(), std::to_string(plain));
  }
  while (!pace.reads()) pace.add(none, 4, 1);
  for (int i = 0; i < 4; i++) pace.add(early, 4, 1);
  claim("wavefront: begins again where readouts have begun to settle", pace.drafts());
  WavefrontPace crowded(costs, 4, 1, 10000);
  for (int i = 0; i < 1000; i++) {
    drafts &= !crowded.reads();
    crowded.add(none, 4, 10000);
  }
  claim("wavefront: not where reading the weights costs nothing", drafts);
}

ENGINE_TEST(test_refused_requests, "refused requests") {
  const auto model = model_of(small_prelude_architecture(generation_sizes));
  refuses("shared planes of a family that needs all", "UNSUPPORTED", {"force"}, [&] { Scheduler(model, {4, 0, 0, true}); });
  Architecture fixed = small_architecture(generation_sizes);
  fixed.fixed_loops = true;
  refuses("more loops than a family has", "INVALID_ARGUMENT", {"at most 3"}, [&] { Scheduler(model_of(fixed), {4, 0, 4}); });
  Scheduler scheduler(model, {});
  refuses("initial states of another shape", "INVALID_SHAPE", {"initialStates"}, [&] {
    GenerateRequest r = request(*model, 0);
    r.states.given.assign(3, 0);
    scheduler.add(r);
  });
  refuses("a gate that is not there", "INVALID_ARGUMENT", {"exitGate: true"}, [&] {
    GenerateRequest r = request(*model, 0);
    r.exit.rule = ExitRule::gate;
    scheduler.add(r);
  });
}

// A request waits for the host before its first draw, and the cache grows for another one.
void growth(const std::string& name, const Architecture& architecture) {
  const auto model = model_of(architecture);
  const std::vector<double> answer(size_t(model->config.vocabulary), 0);
  const auto made = [&](bool grows) {
    Scheduler scheduler(model, {});
    GenerateRequest waits = request(*model, 0), other = request(*model, 1);
    waits.logits.host = LogitOptions::Host::logits;
    other.max_new_tokens = 40;
    const int64_t id = scheduler.add(waits);
    Tokens out;
    for (int token = -1; token < waits.max_new_tokens; token++) {
      for (const GenerateEvent& event : scheduler.run(Until::idle))
        for (const GeneratedToken& t : event.tokens)
          if (event.request == id) out.emplace_back(t.token + 1000 * t.loop, t.logprob);
      if (token < 0 && grows) scheduler.add(other);
      scheduler.answer(id, {{}, answer});
    }
    return out;
  };
  const Tokens expected = made(false);
  claim(name + ": a request that waits for its first draw keeps its bits when the cache grows",
        expected.size() == 4 && made(true) == expected);
}

ENGINE_TEST(test_growth, "the cache grows") {
  growth("one register", small_architecture(generation_sizes));
  growth("two registers, blocks before and behind", small_prelude_architecture(generation_sizes));
}

ENGINE_TEST(test_batches, "requests beside others") {
  batches("one register", small_architecture(generation_sizes));
  batches("two registers, blocks before and behind", small_prelude_architecture(generation_sizes));
}

}  // namespace
}  // namespace looplm::test
