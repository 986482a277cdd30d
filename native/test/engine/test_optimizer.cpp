// AdamW, and copying its state between optimizers and files.
#include <cmath>
#include <random>
#include <utility>

#include "../../cpu/cpu.h"
#include "../../engine/optimizer.h"
#include "claims.h"
#include "models.h"

namespace looplm::test {
namespace {

void set_gradients(Model& model, uint64_t seed, double scale) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0, scale);
  model.gradients();
  for (const Parameter& p : model.parameters()) {
    std::vector<double> wide(p.count);
    for (double& x : wide) x = double(float(normal(random)));
    const std::vector<float> narrow(wide.begin(), wide.end());
    const void* values = model.real() == LOOP_F64 ? static_cast<const void*>(wide.data()) : narrow.data();
    model.device->run(&LoopBackend::copy_in, "copy_in", model.gradient_data(p), values, p.count * loop_dtype_size(model.real()));
  }
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); i++) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

int updates = 0;
int (*update)(void*, LoopDType, const LoopAdamW*) = nullptr;

// Neighbouring parameters in the arena, and the zeros between them, share one call. So the device gets a few calls, not one
// per parameter.
void test_calls() {
  LoopBackend table = *looplm_cpu_backend();
  update = std::exchange(table.adamw, [](void* context, LoopDType dt, const LoopAdamW* a) {
    updates++;
    return update(context, dt, a);
  });
  const auto device = std::make_shared<Device>("cpu", &table, table.open(0, 1));
  const auto model = std::make_shared<Model>(device, LOOP_F32, small_architecture(small_config(false)));
  model->initialize(1);
  AdamW optimizer(model);
  const auto calls_of = [&](std::vector<std::string> only) {
    set_gradients(*model, 1, 1);
    updates = 0;
    optimizer.step({.weight_decay = 0.1, .only = std::move(only)});
    return size_t(updates);
  };
  size_t changes = 1;  // number of changes of weight decay from one parameter to the next
  const std::vector<Parameter>& trained = model->trained();
  for (size_t i = 1; i < trained.size(); i++) changes += trained[i].decays() != trained[i - 1].decays();
  const size_t all = calls_of({});
  claim("AdamW: neighbours share a call", all <= changes && all < trained.size() / 2);
  claim("AdamW: alone, a parameter takes one call", calls_of({trained[1].name}) == 1);
  bool zeros = true;
  for (size_t i = 1; i < trained.size(); i++) {
    const auto* end = static_cast<const float*>(model->parameter_data(trained[i - 1])) + trained[i - 1].count;
    for (const auto* next = static_cast<const float*>(model->parameter_data(trained[i])); end < next; end++) zeros &= *end == 0;
  }
  claim("AdamW: what lies between parameters stays zero", zeros);
}

