// The stack: which loops are read, which carry gradient, and what it keeps for that. Uses two registers, an injection and a
// separate readout, in float64 against central differences.
#include <cmath>
#include <numeric>

#include "../../engine/pass.h"
#include "claims.h"
#include "models.h"

namespace looplm::test {
namespace {

constexpr int64_t D = 6, F = 5, V = 11;
constexpr int LOOPS = 4;

// e = block(E[ids]); x = state; loop: x = W [x ; e], block. With `coda`, read: block, norm.
Architecture two_registers(bool coda) {
  Architecture a;
  a.family = "two registers";
  a.vocabulary = V, a.hidden = D, a.intermediate = F;
  a.layers = coda ? 3 : 2, a.heads = 3, a.kv_heads = 1, a.head_dim = 2, a.loops = LOOPS;
  a.residual = Residual::pre, a.registers = 2;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, Role role, int32_t index, Initial initial) {
    a.parameters.push_back({name, std::move(shape), role, index, 0, initial, {0.4}});
  };
  add("embedding", {V, D}, Role::embedding, 0, Initial::normal);
  for (int32_t l = 0; l < a.layers; l++) {
    const std::string of = "layer " + std::to_string(l) + " ";
    add(of + "attention", {a.attention_rows(), D}, Role::attention, l, Initial::normal);
    add(of + "output", {D, a.attention_width()}, Role::attention_output, l, Initial::normal);
    add(of + "gate_up", {2 * F, D}, Role::gate_up, l, Initial::normal);
    add(of + "down", {D, F}, Role::down, l, Initial::normal);
    add(of + "attention norm", {D}, Role::attention_norm, l, Initial::ones);
    add(of + "mlp norm", {D}, Role::mlp_norm, l, Initial::ones);
  }
  add("inject", {D, 2 * D}, Role::inject, 0, Initial::normal);
  if (coda) add("norm", {D}, Role::norm, 0, Initial::ones);
  add("head", {V, D}, Role::head, 0, Initial::normal);
  a.begin = {{Step::Kind::embed, 1}, {Step::Kind::block, 1, 0, 0}, {Step::Kind::state, 0}};
  a.loop = {{Step::Kind::inject, 0, 1, 0}, {Step::Kind::block, 0, 0, 1}};
  if (coda) a.read = {{Step::Kind::block, 0, 0, 2}, {Step::Kind::norm, 0, 0, 0}};
  return a;
}

std::shared_ptr<Model> make(bool coda) {
  auto model = std::make_shared<Model>(open_device("reference", 1), LOOP_F64, two_registers(coda));
  model->initialize(3);
  return model;
}

Sequences two_sequences() {
  Sequences s;
  s.tokens = {1, 4, 2, 9, 3, 7, 7};
  s.offsets = {0, 4, 7};
  s.states.resize(s.tokens.size() * size_t(D));
  for (size_t i = 0; i < s.states.size(); i++) s.states[i] = std::sin(double(i));
  return s;
}

// Runs some loops of a stack over the two sequences.
struct Run {
  Model& model;
  Sequences sequences;
  LoopPlan plan;
  PackedBatch packed = pack(sequences, 0, {100, false, false, true});
  size_t elements() const { return size_t(plan.reads() * packed.tokens() * D); }
  std::vector<double> weights() const {
    std::vector<double> c(elements());
    for (size_t i = 0; i < c.size(); i++) c[i] = std::cos(3.0 * double(i) + 1);
    return c;
  }
  std::vector<double> hidden() {
    Stack stack(model, model.weights(), device_batch(model, sequences, packed), plan, Stack::Keep::nothing);
    stack.forward_tokens();
    std::vector<double> out(elements());
    model.device->run(&LoopBackend::copy_out, "copy_out", static_cast<void*>(out.data()),
                      static_cast<const void*>(stack.hidden()), out.size() * sizeof(double));
    return out;
  }
  double loss() {  // Σ weights · hidden
    const std::vector<double> h = hidden(), c = weights();
    return std::inner_product(h.begin(), h.end(), c.begin(), 0.0);
  }
  // The gradient of the loss, parameter after parameter.
  std::vector<double> gradient(Stack::Keep keep) {
    model.gradients();
    model.zero_gradients();
    Buffer d_hidden(model.device, elements() * sizeof(double));
    const std::vector<double> c = weights();
    d_hidden.upload(c.data(), elements() * sizeof(double));
    Stack stack(model, model.weights(), device_batch(model, sequences, packed), plan, keep);
    stack.forward_tokens();
    stack.backward(model.gradients(), d_hidden.as<>());
    std::vector<double> out;
    for (const Parameter& p : model.parameters())
      for (const double x : model.read_gradient(p)) out.push_back(x);
    return out;
  }
};

// The largest error of the gradient, over every fourth element.
double largest_error(Model& model, const std::vector<double>& gradient, const std::function<double()>& loss) {
  double largest = 0;
  size_t at = 0;
  for (const Parameter& p : model.parameters()) {
    std::vector<double> values = model.read(p);
    for (size_t i = 0; i < p.count; i += 4) {
      const double x = values[i];
      const auto moved = [&](double by) {
        values[i] = x + by;
        model.write(p, values.data());
        return loss();
      };
      const double difference = derivative(moved);
      moved(0);
      largest = std::max(largest, std::abs(difference - gradient[at + i]) / std::max(1.0, std::abs(difference)));
    }
    at += p.count;
  }
  return largest;
}

constexpr Stack::Keep KEEPS[] = {Stack::Keep::all, Stack::Keep::per_loop, Stack::Keep::per_layer};

ENGINE_TEST(stack_differences, "stack: gradients by central differences") {
  const auto model = make(true);
  for (const std::vector<int>& read : {std::vector<int>{0, 1, 2, 3}, {3}, {0, 2}}) {
    Run run{*model, two_sequences(), LOOPS};
    run.plan.loops = read.back() + 1;
    run.plan.read = read;
    const std::vector<double> gradient = run.gradient(Stack::Keep::all);
    const double error = largest_error(*model, gradient, [&] { return run.loss(); });
    claim(std::to_string(read.size()) + " loops that are read", error < 1e-7, std::to_string(error * 1e9) + "e-9");
    for (Stack::Keep keep : KEEPS) claim("the same bits, whatever is kept", run.gradient(keep) == gradient);
  }
}

// Without a coda the head reads the register itself, so another stack can start from it.
ENGINE_TEST(stack_truncated, "stack: loops before the last k are constants") {
  const auto model = make(false);
  for (int k = 1; k <= 3; k++) {
    Run whole{*model, two_sequences(), LOOPS};
    const std::vector<double> hidden = whole.hidden();
    const size_t states = hidden.size() / LOOPS;
    for (int t = LOOPS - k; t < LOOPS; t++) whole.plan.read.assign({});
    for (int t = LOOPS - k; t < LOOPS; t++) whole.plan.read.push_back(t);
    whole.plan.backward = k;
    Run last{*model, two_sequences(), k};
    last.sequences.states.assign(hidden.begin() + ptrdiff_t(states * size_t(LOOPS - k - 1)),
                                 hidden.begin() + ptrdiff_t(states * size_t(LOOPS - k)));
    const std::vector<double> gradient = whole.gradient(Stack::Keep::all);
    const double error = largest_error(*model, gradient, [&] { return last.loss(); });
    claim("the last " + std::to_string(k), error < 1e-7, std::to_string(error * 1e9) + "e-9");
    for (Stack::Keep keep : KEEPS) claim("the same bits, whatever is kept", whole.gradient(keep) == gradient);
  }
}

ENGINE_TEST(stack_embedding, "stack: nothing reaches the embedding through constant loops") {
  const auto model = small_model("reference", LOOP_F64);
  Run run{*model, two_sequences(), 3};
  run.sequences.states.clear();
  run.plan.backward = 2;
  for (Stack::Keep keep : KEEPS) {
    run.gradient(keep);
    const auto largest = [&](const Parameter& p) {
      double most = 0;
      for (const double x : model->read_gradient(p)) most = std::max(most, std::abs(x));
      return most;
    };
    claim("none for the embedding", largest(model->embedding()) == 0);
    claim("some for the blocks", largest(model->parameter("model.layers.0.mlp.down_proj.weight")) > 0);
  }
}

ENGINE_TEST(stack_constant_steps, "stack: the first steps of a loop are constants") {
  const auto model = make(false);
  Run run{*model, two_sequences(), LOOPS};
  const std::vector<double> whole = run.gradient(Stack::Keep::all);
  run.plan.constant_steps.assign(LOOPS, 0);
  claim("none: the whole gradient", run.gradient(Stack::Keep::all) == whole);
  run.plan.constant_steps.assign(LOOPS, 1);  // the injection
  const std::vector<double> part = run.gradient(Stack::Keep::all);
  size_t at = 0;
  bool zero = true, core = false;
  for (const Parameter& p : model->parameters()) {
    for (size_t i = 0; i < p.count; i++) {
      if (p.role == Role::inject || p.role == Role::embedding || p.index == 0) zero &= part[at + i] == 0 || p.role == Role::head;
      else core |= part[at + i] != 0;
    }
    at += p.count;
  }
  claim("nothing reaches what comes before them", zero);
  claim("what comes behind them learns", core);
  for (Stack::Keep keep : KEEPS) claim("the same bits, whatever is kept", run.gradient(keep) == part);
}

// Checks that gradients do not change after the backward pass has announced them as final. Returns how many elements are
// final before its last step.
size_t check_announcements(const std::string& name, Model& model, const LoopPlan& plan, Stack::Keep keep) {
  Run run{model, two_sequences(), plan};
  if (model.config.family != "two registers") run.sequences.states.clear();
  Stack stack(model, model.weights(), device_batch(model, run.sequences, run.packed), plan, keep);
  stack.forward_tokens();
  Buffer d_hidden(model.device, run.elements() * sizeof(double));
  const std::vector<double> d = run.weights();
  d_hidden.upload(d.data(), d.size() * sizeof(double));
  const auto gradients = [&] {
    std::vector<double> all(model.trained_elements());
    for (const Parameter& p : model.trained()) {
      const std::vector<double> one = model.read_gradient(p);
      std::copy(one.begin(), one.end(), all.begin() + ptrdiff_t(p.offset));
    }
    return all;
  };
  struct Said {
    size_t begin;
    std::vector<double> gradients;
  };
  std::vector<Said> said;
  model.zero_gradients();
  stack.backward(model.gradients(), d_hidden.as<>(), [&](size_t begin) { said.push_back({begin, gradients()}); });
  const std::vector<double> end = gradients();
  bool kept = !said.empty() && said.back().begin == 0, falls = true;
  size_t early = 0;
  for (size_t i = 0; i < said.size(); i++) {
    kept &= std::equal(end.begin() + ptrdiff_t(said[i].begin), end.end(), said[i].gradients.begin() + ptrdiff_t(said[i].begin));
    falls &= i == 0 || said[i].begin <= said[i - 1].begin;
    if (i + 1 < said.size()) early = model.trained_elements() - said[i].begin;
  }
  claim(name + ": nothing is added to a gradient that was said to be final", kept);
  claim(name + ": more and more are final", falls);
  return early;
}

ENGINE_TEST(stack_final, "stack: gradients that are final") {
  for (const bool coda : {false, true}) {
    const auto model = make(coda);
    for (const int backward : {0, 2}) {
      LoopPlan plan(LOOPS);
      plan.backward = backward;
      const std::string name = std::string("two registers") + (coda ? ", a coda, " : ", ") + std::to_string(backward);
      const size_t early = check_announcements(name, *model, plan, Stack::Keep::all);
      claim(name + ": what only the loops and the readout have is final before the last step",
            early >= model->trained_elements() - model->parameter("layer 1 attention").offset);
    }
  }
  for (const bool tied : {false, true})
    for (const Stack::Keep keep : {Stack::Keep::all, Stack::Keep::per_loop, Stack::Keep::per_layer}) {
      const auto model = small_model("reference", LOOP_F64, tied);
      const std::string name = std::string(tied ? "tied" : "untied") + ", memory " + std::to_string(int(keep));
      const size_t early = check_announcements(name, *model, LoopPlan(2), keep);
      claim(name + ": all but the embedding and the first layer are final before the last step",
            early >= model->trained_elements() - model->parameter("model.layers.1.self_attn.q_proj.weight").offset);
    }
  const auto model = small_model("reference", LOOP_F64);
  model->add_adapter({2, 4, {"q_proj", "down_proj"}, true, 2}, 5);
  check_announcements("adapters of each loop", *model, LoopPlan(2), Stack::Keep::all);
}

ENGINE_TEST(stack_memory, "stack: memory for the loops that carry gradient") {
  const auto bytes = [](int backward, bool one_read) {
    const auto model = make(true);
    Run run{*model, two_sequences(), 16};
    if (one_read) run.plan.read = {15};
    run.plan.backward = backward;
    run.gradient(Stack::Keep::all);
    const StackMemory& m = model->stack_memory();
    return m.values.bytes() + m.blocks.bytes() + m.boundaries.bytes() + m.hidden.bytes();
  };
  const size_t all = bytes(0, true), half = bytes(8, true), one = bytes(1, true);
  claim("half of the loops need about half", half < size_t(0.65 * double(all)),
        std::to_string(half) + " of " + std::to_string(all));
  claim("one loop needs little", one < all / 4, std::to_string(one) + " of " + std::to_string(all));
  claim("a readout that is not wanted needs none", all < bytes(0, false) * 3 / 4);
}

}  // namespace
}  // namespace looplm::test
