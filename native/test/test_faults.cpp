// Makes memory allocations fail, at every place where the engine allocates. The call must fail with OUT_OF_MEMORY and leave
// nothing half changed, and the same call afterwards must give the bits of a fresh process. The same for aborted calls.
// Prints one line per claim; the exit status is 1 if one does not hold.
//
//   looplm_fault_tests [--every] [filter]     --every: at every allocation, in every dtype, with two threads. Otherwise at the
//                                             first ones and some of the later ones, in one dtype if the others allocate
//                                             alike, and with one thread where memory stays exhausted or a call is aborted
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <new>

#include "../backends.h"
#include "../cpu/cpu.h"
#include "../engine/looprpt.h"
#include "../engine/loss.h"
#include "../engine/moving_average.h"
#include "../engine/optimizer.h"
#include "../engine/safetensors.h"
#include "../engine/generation/scheduler.h"
#include "../engine/score.h"
#include "../engine/tensor_ops.h"
#include "engine/claims.h"
#include "engine/files.h"
#include "small_architecture.h"

// ---- Replaces the allocation functions of this program, for host and device memory, so that they can fail

namespace {
enum class Fault { none, once, lasting, cancel };
std::atomic<Fault> fault{Fault::none};
std::atomic<bool> of_device{false};  // true: device memory and the kernels' scratch memory fail; false: all host memory
std::atomic<long> asked{0}, refused_from{0};
std::atomic<bool> cancelled{false};
std::atomic<size_t> largest{size_t(1) << 40};  // largest allocation that succeeds
std::atomic<size_t> budget{SIZE_MAX};          // limit on the total size of the device's buffers
size_t held();                                 // the current total
std::atomic<size_t> largest_asked{0};          // the largest single device allocation, by a buffer or a kernel

bool refused(bool on_device) {
  const Fault now = fault.load(std::memory_order_relaxed);
  if (now == Fault::none || on_device != of_device) return false;
  const long n = asked.fetch_add(1) + 1, at = refused_from.load();
  if (now == Fault::cancel && n == at) cancelled = true;
  return (now == Fault::once && n == at) || (now == Fault::lasting && n >= at);
}
void* take(size_t bytes, size_t alignment, bool on_device = false) {
  void* p = nullptr;
  if (refused(on_device) || bytes > largest) return nullptr;
  if (on_device) largest_asked = std::max(largest_asked.load(), bytes);
  if (on_device && budget != SIZE_MAX && held() + bytes > budget) return nullptr;
  return posix_memalign(&p, alignment, bytes > 0 ? bytes : 1) == 0 ? p : nullptr;
}
}  // namespace

