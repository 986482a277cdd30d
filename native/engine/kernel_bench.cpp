#include "kernel_bench.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "../numeric/half.h"
#include "head.h"
#include "../numeric/philox.h"

namespace looplm {

namespace {

// One benchmark case: its inputs on the device and the amount of work. Without a device it allocates nothing and cannot run,
// but still reports the work.
class BenchCase {
 public:
  BenchCase(std::shared_ptr<Device> device, LoopDType dt, const KernelShape& shape)
      : device_(std::move(device)),
        dt_(dt),
        s_(shape),
        act_(double(loop_dtype_size(dt))),
        real_(double(loop_dtype_size(loop_real(dt)))) {}
  KernelCase take() { return std::move(out_); }

 protected:
  // Device memory with `count` elements of `type`: normal values times `scale`, the same in every run.
  void* random(LoopDType type, int64_t count, double scale = 0.5) {
    if (!device_) return nullptr;
    std::vector<double> block(4096);
    for (size_t i = 0; i < block.size(); i++) block[i] = scale * normal(7, uint32_t(out_.buffers.size()), 0, uint32_t(i));
    const size_t size = loop_dtype_size(type);
    std::vector<uint8_t> host(size_t(count) * size);
    for (size_t i = 0; i < size_t(count); i++) {
      const double x = block[(i * 2654435761u >> 7) % block.size()];
      if (type == LOOP_F64) reinterpret_cast<double*>(host.data())[i] = x;
      if (type == LOOP_F32) reinterpret_cast<float*>(host.data())[i] = float(x);
      if (type == LOOP_BF16) reinterpret_cast<uint16_t*>(host.data())[i] = float_to_bf16(float(x));
    }
    return keep(host.data(), host.size());
  }
  void* keep(const void* host, size_t bytes) {
    if (!device_) return nullptr;
    out_.buffers.emplace_back(device_, bytes + 64);
    out_.buffers.back().upload(host, bytes);
    return out_.buffers.back().as<>();
  }
  void* acts(int64_t count) { return random(dt_, count); }
  void* reals(int64_t count) { return random(loop_real(dt_), count); }
  const int32_t* integers(int64_t count, int64_t below) {
    if (!device_) return nullptr;
    std::vector<int32_t> host(static_cast<size_t>(count));
    for (size_t i = 0; i < host.size(); i++) host[i] = int32_t((i * 2654435761u >> 5) % uint64_t(below));
    return static_cast<const int32_t*>(keep(host.data(), host.size() * 4));
  }
  template <class F, class... A>
  void on_run(F LoopBackend::*f, A... arguments) {
    Device* device = device_.get();
    out_.run = [=] { device->run(f, "bench", arguments...); };
  }
  void work(double flops, double bytes) {
    out_.flops = flops;
    out_.bytes = bytes;
  }

  int64_t n() const { return s_.rows; }
  int64_t d() const { return s_.hidden; }
  int64_t f() const { return s_.intermediate; }
  int64_t v() const { return s_.vocabulary; }
  int32_t head_dim() const { return int32_t(s_.hidden / s_.heads); }
  int64_t qkv_width() const { return int64_t(s_.heads + 2 * s_.kv_heads) * head_dim(); }

  std::shared_ptr<Device> device_;
  LoopDType dt_;
  KernelShape s_;
  double act_, real_;
  std::shared_ptr<int64_t> shape_;
  KernelCase out_;
};

// Memory bandwidth, matrix products, and the parts of a block and of the exit gate.
class BlockCases : public BenchCase {
 public:
  using BenchCase::BenchCase;