void test_optimizer_on(const std::string& device, LoopDType dt) {
  const std::string on = std::string(" (") + device + ", " + safetensors_dtype(dt) + ")";
  const Folder folder;
  const AdamWOptions options{
      .learning_rate = 0.01, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1, .max_grad_norm = 1};
  const auto model = small_model(device, dt);
  AdamW optimizer(model);

  // The formulas of math.md §6 in float64.
  std::vector<double> truth = all_values(*model), m(truth.size()), v(truth.size());
  std::vector<bool> decays;
  for (const Parameter& p : model->parameters()) decays.insert(decays.end(), p.count, p.shape.size() > 1);
  bool norms = true;
  for (int step = 1; step <= 4; step++) {
    set_gradients(*model, uint64_t(step), step == 2 ? 1e-4 : 1);  // step 2 is not clipped
    std::vector<double> g;
    for (const Parameter& p : model->parameters())
      for (const double x : model->read_gradient(p)) g.push_back(x);
    double squares = 0;
    for (const double x : g) squares += x * x;
    const double norm = std::sqrt(squares), factor = std::min(1.0, 1 / (norm + 1e-6));
    for (size_t i = 0; i < g.size(); i++) {
      m[i] = 0.9 * m[i] + 0.1 * g[i] * factor;
      v[i] = 0.95 * v[i] + 0.05 * g[i] * factor * g[i] * factor;
      truth[i] -= 0.01 * (m[i] / (1 - std::pow(0.9, step)) / (std::sqrt(v[i] / (1 - std::pow(0.95, step))) + 1e-8) +
                          (decays[i] ? 0.1 * truth[i] : 0));
    }
    const uint64_t version = model->version();
    norms &= std::abs(gradient_norm(*model) - norm) <= 1e-12 * norm && std::abs(optimizer.step(options) - norm) <= 1e-12 * norm;
    norms &= gradient_norm(*model) == 0 && model->version() > version && optimizer.steps() == step;
  }
  const double tolerance = dt == LOOP_F64   ? 1e-14
                           : dt == LOOP_F32 ? 1e-6
                                            : 0x1p-8;  // bfloat16: half a unit in the last place of numbers below 2
  const double difference = largest_difference(all_values(*model), truth);
  claim("AdamW follows its formula" + on, difference <= tolerance, std::to_string(difference));
  claim("AdamW returns the norm before clipping, clears the gradients and counts" + on, norms);

  // A resumed run equals an uninterrupted one.
  const std::string parameters = folder / "model.safetensors", state = folder / "optimizer.safetensors";
  save_parameters(*model, parameters, safetensors_dtype(dt));
  optimizer.save(state);
  const auto resumed = small_model(device, dt, false, 77);
  AdamW resumed_optimizer(resumed);
  load_parameters(*resumed, {parameters});
  resumed_optimizer.load({state});
  for (int step = 5; step <= 7; step++)
    for (const auto& [each, its] : {std::pair(model, &optimizer), std::pair(resumed, &resumed_optimizer)}) {
      set_gradients(*each, uint64_t(step), 1);
      its->step(options);
    }
  claim("a resumed run has the same bits" + on, all_raw(*model) == all_raw(*resumed) && resumed_optimizer.steps() == 7);
  optimizer.save(folder / "a");
  resumed_optimizer.save(folder / "b");
  claim("and so has its optimizer's file" + on, contents(folder / "a") == contents(folder / "b"));

  if (dt == LOOP_BF16) {  // the masters keep small steps that bfloat16 would lose
    const auto slow = small_model(device, dt);
    AdamW slow_optimizer(slow);
    const double before = slow->read(slow->parameter("model.norm.weight"))[0];
    for (int step = 0; step < 20; step++) {
      slow->gradients();
      for (const Parameter& p : slow->parameters()) {
        const std::vector<float> ones(p.count, 1.0f);
        slow->device->run(&LoopBackend::copy_in, "copy_in", slow->gradient_data(p), static_cast<const void*>(ones.data()),
                          p.count * sizeof(float));
      }
      slow_optimizer.step({.learning_rate = 1e-3});
    }
    const double after = slow->read(slow->parameter("model.norm.weight"))[0];
    claim("twenty steps of 0.001 move a bfloat16 one by 0.02" + on, std::abs(before - after - 0.02) < 0.003,
          std::to_string(after));

    const Parameter& norm = slow->parameter("model.norm.weight");
    slow->write(norm, std::vector<double>(norm.count, 3.0).data());
    slow->gradients();
    slow_optimizer.step({.learning_rate = 0});
    claim("parameters written by others are not undone by the masters" + on,
          slow->read(norm) == std::vector<double>(norm.count, 3.0));
    slow->write(norm, std::vector<double>(norm.count, 2.0).data());
    slow_optimizer.save(folder / "stale");
    AdamW again(slow);
    again.load({folder / "stale"});
    claim("nor do stale masters reach a file" + on, again.steps() == 21);

    slow->write(norm, std::vector<double>(norm.count, 4.0).data());
    refuses("masters of other parameters are refused" + on, "INVALID_FILE", {"master.model.norm.weight", "does not round"},
            [&] { again.load({folder / "stale"}); });
  }

  // Gradients and values that are not finite.
  const std::vector<uint8_t> before = all_raw(*model);
  const auto culprit = [&](const std::string& name, double bad) {
    set_gradients(*model, 8, 1);
    const Parameter& p = model->parameter(name);
    const float narrow = float(bad);
    const void* value = model->real() == LOOP_F64 ? static_cast<const void*>(&bad) : &narrow;
    model->device->run(&LoopBackend::copy_in, "copy_in", model->gradient_data(p), value, loop_dtype_size(model->real()));
    refuses("a gradient of " + std::to_string(bad) + " in " + name + on, "NON_FINITE", {"step 8", name},
            [&] { optimizer.step(options); });
  };
  culprit("model.layers.1.mlp.up_proj.weight", NAN);
  culprit("model.early_exit_gate.bias", INFINITY);
  optimizer.save(folder / "c");
  claim("which changes nothing" + on,
        all_raw(*model) == before && contents(folder / "c") == contents(folder / "a") && optimizer.steps() == 7);

  // An abort cannot happen between two parameters.
  std::atomic<bool> cancel{true};
  model->zero_gradients();
  set_gradients(*model, 9, 1);
  model->device->cancel = &cancel;
  refuses("an aborted step" + on, "ABORTED", {"aborted"}, [&] { optimizer.step(options); });
  claim("an aborted step keeps the cancel flag" + on, model->device->cancel == &cancel);
  model->device->cancel = nullptr;
  claim("an aborted step changes nothing" + on, all_raw(*model) == before && optimizer.steps() == 7 && gradient_norm(*model) > 0);

  // Files of another kind or another model.
  const auto other = small_model(device, dt, true);
  AdamW other_optimizer(other);
  refuses("a model's file is not an optimizer's" + on, "INVALID_FILE", {"no \"step\""}, [&] { optimizer.load({parameters}); });
  refuses("another model's state" + on, "INVALID_FILE", {"lm_head.weight\": is not this model's"}, [&] {
    load_parameters(*resumed, {parameters});
    const auto tied = small_model(device, dt, true);
    save_parameters(*tied, folder / "tied", safetensors_dtype(dt));
    const SafetensorsFile file(state);
    std::vector<SafetensorsOutput> tensors;
    for (const auto& [name, entry] : file.tensors()) {
      const auto* begin = static_cast<const uint8_t*>(entry.data);
      const std::string parameter = name.substr(name.find('.') + 1);
      const bool mine = dt == LOOP_BF16 && name.starts_with("master.") && parameter != "lm_head.weight";
      if (mine) {
        const std::vector<double> values = tied->read(tied->parameter(parameter));
        tensors.push_back(output(name, entry.dtype, entry.shape, encode_f32(values)));
      } else {
        tensors.push_back(output(name, entry.dtype, entry.shape, std::vector<uint8_t>(begin, begin + entry.bytes)));
      }
    }
    write_safetensors(folder / "longer", tensors, file.metadata());
    AdamW(tied).load({folder / "longer"});
  });
  other_optimizer.save(folder / "short");
  refuses("state that is missing" + on, "INVALID_FILE", {"lm_head.weight\": is missing"}, [&] {
    const SafetensorsFile file(state);
    std::vector<SafetensorsOutput> tensors;
    for (const auto& [name, entry] : file.tensors()) {
      const auto* begin = static_cast<const uint8_t*>(entry.data);
      if (name != "second.lm_head.weight")
        tensors.push_back(output(name, entry.dtype, entry.shape, std::vector<uint8_t>(begin, begin + entry.bytes)));
    }
    write_safetensors(folder / "shorter", tensors, file.metadata());
    load_parameters(*resumed, {parameters});
    resumed_optimizer.load({folder / "shorter"});
  });

  const auto load_spoiled = [&](const std::map<std::string, std::string>& changes, const std::string& spoiled, double value) {
    const SafetensorsFile file(state);
    std::map<std::string, std::string> metadata = file.metadata();
    for (const auto& [key, text] : changes) metadata[key] = text;
    std::vector<SafetensorsOutput> tensors;
    for (const auto& [name, entry] : file.tensors()) {
      const auto* begin = static_cast<const uint8_t*>(entry.data);
      std::vector<uint8_t> bytes(begin, begin + entry.bytes);
      const float narrow = float(value);
      if (name == spoiled)
        std::memcpy(bytes.data(), dt == LOOP_F64 ? static_cast<const void*>(&value) : &narrow, dt == LOOP_F64 ? 8 : 4);
      tensors.push_back(output(name, entry.dtype, entry.shape, bytes));
    }
    write_safetensors(folder / "spoiled", tensors, metadata);
    load_parameters(*resumed, {parameters});
    resumed_optimizer.load({folder / "spoiled"});
  };
  load_parameters(*resumed, {parameters});
  resumed_optimizer.save(folder / "kept");
  for (const char* step : {"", "-1", "1.5", " 1", "1 ", "99999999999999999999", "four"})
    refuses("a step of \"" + std::string(step) + "\"" + on, "INVALID_FILE", {"\"step\"", "not a count"}, [&] {
      load_spoiled({{"step", step}}, "", 0);
    });
  refuses("state of another dtype" + on, "INVALID_FILE", {"\"dtype\": \"F17\", but the model is"}, [&] {
    load_spoiled({{"dtype", "F17"}}, "", 0);
  });
  refuses("a moment that is not finite" + on, "INVALID_FILE", {"first.model.norm.weight", "not finite"},
          [&] { load_spoiled({}, "first.model.norm.weight", NAN); });
  refuses("a negative second moment" + on, "INVALID_FILE", {"second.model.norm.weight", "negative"},
          [&] { load_spoiled({}, "second.model.norm.weight", -1); });
  resumed_optimizer.save(folder / "d");
  claim("a refused file leaves the optimizer as it was" + on, contents(folder / "d") == contents(folder / "kept"));
}

ENGINE_TEST(test_optimizer, "optimizer") {
  for (const auto& [device, dt] : {std::pair("reference", LOOP_F64), std::pair("cpu", LOOP_F32), std::pair("cpu", LOOP_BF16)})
    test_optimizer_on(device, dt);
  test_calls();
}

}  // namespace
}  // namespace looplm::test