void* operator new(size_t bytes) {
  if (void* p = take(bytes, 16)) return p;
  throw std::bad_alloc();
}
void* operator new(size_t bytes, std::align_val_t alignment) {
  if (void* p = take(bytes, size_t(alignment))) return p;
  throw std::bad_alloc();
}
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return take(bytes, 16); }
void* operator new(size_t bytes, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return take(bytes, size_t(alignment), true);  // used by device `reference`
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
extern "C" void* aligned_alloc(size_t alignment, size_t bytes) noexcept { return take(bytes, alignment, true); }

namespace {
size_t held() { return looplm::memory_stats().allocated_bytes; }
}  // namespace

namespace looplm {
namespace {

using test::claim;
using Numbers = std::vector<double>;
void append(Numbers& to, const Numbers& from) { to.insert(to.end(), from.begin(), from.end()); }
bool same_bits(const Numbers& a, const Numbers& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0);
}

const Architecture config = small_architecture({50, 32, 64, 2, 4, 2, 8, 3, false, 0.2});
const Architecture with_prelude = small_prelude_architecture({50, 32, 64, 2, 4, 2, 8, 3, false, 0.2});

bool every = false;
std::string filter;
int threads = 2;  // of a device

// A new device that has not allocated any scratch memory, and a model on it.
struct Fixture {
  explicit Fixture(LoopDType dt, Quantization quantization = {}, const Architecture& architecture = config) {
    device = open_device(dt == LOOP_F64 ? "reference" : "cpu", threads);
    model = std::make_shared<Model>(device, dt, architecture, quantization);
    model->initialize(7);
  }
  std::shared_ptr<Device> device;
  std::shared_ptr<Model> model, teacher;
  std::shared_ptr<AdamW> optimizer;
  std::unique_ptr<Scheduler> scheduler;
  bool done = false;  // set when the all-or-nothing part has completed
};

Sequences sequences(int count, int length, int prompt) {
  Sequences s;
  s.offsets.push_back(0);
  for (int i = 0; i < count; i++) {
    for (int j = 0; j < length + i; j++) s.tokens.push_back((j < prompt ? j * 5 + i / 2 : j * j + 3 * i) % 50);
    s.offsets.push_back(int64_t(s.tokens.size()));
    s.prompt_lengths.push_back(prompt);
  }
  return s;
}

// What a scenario does with `size` sequences, and its results. It can run repeatedly.
using Scenario = std::function<Numbers(Fixture&, int size)>;

Numbers scores(Fixture& f, int size) {
  ScoreOptions options;
  options.predictions = true;
  const Scores s = score(*f.model, sequences(size, 9, 3), options);
  Numbers out = s.logprobs;
  for (const Numbers* more : {&s.entropy, &s.gate_logits, &s.exit_pdf, &s.predicted}) append(out, *more);
  return out;
}

Numbers gradients_of(Model& model) {
  Numbers out;
  for (const Parameter& p : model.trained()) append(out, model.read_gradient(p));
  return out;
}
Numbers parameters_of(Model& model) {
  Numbers out;
  for (const Parameter& p : model.trained()) append(out, model.read(p));
  return out;
}

Numbers gradients(Fixture& f, int size, Recompute recompute) {
  f.model->zero_gradients();  // a failed call leaves what it has added so far
  const Sequences s = sequences(size, 9, 3);
  const Scores scored = score(*f.model, s, {});
  backward(*f.model, s, Numbers(scored.logprobs.size(), -0.01), Numbers(scored.gate_logits.size(), 0.02), {}, recompute);
  return gradients_of(*f.model);
}

Numbers losses(Fixture& f, int size, bool several_passes, bool exits) {
  f.model->zero_gradients();
  LossBatch batch;
  batch.sequences = sequences(size, 9, 3);
  batch.length_normalizers.assign(size_t(size), 0.1);
  Objective objective;
  LossTerm term;
  term.surrogate = several_passes ? Surrogate::gspo : Surrogate::reinforce;
  term.length_normalizers = batch.length_normalizers;
  for (int i = 0; i < size; i++) term.advantages.push_back(i % 2 ? 1 : -0.5);
  objective.terms.push_back(term);
  if (several_passes)
    for (size_t i = 0; i < batch.sequences.tokens.size() - size_t(size); i++) batch.old_logprobs.push_back(-3);
  if (several_passes) objective.terms[0].weights.kind = LoopWeighting::one_hot;
  if (exits) {
    LossTerm exit = term;
    exit.surrogate = Surrogate::reinforce;
    exit.channel = Channel::exit;
    exit.draws = 3;
    objective.terms.push_back(exit);
  }
  objective.exit_entropy = 0.01;
  objective.tokens_per_micro_batch = 40;
  const LossMetrics m = accumulate_loss(*f.model, batch, objective);
  Numbers out = gradients_of(*f.model);
  append(out, {m.loss, m.entropy, m.exit_loop});
  return out;
}

// Parameters before and after a step. An optimizer that failed halfway would give a different step afterwards.
Numbers training(Fixture& f, int size) {
  if (!f.optimizer) f.optimizer = std::make_shared<AdamW>(f.model);
  if (f.optimizer->steps() == 0) gradients(f, size, Recompute::layer);
  AdamWOptions options;
  options.max_grad_norm = 1;
  if (f.optimizer->steps() == 0) f.optimizer->step(options);
  f.done = true;
  return parameters_of(*f.model);
}

// Requests of every kind: shared prompts, prompts in pieces, exit rules that read the head, drafts.
Numbers generation(Fixture& f, int size, bool shared) {
  if (!f.scheduler) {
    SchedulerOptions options;
    options.max_rows = 4;
    options.prefill_tokens = 5;
    options.shared_cache = shared;
    f.scheduler = std::make_unique<Scheduler>(f.model, options);
  }
  const ExitRule rules[] = {ExitRule::fixed,   ExitRule::gate,          ExitRule::kl, ExitRule::hidden_delta,
                            ExitRule::entropy, ExitRule::argmax_stable, ExitRule::kl};
  std::vector<int64_t> ids;
  for (int i = 0; i < size; i++) {
    GenerateRequest r;
    for (int j = 0; j < 7; j++) r.prompt.push_back((j * 3 + i / 2) % 50);
    r.max_new_tokens = 4 + i % 3;
    r.sampling.seed = 5;
    r.sampling.top_p = 0.9;
    r.sequence = i;
    r.exit.rule = rules[i % 7];
    if (r.exit.rule == ExitRule::gate && !f.model->config.exit_gate) r.exit.rule = ExitRule::kl_previous;
    r.exit.threshold = r.exit.rule == ExitRule::entropy ? 3.5 : 0.4;
    r.alternatives = i % 2;
    if (i % 7 == 0 && !shared) r.draft_loops = 1, r.draft_tokens = 3;
    else r.wavefront = i % 2 == 0;
    ids.push_back(f.scheduler->add(r));
  }
  std::map<int64_t, Numbers> made;
  while (std::any_of(ids.begin(), ids.end(), [&](int64_t id) { return made.count(id) == 0 || made[id].back() >= 0; })) {
    for (const GenerateEvent& event : f.scheduler->run(Until::idle)) {
      if (event.finish == Finish::failed) throw Error("OUT_OF_MEMORY", "generate", event.failure);
      for (const GeneratedToken& t : event.tokens) append(made[event.request], {double(t.token), t.logprob, double(t.loop)});
      if (event.finish != Finish::none) made[event.request].push_back(-1);
    }
  }
  Numbers out;
  for (int64_t id : ids) append(out, made[id]);
  return out;
}

std::string scratch_file(const std::string& name) {
  static const test::Folder folder;
  return folder / name;
}

Numbers loading(Fixture& f, int, LoopDType dt) {
  const std::shared_ptr<Model> loaded = load_model(f.device, dt, config, {}, {scratch_file("model.safetensors")}, false);
  return parameters_of(*loaded);
}
Numbers quantizing(Fixture& f, int size) {
  f.model = load_model(f.device, LOOP_F32, config, {4, 32}, {scratch_file("model.safetensors")}, false);
  return scores(f, size);
}

Numbers reinforced_pretraining(Fixture& f, int size) {
  f.model->zero_gradients();
  if (!f.teacher) f.teacher = f.model->clone();
  LoopRptBatch batch;
  batch.sequences = sequences(size, 9, 3);
  for (int i = 0; i < size; i++) batch.ids.push_back(uint32_t(i));
  LoopRptOptions options;
  options.rollouts = 4;
  options.rho = 0.5;
  options.tokens_per_micro_batch = 30;
  accumulate_looprpt(*f.model, *f.teacher, batch, options);
  return gradients_of(*f.model);
}

// An adapter is added and removed. A clone shares the base parameters until they are trained.
Numbers adapters(Fixture& f, int size) {
  f.teacher = nullptr;
  f.optimizer = nullptr;
  f.model->remove_adapter();
  Numbers out = scores(f, size);
  f.model->add_adapter({4, 8, {"q_proj", "down_proj"}}, 3);
  f.teacher = f.model->clone();
  append(out, gradients(f, size, Recompute::none));
  f.optimizer = std::make_shared<AdamW>(f.model);
  f.optimizer->step({});
  append(out, parameters_of(*f.model));
  append(out, scores(f, size));
  f.optimizer = nullptr;
  f.model->remove_adapter();
  append(out, gradients(f, size, Recompute::loop));
  return out;
}

// A model without gradients, whose clone shares its arena: a write makes the copy.
Numbers copies(Fixture& f, int size) {
  if (!f.model->adapter()) f.model->add_adapter({4, 8, {"v_proj"}}, 3);
  const Parameter& norm = f.model->parameter("model.norm.weight");
  f.model->write(norm, Numbers(norm.count, 1.0).data());
  f.teacher = f.model->clone();
  f.model->write(norm, Numbers(norm.count, 0.5).data());
  Numbers out = f.teacher->read(norm);
  append(out, scores(f, size));
  return out;
}

Numbers tensors(Fixture& f, int size) {
  const LoopDType dt = f.model->dt;
  const Tensor a = filled(f.device, dt, {size, 33, 40}, 0.25), b = filled(f.device, dt, {40, 70}, 0.5);
  const Tensor product = matmul(a, b, false, false), p = softmax(product, true);
  const Tensor sum = reduce(LOOP_SUM, p, 1), real = cast(sum, loop_real(dt));
  return download_reals(*real.buffer, dt, size_t(real.size()));
}

Numbers bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), {});
  return Numbers(bytes.begin(), bytes.end());
}
// An optimizer's state as bytes of its file.
Numbers moments_of(Fixture& f) {
  if (!f.optimizer) f.optimizer = std::make_shared<AdamW>(f.model);
  f.optimizer->save(scratch_file("optimizer.copy"));
  return bytes_of(scratch_file("optimizer.copy"));
}
Numbers moments(Fixture& f, int) {
  if (!f.optimizer) f.optimizer = std::make_shared<AdamW>(f.model);
  f.optimizer->load({scratch_file("optimizer.safetensors")});
  f.done = true;
  return {double(f.optimizer->steps())};
}

