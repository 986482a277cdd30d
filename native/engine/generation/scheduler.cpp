#include "scheduler.h"

#include <optional>

#include "../pass.h"
#include "admission.h"
#include "decode.h"
#include "prefill.h"

namespace looplm {

struct Scheduler::State {
  State(std::shared_ptr<Model> m, const SchedulerOptions& options)
      : held(std::move(m)), g(*held, options), admission(g), prefill(g), decode(std::in_place, g), layout(held->layout()) {
    check_loops(*held, options.loops, "generate");
    const Architecture& a = held->config;
    if (options.shared_cache && !a.shared_planes && !options.force)
      throw Error("UNSUPPORTED", "generate",
                  "kv 'shared': models of family " + a.family +
                      " need keys and values of every loop, and give wrong tokens without them: use kv 'per-loop', or set "
                      "kv: { planes: 'shared', force: true }");
    if (options.shared_cache && options.prompt_cache != 0)
      throw Error("INVALID_ARGUMENT", "scheduler",
                  "promptCache: continuing a prompt needs the keys and values of every loop, and kv 'shared' keeps only "
                  "those of the last: use kv 'per-loop', or omit promptCache");
    if (options.max_rows < 1 || options.max_tokens < 0 || options.prefill_tokens < 1)
      throw Error("INVALID_ARGUMENT", "scheduler", "maxRows and prefillTokens must be at least 1, maxTokens at least 0");
  }

  // Runs a step that may run out of memory, in which case it has changed nothing. Then prompts run in smaller pieces; if that
  // is not possible, the newest rows go back to the queue; a row that is alone fails.
  template <class Step>
  void attempt(Step step) {
    const Remedy remedy(*g.model.device, generation_remedy);
    try {
      step();
    } catch (const Error& error) {
      if (error.code != "OUT_OF_MEMORY" || g.rows.empty()) throw;
      if (prefill.open() && prefill.shrink()) return;
      if (put_back_newest()) return;
      Row& newest = g.rows.rbegin()->second;
      g.fail(newest.id, error.what());
      remove(newest, false);
    }
  }
  // Restarts an eighth of the rows at once, so that a batch that is much too large for the memory shrinks quickly. Returns
  // false if no row may restart.
  bool put_back_newest() {
    const size_t most = std::max<size_t>(1, g.rows.size() / 8);
    std::vector<Row*> newest;
    for (auto it = g.rows.rbegin(); it != g.rows.rend() && newest.size() < most; ++it)
      if (admission.may_put_back(it->second)) newest.push_back(&it->second);
    for (Row* row : newest) {
      decode->drop(*row);
      admission.put_back(*row);
    }
    if (g.rows.empty()) {  // frees scratch memory sized for more rows, so that one row has as much as possible
      decode.emplace(g);
      g.model.stack_memory().release();
    }
    return !newest.empty();
  }
  void remove(Row& row, bool keep) {
    decode->drop(row);
    if (keep && row.started) g.finish(row);
    else g.release(row);
  }
  // Keys of another adapter are of no use, and with another shift the cache has other rows.
  void follow_layout() {
    if (layout == g.model.layout()) return;
    if (!g.rows.empty())
      throw Error("INVALID_ARGUMENT", "generate",
                  "an adapter was added to the model or removed from it while requests were active: wait for the results, or "
                  "cancel the requests, before you change the adapter");
    admission.empty_cache();
    layout = g.model.layout();
  }

  std::vector<GenerateEvent> run(Until until) {
    do {
      for (auto [row, keep] : admission.receive()) remove(*row, keep);
      follow_layout();
      if (g.rows.empty() && admission.relax()) prefill.restore();
      admission.admit();
      attempt([&] {
        decode->reserve();
        prefill.run();
        decode->start_rows();
      });
      attempt([&] { decode->draw_deferred(); });
      attempt([&] { decode->run(); });
      admission.update_counts();
      if (decode->waits_for_host() && !prefill.open()) break;
    } while ((!g.rows.empty() || admission.waiting()) && !g.reached(until));
    g.drop_answers_unless([&] { return !g.rows.empty() || !admission.idle(); });
    return g.collect_events();
  }

  // After an error: drops all requests, so that new ones can be added. Must not allocate, because memory may have run out.
  void reset() noexcept {
    decode->clear();
    admission.clear();
    g.clear();
  }

  const std::shared_ptr<Model> held;
  Generation g;
  Admission admission;
  Prefill prefill;
  std::optional<Decode> decode;
  uint64_t layout;  // of the model that the cache belongs to
};

Scheduler::Scheduler(std::shared_ptr<Model> model, const SchedulerOptions& options)
    : state_(std::make_unique<State>(std::move(model), options)) {}
Scheduler::~Scheduler() = default;

int64_t Scheduler::add(GenerateRequest request) { return state_->admission.add(std::move(request)); }
void Scheduler::cancel(int64_t request, bool keep) { state_->admission.cancel(request, keep); }
void Scheduler::answer(int64_t request, HostAnswer answer) { state_->g.answer(request, std::move(answer)); }

std::vector<GenerateEvent> Scheduler::run(Until until) {
  try {
    return state_->run(until);
  } catch (...) {
    state_->reset();
    throw;
  }
}

LoopDType Scheduler::dtype() const { return state_->held->dt; }
SchedulerStats Scheduler::stats() const { return state_->g.stats(); }

}  // namespace looplm
