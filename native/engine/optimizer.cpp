#include "optimizer.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "../numeric/decimal.h"

namespace looplm {

namespace {

const void* element(const void* data, LoopDType type, size_t index) {
  return static_cast<const char*>(data) + index * loop_dtype_size(type);
}
void* element(void* data, LoopDType type, size_t index) { return static_cast<char*>(data) + index * loop_dtype_size(type); }

Error out_of_range(LoopDType real, const AdamWOptions& options, double gradient, int64_t step) {
  return Error("NON_FINITE", "step",
               "step " + std::to_string(step) + ": the update could leave the range of " +
                   (real == LOOP_F64 ? "float64" : "float32") + " (learningRate " + decimal(options.learning_rate) + ", eps " +
                   decimal(options.epsilon) + ", weightDecay " + decimal(options.weight_decay) +
                   ", norm of the gradients after clipping " + decimal(gradient) +
                   "); nothing was changed. Lower learningRate or weightDecay, raise eps, or set maxGradNorm");
}

// Bounds on parameters and moments after a step whose gradients are at most `gradient` in magnitude. Applies the kernel's
// arithmetic to the largest values that can occur. The parameter bound is infinite if any intermediate value could overflow.
// The quotient of the moments is bounded by first / epsilon: far more than ever occurs, but well within range for options
// that train.
AdamWBounds after_step(AdamWBounds b, const AdamWOptions& options, double gradient, bool wide, double steps) {
  const auto rounded = [wide](double x) { return wide ? x : double(float(x)); };
  constexpr double slack = 1 + 1e-6;  // about ten roundings per element, each at most 2^-24
  const double rate = options.learning_rate, decay = options.weight_decay;
  const double bias1 = 1 / (1 - std::pow(options.beta1, steps)), bias2 = 1 / (1 - std::pow(options.beta2, steps));
  const double smallest = wide ? DBL_MIN : double(FLT_MIN), largest = wide ? DBL_MAX : double(FLT_MAX);
  b.first = slack * (rounded(options.beta1) * b.first + rounded(1 - options.beta1) * gradient);
  b.second = slack * (rounded(options.beta2) * b.second + rounded(1 - options.beta2) * gradient * gradient);
  // a processor may flush an epsilon below the normal numbers to 0
  const double quotient =
      options.epsilon < smallest ? std::numeric_limits<double>::infinity() : slack * b.first * bias1 / options.epsilon;
  const double before = b.parameter;
  b.parameter = slack * (before + rate * quotient + rate * decay * before);
  for (double x : {rate * bias1, rate * bias1 * b.first, quotient, decay, rate * decay, decay * before, gradient * gradient,
                   b.second * bias2, b.parameter})
    if (!(x < largest / 4)) b.parameter = std::numeric_limits<double>::infinity();
  return b;
}

// Merges pieces starting at `i` into one run for a single kernel call, and advances `i` past them. Pieces can be merged if
// elements and state are contiguous in the same way. The zeros that pad the arena between parameters may be included: AdamW
// and conversions keep them zero. together(first, next): whether two parameters may share a call. Returns the number of
// elements.
template <class Piece, class Together>
size_t take_run(const std::vector<Piece>& pieces, const std::vector<Parameter>& trained, size_t& i, Together together) {
  const Piece& first = pieces[i];
  const auto place = [&](const Piece& p) { return trained[p.parameter].offset + p.first; };
  for (i++; i < pieces.size(); i++) {
    const Piece &last = pieces[i - 1], &next = pieces[i];
    const size_t zeros = place(next) - place(last) - last.count;
    if (zeros >= PARAMETER_ALIGN || next.state != last.state + last.count + zeros) break;
    if (!together(trained[first.parameter], trained[next.parameter])) break;
  }
  return pieces[i - 1].state + pieces[i - 1].count - first.state;
}

}  // namespace

double gradient_norm(Model& model) {
  if (!model.has_gradients()) return 0;
  std::vector<int64_t> counts;
  std::vector<const void*> arrays;
  for (const Parameter& p : model.trained()) {
    counts.push_back(int64_t(p.count));
    arrays.push_back(model.gradient_data(p));
  }
  std::vector<double> sums(counts.size());
  model.device->run(&LoopBackend::sum_squares, "sum_squares", model.dt, int64_t(counts.size()), counts.data(), arrays.data(),
                    sums.data());
  return std::sqrt(std::accumulate(sums.begin(), sums.end(), 0.0));
}

AdamW::AdamW(std::shared_ptr<Model> model, std::shared_ptr<Communicator> world)
    : model_(std::move(model)), layout_(model_->layout()), version_(model_->version() - 1), bounded_(version_) {
  if (world && world->size() > 1) parallel_ = std::make_unique<DataParallel>(std::move(world), model_);
  find_pieces();
  const Remedy remedy(*model_->device, "train an adapter, whose optimizer is small, or a smaller model");
  const size_t bytes = state_elements() * loop_dtype_size(model_->real());
  for (Buffer* moment : {&first_, &second_}) {
    *moment = Buffer(model_->device, bytes);
    moment->zero(bytes);
  }
  if (model_->dt == LOOP_BF16) master_ = Buffer(model_->device, bytes);
  refresh_masters();
}

// With one rank, every parameter is one piece, and its state has the same offset as in the arena.
void AdamW::find_pieces() {
  const std::vector<Parameter>& trained = model_->trained();
  if (!parallel_) {
    for (size_t i = 0; i < trained.size(); i++) pieces_.push_back({i, 0, trained[i].count, trained[i].offset});
    return;
  }
  const Partition& partition = parallel_->partition();
  size_t next = 0, state = 0;  // next: the first parameter that ends after the start of the share
  for (size_t b = 0; b < partition.buckets(); b++) {
    const ElementRange own = partition.share(b, parallel_->rank());
    while (next < trained.size() && trained[next].offset + trained[next].count <= own.begin) next++;
    for (size_t i = next; i < trained.size() && trained[i].offset < own.end; i++) {
      const size_t begin = std::max(own.begin, trained[i].offset), end = std::min(own.end, trained[i].offset + trained[i].count);
      if (begin < end) pieces_.push_back({i, begin - trained[i].offset, end - begin, state + begin - own.begin});
    }
    state += own.count();
  }
}

size_t AdamW::state_elements() const {
  if (!parallel_) return model_->trained_elements();
  size_t count = 0;
  for (size_t b = 0; b < parallel_->partition().buckets(); b++)
    count += parallel_->partition().share(b, parallel_->rank()).count();
  return count;
}

void AdamW::check_layout() const {
  if (layout_ != model_->layout())
    throw Error("INVALID_ARGUMENT", "AdamW",
                "an adapter was added to the model or removed from it after this optimizer was created: create a new optimizer");
}

void AdamW::refresh_masters() const {
  if (!master_ || version_ == model_->version()) return;
  for (size_t i = 0; i < pieces_.size();) {
    const Piece& piece = pieces_[i];
    const int64_t count =
                      int64_t(take_run(pieces_, model_->trained(), i, [](const Parameter&, const Parameter&) { return true; })),
                  stride = 1;
    const void* parameter = model_->parameter_data(model_->trained()[piece.parameter]);
    model_->device->run(&LoopBackend::copy_strided, "copy_strided", LOOP_BF16, LOOP_F32, 1, &count,
                        element(parameter, LOOP_BF16, piece.first), &stride, master_.at(piece.state * sizeof(float)), &stride);
  }
  version_ = model_->version();
}

template <class Data>
std::vector<double> AdamW::sums_of_squares(Data data) const {
  std::vector<int64_t> counts;
  std::vector<const void*> arrays;
  for (const Piece& piece : pieces_) {
    counts.push_back(int64_t(piece.count));
    arrays.push_back(data(model_->trained()[piece.parameter], piece));
  }
  std::vector<double> of_pieces(pieces_.size()), sums(model_->trained().size());
  model_->device->run(&LoopBackend::sum_squares, "sum_squares", model_->dt, int64_t(counts.size()), counts.data(), arrays.data(),
                      of_pieces.data());
  for (size_t i = 0; i < pieces_.size(); i++) sums[pieces_[i].parameter] += of_pieces[i];
  return sums;
}

AdamW::Norm AdamW::measure_gradients(bool failed, bool& anew) const {
  Model& model = *model_;
  std::vector<double> sums = sums_of_squares([&](const Parameter& p, const Piece& piece) -> const void* {
    return element(model.gradient_data(p), model.real(), piece.first);
  });
  if (failed) sums[0] = std::numeric_limits<double>::quiet_NaN();
  if (parallel_) {
    sums.push_back(anew ? 1 : 0);
    parallel_->sum(sums);
    anew = sums.back() > 0;
    sums.pop_back();
  }
  Norm norm{0, nullptr};
  double total = 0;
  for (size_t i = 0; i < sums.size(); i++) {
    total += sums[i];
    if (!norm.culprit && !std::isfinite(total)) norm.culprit = &model.trained()[i];
  }
  norm.value = std::sqrt(total);
  return norm;
}

// Tight bounds from the current values: the 2-norm of each array, which is at least its largest magnitude.
AdamWBounds AdamW::measured() const {
  const LoopDType real = model_->real();
  const auto total = [&](auto data) {
    const std::vector<double> sums = sums_of_squares(data);
    return std::accumulate(sums.begin(), sums.end(), 0.0);
  };
  const auto of = [&](const Buffer& state) {
    return total([&](const Parameter&, const Piece& piece) -> const void* { return element(state.at(0), real, piece.state); });
  };
  const auto parameters = [&] {
    return total([&](const Parameter& p, const Piece& piece) -> const void* {
      return element(model_->parameter_data(p), model_->dt, piece.first);
    });
  };
  std::vector<double> squares = {master_ ? of(master_) : parameters(), of(first_), of(second_)};
  if (parallel_) parallel_->sum(squares);
  return {std::sqrt(squares[0]), std::sqrt(squares[1]), std::sqrt(squares[2])};
}

double AdamW::step(const AdamWOptions& options) {
  check_layout();
  Model& model = *model_;
  model.gradients();                      // allocates zeros if nothing was accumulated
  std::optional<Uninterrupted> together;  // no cancel between collective operations: the other ranks would wait forever
  if (parallel_) {
    together.emplace(*model.device);
    parallel_->reduce_gradients();
  }
  const auto refuse = [&](const Error& error) {
    if (parallel_) parallel_->keep_only_sums();
    throw error;
  };
  bool anew = bounded_ != model.version();
  const Norm norm = measure_gradients(options.failed, anew);
  if (norm.culprit)
    refuse(Error(
        "NON_FINITE", "step",
        "step " + std::to_string(steps_ + 1) + ": the gradient of " + norm.culprit->name +
            " is not finite; nothing was changed. Clear the gradients to go on without this batch, or lower the learning rate"));
  const double scale = options.max_grad_norm > 0 ? std::min(1.0, options.max_grad_norm / (norm.value + 1e-6)) : 1.0;

  const Uninterrupted uninterrupted(*model.device);
  refresh_masters();
  const double gradient = norm.value * scale;
  const bool wide = model.real() == LOOP_F64;
  const double steps = double(steps_ + 1);
  AdamWBounds bounds = after_step(bounds_, options, gradient, wide, steps);
  if (anew || !std::isfinite(bounds.parameter)) bounds = after_step(measured(), options, gradient, wide, steps);
  if (!std::isfinite(bounds.parameter)) refuse(out_of_range(model.real(), options, gradient, steps_ + 1));
  update(options, scale);
  if (parallel_) parallel_->gather_parameters();
  steps_++;
  model.zero_gradients();
  model.touch();
  version_ = bounded_ = model.version();
  bounds_ = bounds;
  return norm.value;
}

void AdamW::update(const AdamWOptions& options, double gradient_scale) {
  Model& model = *model_;
  const LoopDType real = model.real();
  const std::set<std::string_view> only(options.only.begin(), options.only.end());
  const auto changes = [&](const Parameter& p) { return only.empty() || only.count(p.name) > 0; };
  const auto alike = [&](const Parameter& a, const Parameter& b) { return a.decays() == b.decays() && changes(b); };
  for (size_t i = 0; i < pieces_.size();) {
    const Piece& piece = pieces_[i];
    const Parameter& p = model.trained()[piece.parameter];
    if (!changes(p)) {
      i++;
      continue;
    }
    const LoopAdamW update{
        .count = int64_t(take_run(pieces_, model.trained(), i, alike)),
        .parameter = element(model.writable_data(p), model.dt, piece.first),
        .master = master_ ? element(master_.at(0), real, piece.state) : nullptr,
        .gradient = element(model.gradient_data(p), real, piece.first),
        .first_moment = element(first_.at(0), real, piece.state),
        .second_moment = element(second_.at(0), real, piece.state),
        .learning_rate = options.learning_rate,
        .beta1 = options.beta1,
        .beta2 = options.beta2,
        .epsilon = options.epsilon,
        .weight_decay = p.decays() ? options.weight_decay : 0,
        .gradient_scale = gradient_scale,
        .step = steps_ + 1,
    };
    model.device->run(&LoopBackend::adamw, "adamw", model.dt, &update);
  }
}

}  // namespace looplm