Numbers adapter_file(Fixture& f, int) {
  if (!f.model->adapter()) f.model->add_adapter({4, 8, {"q_proj", "down_proj"}}, 3);
  load_adapter(*f.model, scratch_file("adapter.safetensors"));
  f.done = true;
  return parameters_of(*f.model);
}

Numbers average(Fixture& f, int size) {
  const Parameter& norm = f.model->parameter("model.norm.weight");
  f.model->write(norm, Numbers(norm.count, 1.0).data());
  f.teacher = f.model->clone();
  MovingAverage of(f.teacher, f.model);
  f.model->write(norm, Numbers(norm.count, 0.5).data());
  of.update(0.9);
  of.save(scratch_file("average"));
  of.update(0.5);
  of.load(scratch_file("average"));
  Numbers out = parameters_of(*f.teacher);
  f.model->zero_gradients();
  append(out, {accumulate_stage2(*f.model, sequences(size, 9, 3), {}, 6.0 * size, 30)});
  append(out, gradients_of(*f.model));
  return out;
}

const char* name_of(Fault kind) {
  return kind == Fault::once ? "one allocation fails" : kind == Fault::lasting ? "memory stays exhausted" : "it is aborted";
}

// Runs the scenario with a fault at allocation `at`. Returns false if it finished with fewer allocations. failed: it threw.
bool strike(Fixture& f, const Scenario& scenario, Fault kind, bool device, long at, std::string& problem, bool& failed) {
  failed = true;
  cancelled = false;
  f.device->cancel = &cancelled;
  asked = 0;
  refused_from = at;
  of_device = device;
  fault = kind;
  try {
    scenario(f, 5);
    failed = false;
  } catch (const Error& e) {
    fault = Fault::none;
    if (e.code != (kind == Fault::cancel ? "ABORTED" : "OUT_OF_MEMORY")) problem = e.code + " " + e.what();
  } catch (const std::bad_alloc&) {
    fault = Fault::none;
    if (kind == Fault::cancel) problem = "bad_alloc";
  } catch (const std::exception& e) {
    fault = Fault::none;
    problem = e.what();
  }
  fault = Fault::none;
  f.device->cancel = nullptr;
  return asked >= at;
}

