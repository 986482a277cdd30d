#include "optimizer.h"

#include <algorithm>
#include <cfloat>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <sstream>
#include <utility>

#include "../numeric/half.h"
#include "json.h"  // defines: quote_briefly
#include "safetensors.h"

namespace looplm {

namespace {

struct Norm {
  double value;
  const Parameter* culprit;  // where the running sum stopped being finite
};

// Σ x² over the reals at data(p) of every parameter that is trained.
template <class Data>
std::vector<double> sums_of_squares(const Model& model, Data data) {
  std::vector<int64_t> counts;
  std::vector<const void*> arrays;
  for (const Parameter& p : model.trained()) {
    counts.push_back(int64_t(p.count));
    arrays.push_back(data(p));
  }
  std::vector<double> sums(counts.size());
  model.device->run(&LoopBackend::sum_squares, "sum_squares", model.dt, int64_t(counts.size()), counts.data(), arrays.data(),
                    sums.data());
  return sums;
}

Norm measure(Model& model) {
  Norm norm{0, nullptr};
  if (!model.has_gradients()) return norm;
  const std::vector<double> sums = sums_of_squares(model, [&](const Parameter& p) { return model.gradient_data(p); });
  double total = 0;
  for (size_t i = 0; i < sums.size(); i++) {
    total += sums[i];
    if (!norm.culprit && !std::isfinite(total)) norm.culprit = &model.trained()[i];
  }
  norm.value = std::sqrt(total);
  return norm;
}

Error out_of_range(LoopDType real, const AdamWOptions& options, double gradient, int64_t step) {
  std::ostringstream text;
  text << "step " << step << ": the update could leave the range of " << (real == LOOP_F64 ? "float64" : "float32")
       << " (learningRate " << options.learning_rate << ", eps " << options.epsilon << ", weightDecay " << options.weight_decay
       << ", norm of the gradients after clipping " << gradient
       << "); nothing was changed. Lower learningRate or weightDecay, raise eps, or set maxGradNorm";
  return Error("NON_FINITE", "step", text.str());
}

}  // namespace

double gradient_norm(Model& model) { return measure(model).value; }

AdamW::AdamW(std::shared_ptr<Model> model)
    : model_(std::move(model)), layout_(model_->layout()), version_(model_->version() - 1), bounded_(version_) {
  const Remedy remedy(*model_->device, "train an adapter, whose optimizer is small, or a smaller model");
  const size_t bytes = model_->trained_elements() * loop_dtype_size(model_->real());
  for (Buffer* moment : {&first_, &second_}) {
    *moment = Buffer(model_->device, bytes);
    moment->zero(bytes);
  }
  if (model_->dt == LOOP_BF16) master_ = Buffer(model_->device, bytes);
  refresh_masters();
}

void AdamW::check_layout() const {
  if (layout_ != model_->layout())
    throw Error("INVALID_ARGUMENT", "AdamW",
                "the model has got or lost an adapter since this optimizer began: make a new one for what is trained now");
}

void AdamW::refresh_masters() const {
  if (!master_ || version_ == model_->version()) return;
  for (const Parameter& p : model_->trained()) {
    const int64_t count = int64_t(p.count), stride = 1;
    model_->device->run(&LoopBackend::copy_strided, "copy_strided", LOOP_BF16, LOOP_F32, 1, &count, model_->parameter_data(p),
                        &stride, master_.at(p.offset * sizeof(float)), &stride);
  }
  version_ = model_->version();
}

// The 2-norm of each kind, which no element exceeds.
AdamW::Bounds AdamW::measured() const {
  const size_t size = loop_dtype_size(model_->real());
  const auto norm = [&](auto data) {
    double total = 0;
    for (double sum : sums_of_squares(*model_, data)) total += sum;
    return std::sqrt(total);
  };
  const auto of = [&](const Buffer& state) {
    return norm([&](const Parameter& p) -> const void* { return state.at(p.offset * size); });
  };
  return {master_ ? of(master_) : norm([&](const Parameter& p) { return model_->parameter_data(p); }), of(first_), of(second_)};
}

// Bounds behind a step whose gradients are at most `gradient` each: the arithmetic of the kernels on the largest values that can
// occur. Infinite where a number on the way could leave the range. The quotient of the moments is at most the first over epsilon,
// which is far above what occurs and far within the range for options that train.
AdamW::Bounds AdamW::after_step(Bounds b, const AdamWOptions& options, double gradient) const {
  const bool wide = model_->real() == LOOP_F64;
  const auto rounded = [wide](double x) { return wide ? x : double(float(x)); };
  constexpr double slack = 1 + 1e-6;  // the roundings of one element: about ten of at most 2^-24 each
  const double rate = options.learning_rate, decay = options.weight_decay, steps = double(steps_ + 1);
  const double bias1 = 1 / (1 - std::pow(options.beta1, steps)), bias2 = 1 / (1 - std::pow(options.beta2, steps));
  const double smallest = wide ? DBL_MIN : double(FLT_MIN), largest = wide ? DBL_MAX : double(FLT_MAX);
  b.first = slack * (rounded(options.beta1) * b.first + rounded(1 - options.beta1) * gradient);
  b.second = slack * (rounded(options.beta2) * b.second + rounded(1 - options.beta2) * gradient * gradient);
  // a processor may take an epsilon below the normal numbers for 0
  const double quotient =
      options.epsilon < smallest ? std::numeric_limits<double>::infinity() : slack * b.first * bias1 / options.epsilon;
  const double before = b.parameter;
  b.parameter = slack * (before + rate * quotient + rate * decay * before);
  for (double x : {rate * bias1, rate * bias1 * b.first, quotient, decay, rate * decay, decay * before, gradient * gradient,
                   b.second * bias2, b.parameter})
    if (!(x < largest / 4)) b.parameter = std::numeric_limits<double>::infinity();
  return b;
}

double AdamW::step(const AdamWOptions& options) {
  check_layout();
  Model& model = *model_;
  model.gradients();  // zeros when nothing was accumulated
  const Norm norm = measure(model);
  if (norm.culprit)
    throw Error(
        "NON_FINITE", "step",
        "step " + std::to_string(steps_ + 1) + ": the gradient of " + norm.culprit->name +
            " is not finite; nothing was changed. Clear the gradients to go on without this batch, or lower the learning rate");
  const double scale = options.max_grad_norm > 0 ? std::min(1.0, options.max_grad_norm / (norm.value + 1e-6)) : 1.0;

  const Uninterrupted uninterrupted(*model.device);
  refresh_masters();
  const double gradient = norm.value * scale;
  Bounds bounds = after_step(bounds_, options, gradient);
  if (bounded_ != model.version() || !std::isfinite(bounds.parameter)) bounds = after_step(measured(), options, gradient);
  if (!std::isfinite(bounds.parameter)) throw out_of_range(model.real(), options, gradient, steps_ + 1);
  for (const Parameter& p : model.trained()) {
    if (!options.only.empty() && std::find(options.only.begin(), options.only.end(), p.name) == options.only.end()) continue;
    const size_t offset = p.offset * loop_dtype_size(model.real());
    const LoopAdamW update{
        .count = int64_t(p.count),
        .parameter = model.writable_data(p),
        .master = master_ ? master_.at(offset) : nullptr,
        .gradient = model.gradient_data(p),
        .first_moment = first_.at(offset),
        .second_moment = second_.at(offset),
        .learning_rate = options.learning_rate,
        .beta1 = options.beta1,
        .beta2 = options.beta2,
        .epsilon = options.epsilon,
        .weight_decay = p.decays() ? options.weight_decay : 0,
        .gradient_scale = scale,
        .step = steps_ + 1,
    };
    model.device->run(&LoopBackend::adamw, "adamw", model.dt, &update);
  }
  steps_++;
  model.zero_gradients();
  model.touch();
  version_ = bounded_ = model.version();
  bounds_ = bounds;
  return norm.value;
}

std::vector<AdamW::State> AdamW::states() const {
  std::vector<State> out = {{"first.", &first_}, {"second.", &second_}};
  if (master_) out.push_back({"master.", &master_});
  return out;
}

void AdamW::save(const std::string& path) const {
  check_layout();
  refresh_masters();
  const size_t size = loop_dtype_size(model_->real());
  std::vector<SafetensorsOutput> tensors;
  for (const State& state : states())
    for (const Parameter& p : model_->trained())
      tensors.push_back(
          {state.prefix + p.name, safetensors_dtype(model_->real()), p.shape,
           [buffer = state.buffer, &p, size](uint8_t* out) { buffer->download(out, p.count * size, p.offset * size); }});
  write_safetensors(path, tensors, {{"step", std::to_string(steps_)}, {"dtype", safetensors_dtype(model_->dt)}});
}

namespace {

int64_t read_step(const std::string& path, const SafetensorsFile& file) {
  const auto found = file.metadata().find("step");
  if (found == file.metadata().end()) refuse_file(path, "__metadata__ has no \"step\"; is this an optimizer's file?");
  const std::string& text = found->second;
  int64_t step = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), step);
  if (error != std::errc() || end != text.data() + text.size() || step < 0)
    refuse_file(path, "__metadata__: \"step\": " + json::quote_briefly(text) + " is not a count");
  return step;
}