  void read() {  // The exit gate over an array far larger than the caches, to measure the memory's read rate.
    const int64_t rows = int64_t(1) << 15, width = 2048;
    work(2.0 * double(rows * width), double(rows * width) * real_);
    const LoopDType real = loop_real(dt_);
    const void *h = reals(rows * width), *w = reals(width), *b = reals(1);
    on_run(&LoopBackend::gate, real, rows, width, h, w, b, reals(rows));
  }
  void copy() {
    const int64_t count = int64_t(48) << 20;
    work(0, 2 * double(count) * real_);
    static const int64_t stride = 1;
    shape_ = std::make_shared<int64_t>(count);
    auto shape = shape_;
    void *from = reals(count), *to = reals(count);
    Device* device = device_.get();
    LoopDType real = loop_real(dt_);
    out_.run = [=] {
      device->run(&LoopBackend::copy_strided, "bench", real, real, 1, static_cast<const int64_t*>(shape.get()), from,
                  static_cast<const int64_t*>(&stride), to, static_cast<const int64_t*>(&stride));
    };
  }
  void product(int ta, int tb, int64_t m, int64_t columns, int64_t k, int flags) {
    const double out_bytes = flags ? real_ : act_;
    work(2.0 * double(m) * double(columns) * double(k),
         double(m * k + k * columns) * act_ + double(m * columns) * out_bytes * (flags == 2 ? 2 : 1));
    const void *a = acts(m * k), *b = acts(columns * k);
    void* c = flags ? reals(m * columns) : acts(m * columns);
    on_run(&LoopBackend::gemm, dt_, ta, tb, m, columns, k, a, ta ? m : k, b, tb ? k : columns, c, columns, flags);
  }
  void gemm() { product(0, 1, n(), d(), f(), 0); }
  void gemm_input_gradient() { product(0, 0, n(), d(), f(), 0); }
  void gemm_weight_gradient() { product(1, 0, f(), d(), n(), LOOP_GEMM_ACCUMULATE); }
  // Decoding a token reads all weights of a model, so they are not in a GPU's L2 cache (50 MB and more). On a GPU the runs
  // therefore rotate through several weight matrices of `bytes` bytes, 256 MB in total. A CPU uses one matrix.
  int64_t weights_in_turn(double bytes) const {
    constexpr double beyond_cache = 256 << 20;
    return device_ && !device_->host_visible() ? std::clamp<int64_t>(int64_t(std::ceil(beyond_cache / bytes)), 1, 32) : 1;
  }
  void gemm_one_row() {
    const int64_t columns = 2 * f(), k = d(), count = weights_in_turn(double(columns * k) * act_);
    work(2.0 * double(columns * k), double(k + columns * k + columns) * act_);
    std::vector<const void*> weights;
    for (int64_t i = 0; i < count; i++) weights.push_back(acts(columns * k));
    const void* a = acts(k);
    void* c = acts(columns);
    Device* device = device_.get();
    LoopDType dt = dt_;
    out_.run = [=, next = size_t(0)]() mutable {
      device->run(&LoopBackend::gemm, "bench", dt, 0, 1, int64_t(1), columns, k, a, k, weights[next], k, c, columns, 0);
      next = (next + 1) % weights.size();
    };
  }
  // Measures the peak rate of int8 products, as `read` and `copy` measure bandwidth. Reports no operations if the device has
  // none.
  void byte_products() {
    constexpr int64_t rounds = 100000;
    work(0, 0);
    out_.run = [] {};
    Device* device = device_.get();
    if (!device || !device->has(&LoopBackend::byte_products)) return;
    device->run(&LoopBackend::byte_products, "bench", rounds, &out_.flops);
    out_.run = [device] {
      double operations;
      device->run(&LoopBackend::byte_products, "bench", rounds, &operations);
    };
  }
  void gemm_int4_one_row() {
    constexpr int group = 32;
    const int64_t columns = 2 * f(), k = d();
    const double weight_bytes = double(columns * k) / 2 + 4.0 * double(columns * k / group);
    work(2.0 * double(columns * k), weight_bytes + double(k + columns) * act_);
    std::vector<LoopQuantized> weights;
    for (int64_t i = weights_in_turn(weight_bytes); i > 0; i--)
      weights.push_back({.bits = 4,
                         .group = group,
                         .codes = random(LOOP_F32, columns * k / 8),
                         .scales = static_cast<const float*>(random(LOOP_F32, columns * k / group))});
    const void* a = acts(k);
    void* c = acts(columns);
    Device* device = device_.get();
    LoopDType dt = dt_;
    out_.run = [=, next = size_t(0)]() mutable {
      device->run(&LoopBackend::gemm_quantized, "bench", dt, int64_t(1), columns, k, a, k, &weights[next], c, columns, 0);
      next = (next + 1) % weights.size();
    };
  }
  void embed() {
    work(0, 2 * double(n() * d()) * act_);
    const int32_t* ids = integers(n(), v());
    const void* table = acts(v() * d());
    on_run(&LoopBackend::embed, dt_, n(), d(), ids, table, acts(n() * d()));
  }
  void embed_backward() {
    work(double(n() * d()), 3 * double(n() * d()) * real_);
    const int32_t* ids = integers(n(), v());
    const void* dout = reals(n() * d());
    on_run(&LoopBackend::embed_backward, dt_, n(), d(), v(), ids, dout, reals(v() * d()));
  }
  void residual_norm() {
    work(10.0 * double(n() * d()), 4 * double(n() * d()) * act_);
    const void *h = acts(n() * d()), *branch = acts(n() * d()), *w1 = acts(d()), *w2 = acts(d());
    on_run(&LoopBackend::residual_norm, dt_, n(), d(), 1e-6, h, branch, w1, w2, acts(n() * d()), acts(n() * d()));
  }
  void residual_norm_backward() {
    work(20.0 * double(n() * d()), double(n() * d()) * (4 * act_ + 2 * real_));
    const void *h = acts(n() * d()), *branch = acts(n() * d()), *w1 = acts(d()), *w2 = acts(d()), *dx = acts(n() * d());
    on_run(&LoopBackend::residual_norm_backward, dt_, n(), d(), 1e-6, h, branch, w1, w2, dx, reals(n() * d()), acts(n() * d()),
           reals(d()), reals(d()));
  }
  void rope() {
    const int32_t heads = s_.heads + s_.kv_heads;
    work(3.0 * double(n() * heads * head_dim()), 2.0 * double(n() * heads * head_dim()) * act_);
    const int32_t* positions = integers(n(), s_.length);
    const void* table = reals(s_.length * head_dim());
    on_run(&LoopBackend::rope, dt_, LOOP_HALVES, n(), heads, head_dim(), qkv_width(), positions, table, 0,
           acts(n() * qkv_width()));
  }
  std::shared_ptr<LoopAttention> attention_arguments() {
    std::vector<LoopSegment> segments;
    for (int64_t begin = 0; begin + s_.length <= n(); begin += s_.length)
      segments.push_back({int32_t(begin), int32_t(begin + s_.length), 0, 0, int32_t(segments.size())});
    auto a = std::make_shared<LoopAttention>();
    a->tokens = int64_t(segments.size()) * s_.length;
    a->heads = s_.heads;
    a->kv_heads = s_.kv_heads;
    a->head_dim = head_dim();
    a->scale = 1 / std::sqrt(double(head_dim()));
    a->segments = static_cast<const LoopSegment*>(keep(segments.data(), segments.size() * sizeof(LoopSegment)));
    a->segment_count = a->group_count = int32_t(segments.size());
    a->max_context = int32_t(s_.length);
    a->qkv = acts(n() * qkv_width());
    a->out = acts(n() * d());
    a->lse = reals(n() * s_.heads);
    a->dout = acts(n() * d());
    a->dqkv = acts(n() * qkv_width());
    const double pairs = double(a->tokens) * double(s_.length + 1) / 2;
    work(4.0 * pairs * double(d()), double(a->tokens) * double(qkv_width() + d()) * act_);
    return a;
  }
  void attention() {
    auto a = attention_arguments();
    Device* device = device_.get();
    LoopDType dt = dt_;
    out_.run = [=] { device->run(&LoopBackend::attention, "bench", dt, static_cast<const LoopAttention*>(a.get())); };
  }
  void attention_backward() {
    auto a = attention_arguments();
    work(2.5 * out_.flops, 2 * out_.bytes);
    Device* device = device_.get();
    LoopDType dt = dt_;
    if (device) device->run(&LoopBackend::attention, "bench", dt, static_cast<const LoopAttention*>(a.get()));
    out_.run = [=] { device->run(&LoopBackend::attention_backward, "bench", dt, static_cast<const LoopAttention*>(a.get())); };
  }
  void swiglu() {
    work(6.0 * double(n() * f()), 3 * double(n() * f()) * act_);
    const void* gu = acts(n() * 2 * f());
    on_run(&LoopBackend::swiglu, dt_, LOOP_SILU, n(), f(), gu, acts(n() * f()));
  }
  void swiglu_backward() {
    work(12.0 * double(n() * f()), 6 * double(n() * f()) * act_);
    const void *gu = acts(n() * 2 * f()), *dout = acts(n() * f());
    on_run(&LoopBackend::swiglu_backward, dt_, LOOP_SILU, n(), f(), gu, dout, acts(n() * 2 * f()), acts(n() * f()));
  }
  void gate() {
    work(2.0 * double(n() * d()), double(n() * d()) * act_);
    const void *h = acts(n() * d()), *w = acts(d()), *b = acts(1);
    on_run(&LoopBackend::gate, dt_, n(), d(), h, w, b, reals(n()));
  }
  void gate_backward() {
    work(4.0 * double(n() * d()), double(n() * d()) * (act_ + 2 * real_));
    const void *da = reals(n()), *h = acts(n() * d()), *w = acts(d());
    on_run(&LoopBackend::gate_backward, dt_, n(), d(), da, h, w, reals(n() * d()), reals(d()), reals(1));
  }
  void exit_pdf() {
    work(20.0 * 4 * double(n()), 3 * 4 * double(n()) * real_);
    const void* gates = reals(4 * n());
    on_run(&LoopBackend::exit_pdf, dt_, int64_t(4), n(), gates, reals(4 * n()), reals(4 * n()));
  }
};

// The output head, the optimizer, and the kernels of decoding.
class HeadCases : public BenchCase {
 public:
  using BenchCase::BenchCase;