// The next allocation to test: first every one, later with growing distances.
long next(long at, bool device) {
  if (every || at < (device ? 20 : 12)) return at + 1;
  return at + at / (device ? 8 : 4);
}

// unchanged: returns the state that a failed scenario must leave as it was.
void hold(const std::string& name, const std::function<Fixture()>& make, const Scenario& scenario,
          const std::function<Numbers(Fixture&)>& unchanged = nullptr) {
  if (name.find(filter) == std::string::npos) return;
  Numbers small, large, before;
  if (unchanged) {
    Fixture fresh = make();
    before = unchanged(fresh);
  }
  {
    Fixture fresh = make();
    large = scenario(fresh, 5);
  }
  {
    Fixture fresh = make();
    small = scenario(fresh, 2);
  }
  for (Fault kind : {Fault::once, Fault::lasting, Fault::cancel}) {
    std::string problem;
    long at = 1, struck = 0;
    bool device = true;
    threads = every || kind == Fault::once ? 2 : 1;  // the bits are the same
    for (; problem.empty(); at = next(at, device)) {
      Fixture f = make();
      bool failed;
      if (!strike(f, scenario, kind, device, at, problem, failed)) {
        if (!device) break;
        device = false;
        at = 0;
        continue;
      }
      struck++;
      if (!problem.empty()) break;
      try {
        if (unchanged && failed && !f.done && !same_bits(unchanged(f), before)) {
          problem = "something has changed";
          break;
        }
        // The smaller call first: it runs with the memory that the larger one left. An optimizer step cannot be repeated.
        if (name.find("step") == std::string::npos && !same_bits(scenario(f, 2), small)) problem = "other bits after it";
        if (problem.empty() && !same_bits(scenario(f, 5), large)) problem = "other bits in the same call again";
      } catch (const std::exception& e) {
        problem = std::string("the next call fails: ") + e.what();
      }
      if (!problem.empty()) break;
    }
    claim(name + ": " + name_of(kind) + ", " + std::to_string(struck) + " places", problem.empty() && struck > 0,
          (device ? "at allocation of the device " : "at allocation of the host ") + std::to_string(at) + ": " + problem);
  }
  threads = 2;
}

// Both dtypes if `every`; otherwise one, for scenarios that allocate alike in both.
std::vector<LoopDType> both() { return every ? std::vector{LOOP_F32, LOOP_BF16} : std::vector{LOOP_BF16}; }

void hold_in_both(const std::string& name, const Scenario& scenario) {
  for (LoopDType dt : both())
    hold(
        name + " in " + loop_dtype_name(dt), [dt] { return Fixture(dt); }, scenario);
}