bool any_negative(LoopDType type, const void* values, size_t count) {
  const auto* bytes = static_cast<const uint8_t*>(values);
  const size_t size = loop_dtype_size(type);
  for (size_t i = 0; i < count; i++)
    if (bytes[i * size + size - 1] & 0x80) return true;  // the sign bit
  return false;
}

// A bfloat16 parameter is its master, rounded. Below the normal numbers a processor's own rounding may give zero.
bool rounds_to_parameter(const Model& model, const Parameter& p, const void* master) {
  std::vector<uint16_t> parameter(p.count);
  model.read_raw(p, parameter.data());
  for (size_t i = 0; i < p.count; i++) {
    float value;
    std::memcpy(&value, static_cast<const uint8_t*>(master) + i * sizeof value, sizeof value);
    const bool normal = std::abs(value) >= FLT_MIN;
    if (normal ? float_to_bf16(value) != parameter[i] : std::abs(bf16_to_float(parameter[i])) > FLT_MIN) return false;
  }
  return true;
}

}  // namespace

void AdamW::load(const std::string& path) {
  check_layout();
  const Model& model = *model_;
  const SafetensorsFile file(path);
  const int64_t step = read_step(path, file);
  const auto dtype = file.metadata().find("dtype");
  if (dtype == file.metadata().end() || dtype->second != safetensors_dtype(model.dt))
    refuse_file(
        path, "__metadata__: \"dtype\": " + (dtype == file.metadata().end() ? "is missing" : json::quote_briefly(dtype->second)) +
                  ", but the model is " + safetensors_dtype(model.dt));

  std::map<std::string, SafetensorsEntry> unknown = file.tensors();
  for (const State& state : states())
    for (const Parameter& p : model.trained()) {
      const std::string name = state.prefix + p.name;
      const auto found = file.tensors().find(name);
      if (found == file.tensors().end()) refuse_tensor(path, name, "is missing");
      unknown.erase(name);
      const SafetensorsEntry& entry = found->second;
      if (entry.dtype != safetensors_dtype(model.real()))
        refuse_tensor(path, name, "its dtype is not that of the model's gradients");
      if (entry.shape != p.shape) refuse_tensor(path, name, "its shape is not the parameter's");
      if (first_not_finite(model.real(), entry.data, p.count) < p.count)
        refuse_tensor(path, name, "has a value that is not finite");
      if (state.buffer == &second_ && any_negative(model.real(), entry.data, p.count))
        refuse_tensor(path, name, "has a negative value");
      if (state.buffer == &master_ && !rounds_to_parameter(model, p, entry.data))
        refuse_tensor(path, name,
                      "does not round to the model's parameter: load the checkpoint's parameters first, and from the same step");
      check_checksum(path, name, entry);
    }
  if (!unknown.empty()) refuse_tensor(path, unknown.begin()->first, "is not this model's");

  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
  };
  const size_t size = loop_dtype_size(model.real());
  std::vector<Copy> copies;  // before the first of them, for a list may find no memory
  for (const auto& [prefix, buffer] : states())
    for (const Parameter& p : model.trained())
      copies.push_back({buffer->at(p.offset * size), file.tensors().at(prefix + p.name).data, p.count * size});
  const Uninterrupted uninterrupted(*model.device);
  for (const Copy& c : copies) model.device->run(&LoopBackend::copy_in, "copy_in", c.to, c.from, c.bytes);
  steps_ = step;
  version_ = model.version();
  bounded_ = version_ - 1;
}

}  // namespace looplm