  void head_rows() { head(false); }
  void head_rows_gradient() { head(true); }
  void head(bool gradient) {
    const int64_t m = std::min<int64_t>(n(), 1024);
    work(8.0 * double(m * v()), double(m * v()) * (gradient ? real_ + act_ : real_));
    void* logits = reals(m * v());
    const int32_t* targets = integers(m, v());
    auto loss = std::make_shared<LoopLoss>();
    loss->surrogate = LOOP_GIVEN;
    loss->scale = reals(m);
    void *logprobs = reals(m), *entropies = reals(m);
    Device* device = device_.get();
    LoopDType dt = dt_;
    const int64_t vocabulary = v();
    out_.run = [=] {
      device->run(&LoopBackend::head_rows, "bench", dt, m, vocabulary, 1.0, logits, targets,
                  gradient ? static_cast<const LoopLoss*>(loss.get()) : nullptr, logprobs, entropies);
    };
  }
  // Without a device, assume the largest value of any device.
  int64_t logits_bytes() const { return device_ ? device_->logits_bytes() : int64_t(384) << 20; }
  // Head forward and backward as the engine runs them, chunk by chunk: logits, row kernel, ∂hidden, ∂weight.
  void whole_head() {
    const int64_t m = std::min<int64_t>(n(), logits_bytes() / (v() * int64_t(real_)));
    const int64_t chunks = std::max<int64_t>(1, n() / m);
    work(6.0 * double(chunks * m * d() * v()),
         double(chunks) * (2 * double(m * v()) * real_ + double(v() * d()) * (2 * act_ + 2 * real_)));
    const void *hidden = acts(m * d()), *weight = acts(v() * d());
    void *logits = reals(m * v()), *d_hidden = reals(m * d()), *d_weight = reals(v() * d()), *logprobs = reals(m),
         *none = nullptr;
    const int32_t* targets = integers(m, v());
    auto loss = std::make_shared<LoopLoss>();
    loss->surrogate = LOOP_GIVEN;
    loss->scale = reals(m);
    Device* device = device_.get();
    const LoopDType dt = dt_;
    const int64_t D = d(), V = v(), stride = V * int64_t(real_ / act_);
    out_.run = [=] {
      for (int64_t i = 0; i < chunks; i++) {
        device->run(&LoopBackend::gemm, "bench", dt, 0, 1, m, V, D, hidden, D, weight, D, logits, V, int(LOOP_GEMM_REAL_OUT));
        device->run(&LoopBackend::head_rows, "bench", dt, m, V, 1.0, logits, targets, static_cast<const LoopLoss*>(loss.get()),
                    logprobs, none);
        device->run(&LoopBackend::gemm, "bench", dt, 0, 0, m, D, V, logits, stride, weight, D, d_hidden, D,
                    int(LOOP_GEMM_REAL_OUT));
        device->run(&LoopBackend::gemm, "bench", dt, 1, 0, V, D, m, logits, stride, hidden, D, d_weight, D,
                    int(LOOP_GEMM_ACCUMULATE));
      }
    };
  }
  void policy_gradient() {
    work(10.0 * double(n()), 5 * double(n()) * real_);
    auto loss = std::make_shared<LoopLoss>();
    loss->surrogate = LOOP_PPO;
    loss->epsilon_low = loss->epsilon_high = 0.2;
    loss->scale = reals(n());
    loss->advantage = reals(n());
    loss->old_logprob = reals(n());
    const void* logprobs = reals(n());
    void* coefficients = reals(n());
    Device* device = device_.get();
    LoopDType dt = dt_;
    const int64_t rows = n();
    out_.run = [=] {
      LoopLossSums sums;
      device->run(&LoopBackend::policy_gradient, "bench", dt, rows, logprobs, static_cast<const LoopLoss*>(loss.get()),
                  coefficients, &sums);
    };
  }
  void adamw() {
    const int64_t count = n() * d();
    const bool master = dt_ == LOOP_BF16;
    work(15.0 * double(count), double(count) * (5 * real_ + (master ? 2 * real_ + act_ : 2 * act_)));
    auto a = std::make_shared<LoopAdamW>();
    a->count = count;
    a->parameter = acts(count);
    a->master = master ? reals(count) : nullptr;
    a->gradient = reals(count);
    a->first_moment = reals(count);
    a->second_moment = random(loop_real(dt_), count, 0);
    a->learning_rate = 1e-4;
    a->beta1 = 0.9;
    a->beta2 = 0.999;
    a->epsilon = 1e-8;
    a->weight_decay = 0.1;
    a->gradient_scale = 1;
    a->step = 1;
    Device* device = device_.get();
    LoopDType dt = dt_;
    out_.run = [=] { device->run(&LoopBackend::adamw, "bench", dt, static_cast<const LoopAdamW*>(a.get())); };
  }
  void decode_attention() {
    const int64_t rows = 64, kv = int64_t(s_.kv_heads) * head_dim();
    std::vector<LoopCacheContext> contexts;
    for (int64_t i = 0; i < rows; i++) contexts.push_back({{{int32_t(i * s_.length), int32_t(s_.length)}}});
    auto a = std::make_shared<LoopDecodeAttention>();
    a->rows = rows;
    a->heads = s_.heads;
    a->kv_heads = s_.kv_heads;
    a->head_dim = head_dim();
    a->scale = 1 / std::sqrt(double(head_dim()));
    a->qkv = acts(rows * qkv_width());
    a->keys = acts(rows * s_.length * kv);
    a->values = acts(rows * s_.length * kv);
    a->contexts = static_cast<const LoopCacheContext*>(keep(contexts.data(), contexts.size() * sizeof(LoopCacheContext)));
    a->out = acts(rows * d());
    work(4.0 * double(rows * s_.length * d()), 2.0 * double(rows * s_.length * kv) * act_);
    Device* device = device_.get();
    LoopDType dt = dt_;
    out_.run = [=] {
      device->run(&LoopBackend::decode_attention, "bench", dt, static_cast<const LoopDecodeAttention*>(a.get()));
    };
  }
  void sample() { draw(std::min<int64_t>(n(), 512), v(), 0.5, 1); }
  void sample_top_p() { draw(std::clamp<int64_t>(n() / 1024, 1, 16), 49152, 2, 0.95); }  // the vocabulary of Ouro
  void draw(int64_t m, int64_t vocabulary, double scale, double top_p) {
    auto s = std::make_shared<LoopSample>();
    s->rows = m;
    s->vocabulary = vocabulary;
    s->logits = random(loop_real(dt_), m * vocabulary, scale);
    s->temperature = 1;
    s->top_p = top_p;
    s->sequences = integers(m, m);
    s->positions = integers(m, 100);
    s->tokens = static_cast<int32_t*>(reals(m));  // a real is at least as large as an int32
    s->logprobs = reals(m);
    work(6.0 * double(m * vocabulary), double(m * vocabulary) * real_);
    Device* device = device_.get();
    LoopDType dt = dt_;
    out_.run = [=] { device->run(&LoopBackend::sample, "bench", dt, static_cast<const LoopSample*>(s.get())); };
  }
};

template <class Cases, void (Cases::*make)()>
KernelCase made(const std::shared_ptr<Device>& device, LoopDType dt, const KernelShape& shape) {
  Cases cases(device, dt, shape);
  (cases.*make)();
  return cases.take();
}

using Make = KernelCase (*)(const std::shared_ptr<Device>&, LoopDType, const KernelShape&);
const std::map<std::string, Make>& table() {
  static const std::map<std::string, Make> cases = {
      {"read", made<BlockCases, &BlockCases::read>},
      {"copy", made<BlockCases, &BlockCases::copy>},
      {"gemm", made<BlockCases, &BlockCases::gemm>},
      {"gemm_input_gradient", made<BlockCases, &BlockCases::gemm_input_gradient>},
      {"gemm_weight_gradient", made<BlockCases, &BlockCases::gemm_weight_gradient>},
      {"gemm_one_row", made<BlockCases, &BlockCases::gemm_one_row>},
      {"gemm_int4_one_row", made<BlockCases, &BlockCases::gemm_int4_one_row>},
      {"byte_products", made<BlockCases, &BlockCases::byte_products>},
      {"embed", made<BlockCases, &BlockCases::embed>},
      {"embed_backward", made<BlockCases, &BlockCases::embed_backward>},
      {"residual_norm", made<BlockCases, &BlockCases::residual_norm>},
      {"residual_norm_backward", made<BlockCases, &BlockCases::residual_norm_backward>},
      {"rope", made<BlockCases, &BlockCases::rope>},
      {"attention", made<BlockCases, &BlockCases::attention>},
      {"attention_backward", made<BlockCases, &BlockCases::attention_backward>},
      {"swiglu", made<BlockCases, &BlockCases::swiglu>},
      {"swiglu_backward", made<BlockCases, &BlockCases::swiglu_backward>},
      {"gate", made<BlockCases, &BlockCases::gate>},
      {"gate_backward", made<BlockCases, &BlockCases::gate_backward>},
      {"exit_pdf", made<BlockCases, &BlockCases::exit_pdf>},
      {"head_rows", made<HeadCases, &HeadCases::head_rows>},
      {"head_rows_gradient", made<HeadCases, &HeadCases::head_rows_gradient>},
      {"head", made<HeadCases, &HeadCases::whole_head>},
      {"policy_gradient", made<HeadCases, &HeadCases::policy_gradient>},
      {"adamw", made<HeadCases, &HeadCases::adamw>},
      {"decode_attention", made<HeadCases, &HeadCases::decode_attention>},
      {"sample", made<HeadCases, &HeadCases::sample>},
      {"sample_top_p", made<HeadCases, &HeadCases::sample_top_p>},
  };
  return cases;
}

}  // namespace

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (auto& [name, make] : table()) names.push_back(name);
  return names;
}

KernelCase make_kernel_case(const std::shared_ptr<Device>& device, LoopDType dt, const std::string& name,
                            const KernelShape& shape) {
  const auto found = table().find(name);
  if (found == table().end()) throw Error("NOT_FOUND", "bench", "there is no kernel \"" + name + "\" to bench");
  return found->second(device, dt, shape);
}

}  // namespace looplm