// A call that is aborted after the first parameter that it has changed, where no allocation is: it goes on to its end.
// prepare: returns the call.
void aborted_halfway(const std::string& call_name, const std::function<std::function<void()>(Fixture&)>& prepare) {
  const std::string name = call_name + ": an abort between two parameters comes too late";
  if (name.find(filter) == std::string::npos) return;
  static const LoopBackend& cpu = *looplm_cpu_backend();
  static LoopBackend table = cpu;
  static int changed = 0;
  table.adamw = [](void* context, LoopDType dt, const LoopAdamW* arguments) {
    changed++, cancelled = true;
    return cpu.adamw(context, dt, arguments);
  };
  table.moving_average = [](void* context, LoopDType dt, int64_t count, double weight, const void* x, void* average, void* of) {
    changed++, cancelled = true;
    return cpu.moving_average(context, dt, count, weight, x, average, of);
  };
  table.copy_in = [](void* context, void* to, const void* from, size_t bytes) {
    changed++, cancelled = true;
    return cpu.copy_in(context, to, from, bytes);
  };
  Numbers after[2];
  for (const bool abort : {false, true}) {
    Fixture f(LOOP_F32);
    f.device = std::make_shared<Device>("cpu", &table, table.open(0, 2), 2);
    f.model = std::make_shared<Model>(f.device, LOOP_F32, config);
    f.model->initialize(7);
    const std::function<void()> call = prepare(f);
    changed = 0, cancelled = false;
    if (abort) f.device->cancel = &cancelled;
    std::string said;
    try {
      call();
    } catch (const Error& error) {
      said = error.what();
    }
    f.device->cancel = nullptr;
    after[abort] = parameters_of(*f.model);
    if (f.teacher) append(after[abort], parameters_of(*f.teacher));
    if (f.optimizer) append(after[abort], moments_of(f));
    claim(name + (abort ? "" : ", without an abort"), said.empty() && changed > 1, said);
  }
  claim(name + ", with the bits of a call alone", same_bits(after[0], after[1]));
}

// ---- Requests that do not fit at the same time

// Runs all requests to their end. Returns their events by request id.
std::map<int64_t, GenerateEvent> run_all(Scheduler& scheduler) {
  std::map<int64_t, GenerateEvent> out;
  for (const GenerateEvent& event : scheduler.run(Until::idle)) out[event.request] = event;
  return out;
}
GenerateRequest request(int first, int length, int new_tokens) {
  GenerateRequest r;
  for (int j = 0; j < length; j++) r.prompt.push_back((first + j) % 50);
  r.max_new_tokens = new_tokens;
  r.sequence = first;
  return r;
}
std::vector<int32_t> tokens_of(const GenerateEvent& event) {
  std::vector<int32_t> out;
  for (const GeneratedToken& t : event.tokens) out.push_back(t.token);
  return out;
}

// If any single device allocation fails, every request still ends with its own tokens: rows that ran out of memory restart.
void fail_alone(bool shared, const Architecture& architecture = config) {
  const std::string name =
      "generate: the others go on, " + architecture.family + ", " + (shared ? "shared" : "per-loop") + " cache";
  if (name.find(filter) == std::string::npos) return;
  SchedulerOptions options;
  options.shared_cache = shared;
  options.prefill_tokens = 64;
  const auto ask = [&](int i) {
    GenerateRequest r = request(i, 40 + i, 8);
    r.exit.rule = i % 2 ? ExitRule::kl : architecture.exit_gate ? ExitRule::gate : ExitRule::cosine;
    r.exit.threshold = 0.4;
    if (i == 2 && !shared) r.exit.rule = ExitRule::fixed, r.draft_loops = 1, r.draft_tokens = 3;
    else r.wavefront = i > 2;
    return r;
  };
  std::vector<std::vector<int32_t>> expected;
  for (int i = 0; i < 5; i++) {
    Fixture f(LOOP_F32, {}, architecture);
    Scheduler alone(f.model, options);
    const int64_t id = alone.add(ask(i));
    expected.push_back(tokens_of(run_all(alone)[id]));
  }
  long at = 1;
  int64_t restarted = 0;
  std::string problem;
  for (;; at++) {
    Fixture f(LOOP_F32, {}, architecture);
    Scheduler scheduler(f.model, options);
    std::vector<int64_t> ids;
    for (int i = 0; i < 5; i++) ids.push_back(scheduler.add(ask(i)));
    asked = 0;
    refused_from = at;
    of_device = true;
    fault = Fault::once;
    try {
      const auto events = run_all(scheduler);
      fault = Fault::none;
      for (size_t i = 0; i < ids.size(); i++)
        if (tokens_of(events.at(ids[i])) != expected[i]) problem = "request " + std::to_string(i) + " has other tokens";
      restarted += scheduler.stats().restarted;
    } catch (const std::exception& e) {
      fault = Fault::none;
      problem = std::string("the run failed: ") + e.what();
    }
    if (asked < at || !problem.empty()) break;
  }
  claim(name + ", " + std::to_string(at) + " places, " + std::to_string(restarted) + " rows began again",
        problem.empty() && restarted > 0, "at allocation " + std::to_string(at) + ": " + problem);
}

// A batch on a device with less and less memory gives the same tokens in more and more waves, whether passes or the cache run
// out of memory. If not even one request fits, each fails with an error that says what to do.
void waves(bool shared, bool keep, const Architecture& architecture = config) {
  const std::string name = "generate in waves, " + architecture.family + ", " + (shared ? "shared" : "per-loop") + " cache" +
                           (keep ? ", rows that are kept" : "");
  if (name.find(filter) == std::string::npos) return;
  constexpr int COUNT = 24;
  SchedulerOptions options;
  options.shared_cache = shared;
  options.max_rows = COUNT;
  const auto ask = [&](int i) {
    GenerateRequest r = request(i / 4, 9 + i / 4, 6 + i % 5);  // groups of four share a prompt
    r.sequence = i;
    r.keep = keep;
    r.sampling.seed = 3;
    r.exit.rule = i % 3 ? ExitRule::fixed : ExitRule::kl;
    r.exit.threshold = 0.4;
    if (i % 5 == 2 && !shared) r.exit.rule = ExitRule::fixed, r.draft_loops = 1, r.draft_tokens = 3;
    return r;
  };
  size_t alone = 0, before = 0;  // the most that any single request needs
  std::vector<Numbers> expected;
  const auto numbers_of = [](const GenerateEvent& event) {
    Numbers out;
    for (const GeneratedToken& t : event.tokens) append(out, {double(t.token), t.logprob, double(t.loop)});
    return out;
  };
  const auto run = [&](const std::vector<int>& which, int64_t& restarted) {
    Fixture f(LOOP_F32, {}, architecture);
    Scheduler scheduler(f.model, options);
    std::vector<int64_t> ids;
    for (int i : which) ids.push_back(scheduler.add(ask(i)));
    before = held();
    reset_peak_memory();
    const auto events = run_all(scheduler);
    restarted = scheduler.stats().restarted;
    std::vector<GenerateEvent> out;
    for (int64_t id : ids) out.push_back(events.at(id));
    return out;
  };
  int64_t restarted = 0;
  largest_asked = 0;
  for (int i = 0; i < COUNT; i++) {
    expected.push_back(numbers_of(run({i}, restarted)[0]));
    alone = std::max(alone, memory_stats().peak_bytes - before);
  }
  alone += largest_asked;  // kernels need scratch memory besides the buffers
  std::vector<int> all(COUNT);
  for (int i = 0; i < COUNT; i++) all[size_t(i)] = i;
  run(all, restarted);
  const size_t together = memory_stats().peak_bytes - before;
  int64_t most = 0;
  std::string problem;
  for (int share = 0; share <= 16 && problem.empty(); share++) {
    budget = before + alone + (together - alone) * size_t(share) / 16;
    const auto events = run(all, restarted);
    budget = SIZE_MAX;
    most = std::max(most, restarted);
    for (size_t i = 0; i < COUNT; i++)
      if (!same_bits(numbers_of(events[i]), expected[i]))
        problem =
            std::to_string(share) + "/16 of the memory: request " + std::to_string(i) + " has other tokens " + events[i].failure;
  }
  claim(name + ": " + std::to_string(together) + " bytes together, " + std::to_string(alone) + " alone, up to " +
            std::to_string(most) + " rows began again",
        problem.empty() && most > 0 && together > alone + alone / 2, problem);
  budget = before + alone / 4;
  const auto events = run(all, restarted);
  budget = SIZE_MAX;
  bool told = true;
  for (const GenerateEvent& event : events)
    told &= event.finish == Finish::failed && event.failure.find("lower maxNewTokens") != std::string::npos;
  claim(name + ": a quarter of what one takes", told, events[0].failure);
}

// A request that needs more memory than there is, next to others: added before them, after them, and between them.
void too_large() {
  const std::string name = "generate: a request that does not fit";
  if (name.find(filter) == std::string::npos) return;
  for (int place : {0, 1, 3}) {
    Fixture f(LOOP_F32);
    Scheduler scheduler(f.model, {});
    std::vector<int64_t> ids;
    int64_t large = 0;
    for (int i = 0; i < 4; i++)
      if (i == place) large = scheduler.add(request(i, 6, 1 << 17));
      else ids.push_back(scheduler.add(request(i, 6, 8)));
    largest = size_t(16) << 20;  // 130,000 tokens take 48 MiB
    const auto events = run_all(scheduler);
    largest = size_t(1) << 40;
    bool whole = true;
    for (int64_t id : ids) whole &= events.at(id).tokens.size() == 8;
    const GenerateEvent& refused = events.at(large);
    const bool named = refused.failure.find("prompt of 6 tokens and up to 131072 new ones need") != std::string::npos &&
                       refused.failure.find("lower maxNewTokens") != std::string::npos;
    claim(name + ", number " + std::to_string(place), whole && refused.finish == Finish::failed && named, refused.failure);
  }
  Fixture f(LOOP_F32);
  Scheduler scheduler(f.model, {});
  try {
    scheduler.add(request(0, 6, INT32_MAX));
    claim(name + " in any memory", false, "it was taken");
  } catch (const Error& e) {
    claim(name + " in any memory", e.code == "OUT_OF_MEMORY", e.what());
  }
}

// ---- What the host reports about its memory

// A folder that replaces / and contains the given files.
MemoryRoom room_of(const std::map<std::string, std::string>& files) {
  static int number = 0;
  const std::string root = scratch_file("root" + std::to_string(number++));
  for (const auto& [path, content] : files) {
    for (size_t end = 0; end != std::string::npos; end = path.find('/', end + 1))
      mkdir((root + path.substr(0, end)).c_str(), 0755);
    std::ofstream(root + path) << content;
  }
  return host_memory(root);
}

void host() {
  if (std::string("host memory").find(filter) == std::string::npos) return;
  constexpr size_t KIB = 1024;
  const std::map<std::string, std::string> machine = {
      {"/proc/meminfo",
       "MemTotal:       8000 kB\nMemFree:         100 kB\nMemAvailable:   5000 kB\nCommitLimit: 4000 kB\n"
       "Committed_AS:   3000 kB\n"}};
  const auto says = [&](const char* name, std::map<std::string, std::string> files, size_t free, size_t total) {
    files.insert(machine.begin(), machine.end());
    const MemoryRoom room = room_of(files);
    claim(std::string("host memory: ") + name, room.free == free && room.total == total,
          std::to_string(room.free) + " of " + std::to_string(room.total));
  };
  says("of the machine", {}, 5000 * KIB, 8000 * KIB);
  says("of a control group without a limit",
       {{"/proc/self/cgroup", "0::/user/app\n"}, {"/sys/fs/cgroup/user/app/memory.max", "max\n"}}, 5000 * KIB, 8000 * KIB);
  says("of a control group, with the pages of files that it can give up",
       {{"/proc/self/cgroup", "0::/app\n"},
        {"/sys/fs/cgroup/app/memory.max", "2048000\n"},
        {"/sys/fs/cgroup/app/memory.current", "1024000\n"},
        {"/sys/fs/cgroup/app/memory.stat", "anon 1\ninactive_file 20000\nactive_file 4000\n"}},
       2048000 - 1000000, 2048000);
  says("of a control group above",
       {{"/proc/self/cgroup", "0::/user/app\n"},
        {"/sys/fs/cgroup/user/app/memory.max", "4096000\n"},
        {"/sys/fs/cgroup/user/app/memory.current", "96000\n"},
        {"/sys/fs/cgroup/user/memory.max", "1024000\n"},
        {"/sys/fs/cgroup/user/memory.current", "1000000\n"}},
       24000, 1024000);
  says("in a container, which sees its own group as the root",
       {{"/proc/self/cgroup", "0::/docker/1234\n"},
        {"/sys/fs/cgroup/memory.max", "1024000\n"},
        {"/sys/fs/cgroup/memory.current", "24000\n"}},
       1000000, 1024000);
  says("of a control group of version 1",
       {{"/proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n"},
        {"/sys/fs/cgroup/memory/x/memory.limit_in_bytes", "2048000\n"},
        {"/sys/fs/cgroup/memory/x/memory.usage_in_bytes", "48000\n"},
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"},
        {"/sys/fs/cgroup/memory/memory.usage_in_bytes", "90000000\n"}},
       2000000, 2048000);
  says("of a group that holds more than its limit",
       {{"/proc/self/cgroup", "0::/\n"}, {"/sys/fs/cgroup/memory.max", "1000\n"}, {"/sys/fs/cgroup/memory.current", "5000\n"}}, 0,
       1000);
  says("of a system that promises no more than it has", {{"/proc/sys/vm/overcommit_memory", "2\n"}}, 1000 * KIB, 4000 * KIB);

  // The system would grant this, and then kill the process that uses it.
  const MemoryRoom now = host_memory();
  try {
    const Buffer buffer(open_device("cpu", 1), (now.free + now.swap + now.total) / 2 + (size_t(1) << 28));
    claim("host memory: more than is free is refused before it is used", false, std::to_string(buffer.bytes()) + " bytes");
  } catch (const Error& e) {
    const std::string message = e.what();
    claim("host memory: more than is free is refused before it is used",
          e.code == "OUT_OF_MEMORY" && message.find("bytes are free") != std::string::npos, message);
  }

  rlimit before;
  getrlimit(RLIMIT_DATA, &before);
  std::ifstream statm("/proc/self/statm");
  size_t pages = 0;  // the sixth number: data and stack
  for (int i = 0; i < 6; i++) statm >> pages;
  constexpr size_t LEFT = size_t(1) << 30;
  const rlimit low = {pages * size_t(sysconf(_SC_PAGESIZE)) + LEFT, before.rlim_max};
  setrlimit(RLIMIT_DATA, &low);
  const MemoryRoom room = host_memory();
  setrlimit(RLIMIT_DATA, &before);
  claim("host memory: of a process with a limit", room.total <= low.rlim_cur && room.free <= LEFT,
        std::to_string(room.free) + " of " + std::to_string(room.total));
}

void run() {
  host();
  {
    Fixture f(LOOP_F32);
    save_parameters(*f.model, scratch_file("model.safetensors"), "F32", false);
    training(f, 5);
    f.optimizer->save(scratch_file("optimizer.safetensors"));
    f.model->add_adapter({4, 8, {"q_proj", "down_proj"}}, 9);
    save_adapter(*f.model, scratch_file("adapter.safetensors"), "BF16");
  }
  hold_in_both("score", scores);
  hold_in_both("backward", [](Fixture& f, int size) { return gradients(f, size, Recompute::none); });
  hold(
      "backward, layers again", [] { return Fixture(LOOP_BF16); },
      [](Fixture& f, int size) { return gradients(f, size, Recompute::layer); });
  hold_in_both("loss in one pass", [](Fixture& f, int size) { return losses(f, size, false, true); });
  hold(
      "loss in two passes", [] { return Fixture(LOOP_F32); }, [](Fixture& f, int size) { return losses(f, size, true, false); });
  for (LoopDType dt : both())
    hold(
        std::string("optimizer step in ") + loop_dtype_name(dt), [dt] { return Fixture(dt); }, training,
        [](Fixture& f) { return parameters_of(*f.model); });
  aborted_halfway("optimizer step", [](Fixture& f) {
    gradients(f, 5, Recompute::none);
    f.optimizer = std::make_shared<AdamW>(f.model);
    return [&f] { f.optimizer->step({}); };
  });
  aborted_halfway("moving average", [](Fixture& f) {
    f.teacher = f.model->clone();
    const auto of = std::make_shared<MovingAverage>(f.teacher, f.model);
    for (const Parameter& p : f.model->trained()) f.model->write(p, Numbers(p.count, 0.5).data());
    return [of] { of->update(0.9); };
  });
  aborted_halfway("optimizer file", [](Fixture& f) {
    f.optimizer = std::make_shared<AdamW>(f.model);
    return [&f] { f.optimizer->load({scratch_file("optimizer.safetensors")}); };
  });
  aborted_halfway("file of a moving average", [](Fixture& f) {
    f.teacher = f.model->clone();
    const auto of = std::make_shared<MovingAverage>(f.teacher, f.model);
    for (const Parameter& p : f.model->trained()) f.model->write(p, Numbers(p.count, 0.5).data());
    of->update(0.9);
    of->save(scratch_file("average"));
    of->update(0.5);
    return [of] { of->load(scratch_file("average")); };
  });
  hold(
      "optimizer file", [] { return Fixture(LOOP_F32); }, moments, moments_of);
  hold(
      "adapter file", [] { return Fixture(LOOP_F32); }, adapter_file,
      [](Fixture& f) {
        if (!f.model->adapter()) f.model->add_adapter({4, 8, {"q_proj", "down_proj"}}, 3);
        return parameters_of(*f.model);
      });
  hold(
      "moving average and stage II", [] { return Fixture(LOOP_BF16); }, average);
  for (bool shared : {false, true})
    for (LoopDType dt : {LOOP_F32, shared ? LOOP_F64 : LOOP_BF16}) {
      if (!every && shared == (dt == LOOP_F32)) continue;
      hold(
          std::string("generate, ") + (shared ? "shared" : "per-loop") + " cache, " + loop_dtype_name(dt),
          [dt] { return Fixture(dt); }, [shared](Fixture& f, int size) { return generation(f, size, shared); });
    }
  hold(
      "generate, several registers", [] { return Fixture(LOOP_F32, {}, with_prelude); },
      [](Fixture& f, int size) { return generation(f, size, false); });
  for (int bits : {4, 8})
    hold(
        "score with " + std::to_string(bits) + " bits",
        [bits] {
          return Fixture(LOOP_F32, {bits, 32});
        },
        scores);
  hold(
      "quantize a file", [] { return Fixture(LOOP_F32); }, quantizing);
  for (LoopDType dt : both())
    hold(
        std::string("load as ") + loop_dtype_name(dt), [dt] { return Fixture(dt); },
        [dt](Fixture& f, int size) { return loading(f, size, dt); });
  hold(
      "LoopRPT", [] { return Fixture(LOOP_F32); }, reinforced_pretraining);
  for (LoopDType dt : both())
    hold(
        std::string("adapter, ") + loop_dtype_name(dt), [dt] { return Fixture(dt); }, adapters);
  hold(
      "copy on write", [] { return Fixture(LOOP_F32); }, copies);
  hold_in_both("tensors", tensors);
  for (bool shared : {false, true}) fail_alone(shared);
  fail_alone(false, with_prelude);
  for (bool shared : {false, true}) waves(shared, false);
  waves(false, true);
  waves(false, false, with_prelude);
  too_large();
}

}  // namespace
}  // namespace looplm

int main(int argc, char** argv) {
  for (int i = 1; i < argc; i++) {
    if (std::string(argv[i]) == "--every") looplm::every = true;
    else looplm::filter = argv[i];
  }
  looplm::run();
  std::printf("%d failures\n", looplm::test::failures);
  return looplm::test::failures > 0;
}
