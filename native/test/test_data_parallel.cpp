// The sharded optimizer with threads as ranks, compared with the optimizer of one rank on the sum of all gradients.
//
//   looplm_data_parallel_tests [DEVICE | "" [some | every | fault]]
//
// DEVICE: tests this device, such as cuda-emulated, instead of cpu and reference. some: only the quick tests. every: the large
// model with every number of ranks. fault: checks that the fault set in LOOPLM_NCCL_DOUBLE_FAULT is an error on every rank.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "../backends.h"
#include "../comm/threads.h"
#include "../engine/error.h"
#include "../engine/optimizer.h"
#include "../engine/score.h"
#include "engine/claims.h"
#include "engine/files.h"
#include "small_architecture.h"

namespace looplm {
namespace {

using test::claim;
using Bytes = std::vector<uint8_t>;
using Numbers = std::vector<double>;

// One bucket, and three buckets.
const Architecture small = small_architecture({50, 32, 64, 2, 4, 2, 8, 2, false, 0.2});
const Architecture large = small_architecture({10500, 96, 200, 2, 4, 2, 24, 2, false, 0.2});
// Two buckets, and a single layer, for slow devices.
const Architecture middle = small_architecture({5300, 96, 200, 2, 4, 2, 24, 2, false, 0.2});
const Architecture shallow = small_architecture({50, 32, 64, 1, 4, 2, 8, 2, false, 0.2});

struct Kind {
  const char* name;
  LoopDType dt;
  const Architecture* architecture;
  bool adapter = false;
};
const std::vector<Kind> kinds = {
    {"float64", LOOP_F64, &small},
    {"float32", LOOP_F32, &small},
    {"bfloat16", LOOP_BF16, &small},
    {"float32 adapters", LOOP_F32, &small, true},
    {"bfloat16 adapters", LOOP_BF16, &small, true},
    {"float32 in three buckets", LOOP_F32, &large},
};

const Kind two_buckets = {"float32 in two buckets", LOOP_F32, &middle};
const Kind one_layer = {"float32 in one layer", LOOP_F32, &shallow};

std::string device_name;  // from the command line; empty: depends on the kind
bool runs(const Kind& kind) { return device_name.empty() || kind.dt != LOOP_F64; }

std::shared_ptr<Model> make_model(const Kind& kind) {
  const auto device = open_device(!device_name.empty() ? device_name : kind.dt == LOOP_F64 ? "reference" : "cpu", 1);
  auto model = std::make_shared<Model>(device, kind.dt, *kind.architecture);
  model->initialize(7);
  if (kind.adapter) model->add_adapter({4, 8, {"q_proj", "down_proj"}}, 11);
  return model;
}

// The gradient of element i from rank `rank` in step `step`. The sum over the ranks depends on the order of addition.
double part(int rank, int step, size_t i) {
  constexpr double scale[] = {0.01, 0.1, 1, 10, 100};
  const uint64_t mixed = (uint64_t(rank) * 1000003 + uint64_t(step) * 7919 + i) * 0x9e3779b97f4a7c15ull;
  return (double(mixed >> 40) / double(1 << 24) - 0.5) * scale[mixed % 5];
}

// Sets the gradient of every trained parameter to the sum of the parts of ranks [first, end), added in this order.
template <class Real>
void write_gradients(Model& model, int first, int end, int step) {
  for (const Parameter& p : model.trained()) {
    std::vector<Real> g(p.count);
    for (size_t i = 0; i < p.count; i++)
      for (int r = first; r < end; r++) g[i] = (r == first ? 0 : g[i]) + Real(part(r, step, p.offset + i));
    model.device->run(&LoopBackend::copy_in, "copy_in", model.gradient_data(p), static_cast<const void*>(g.data()),
                      g.size() * sizeof(Real));
  }
}
void write_gradients(Model& model, int first, int end, int step) {
  model.gradients();
  if (model.real() == LOOP_F64) write_gradients<double>(model, first, end, step);
  else write_gradients<float>(model, first, end, step);
}

Bytes raw(const Model& model) {
  Bytes all;
  for (const Parameter& p : model.trained()) {
    Bytes one(p.count * loop_dtype_size(model.dt));
    model.read_raw(p, one.data());
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}
Numbers values(const Model& model) {
  Numbers all;
  for (const Parameter& p : model.trained()) {
    const Numbers one = model.read(p);
    all.insert(all.end(), one.begin(), one.end());
  }
  return all;
}
double difference(const Numbers& a, const Numbers& b) {
  double square = 0, norm = 0;
  for (size_t i = 0; i < a.size(); i++) square += (a[i] - b[i]) * (a[i] - b[i]), norm += b[i] * b[i];
  return std::sqrt(square / norm);
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.code + " " + error.what();
  }
  return "nothing";
}
bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct Rank {
  std::shared_ptr<Communicator> world;
  std::shared_ptr<Model> model;
  std::unique_ptr<AdamW> optimizer;
};
// Runs `work` for every rank, each on a thread that creates its own model and optimizer.
void in_world(const Kind& kind, int size, double timeout, const std::function<void(Rank&)>& work) {
  const std::vector<void*> contexts = open_threads(size, timeout);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; r++)
    threads.emplace_back([&, r] {
      Rank rank;
      rank.world = std::make_shared<Communicator>(threads_comm(), contexts[size_t(r)], timeout);
      rank.model = make_model(kind);
      rank.optimizer = std::make_unique<AdamW>(rank.model, rank.world);
      try {
        work(rank);
      } catch (const std::exception& error) {
        claim("no unexpected error on rank " + std::to_string(r), false, error.what());
        rank.world->abort(error.what(), 1);
      }
    });
  for (std::thread& thread : threads) thread.join();
}

AdamWOptions options_of(int step, double max_grad_norm = 0) {
  AdamWOptions options{.learning_rate = 0.01 / step, .weight_decay = 0.1};
  options.max_grad_norm = max_grad_norm;
  return options;
}

constexpr int STEPS = 3;

void equals_one_rank(const Kind& kind, int size, double max_grad_norm) {
  const auto model = make_model(kind);
  AdamW optimizer(model);
  Numbers norms;
  for (int step = 1; step <= STEPS; step++) {
    write_gradients(*model, 0, size, step);
    norms.push_back(optimizer.step(options_of(step, max_grad_norm)));
  }
  const Bytes expected = raw(*model);
  const Numbers expected_values = values(*model);
  in_world(kind, size, 60, [&](Rank& rank) {
    const std::string name = std::string(" (") + kind.name + ", rank " + std::to_string(rank.world->rank()) + " of " +
                             std::to_string(size) + (max_grad_norm > 0 ? ", clipped)" : ")");
    bool same_norms = true;
    for (int step = 1; step <= STEPS; step++) {
      write_gradients(*rank.model, rank.world->rank(), rank.world->rank() + 1, step);
      const double norm = rank.optimizer->step(options_of(step, max_grad_norm));
      same_norms &= std::abs(norm - norms[size_t(step) - 1]) <= 1e-12 * norm;
    }
    claim("the norm is that of the summed gradients" + name, same_norms);
    // Clipping scales by the norm, whose squares are added in another order, so the bits may differ.
    if (max_grad_norm == 0) claim("parameters have the bits of one rank" + name, raw(*rank.model) == expected);
    else {
      const double distance = difference(values(*rank.model), expected_values);
      claim("parameters are those of one rank" + name, distance <= 1e-6, std::to_string(distance));
    }
  });
}

// The exchange gives the bits of one rank, in whatever order the gradients become final.
void early_exchange(const Kind& kind, int size) {
  constexpr int steps = 2;  // the first exchanges nothing early
  const auto model = make_model(kind);
  AdamW optimizer(model);
  for (int step = 1; step <= steps; step++) {
    write_gradients(*model, 0, size, step);
    optimizer.step(options_of(step));
  }
  const Bytes expected = raw(*model);
  in_world(kind, size, 60, [&](Rank& rank) {
    const auto& trained = rank.model->trained();
    const int own = rank.world->rank();
    DataParallel& parallel = *rank.optimizer->parallel();
    for (int step = 1; step <= steps; step++) {
      write_gradients(*rank.model, own, own + 1, step);
      const std::atomic<bool> cancelled = true;  // a call that is aborted now still exchanges all, as the other ranks expect
      rank.model->device->cancel = &cancelled;
      // Ranks announce final gradients at different points, and one rank never does.
      if (own + 1 < size)
        for (size_t i = trained.size(); i > 0; i -= std::min(i, size_t(own) + 1))
          parallel.gradients_final_from(trained[i - 1].offset);
      const std::string of =
          std::string(" (") + kind.name + ", rank " + std::to_string(own) + " of " + std::to_string(size) + ")";
      if (kind.architecture != &small)  // the only bucket of the small one may wait for its first gradient
        claim("an exchange begins early where gradients are final, and not in the first step" + of,
              (parallel.begun() > 0) == (own + 1 < size && step > 1));
      rank.optimizer->step(options_of(step));
      rank.model->device->cancel = nullptr;
      if (step == steps)
        claim("an exchange that begins in the backward pass gives the bits of one rank" + of, raw(*rank.model) == expected);
    }
  });
}

// Exchanging gradients during the first loop's backward pass gives the same bits. The last rank has no sequences and goes
// straight to the step.
void overlapped(const Kind& kind, int size) {
  std::vector<Bytes> plain(static_cast<size_t>(size));
  const auto train = [&](bool overlap, const std::function<void(Rank&)>& end) {
    in_world(kind, size, 60, [&](Rank& rank) {
      const int own = rank.world->rank();
      DataParallel& parallel = *rank.optimizer->parallel();
      for (int step = 1; step <= STEPS; step++) {
        for (int part = 0; part < 2 && own + 1 < size; part++) {
          Sequences s;
          for (int i = 0; i < 2; i++) {
            s.offsets.push_back(int64_t(s.tokens.size()));
            for (int j = 0; j < 7 + own; j++) s.tokens.push_back((own * 5 + step * 3 + part + i + j * j) % 12);
          }
          s.offsets.push_back(int64_t(s.tokens.size()));
          const size_t rows = (s.tokens.size() - 2) * size_t(rank.model->config.loops);
          if (overlap && part == 1) parallel.exchange_during_next();
          backward(*rank.model, s, Numbers(rows, -0.01), {}, {}, Recompute::none);
          claim("an exchange begins in the last accumulation before a later step, where it was asked for",
                (parallel.begun() > 0) == (overlap && part == 1 && step > 1));
        }
        Numbers ranks = {1.0 * own, 1};  // other operations do not wait for exchanges that only some ranks have started
        rank.world->all_reduce(LOOP_COMM_SUM, ranks);
        claim("operations between backward pass and step", ranks == Numbers{size * (size - 1) / 2.0, 1.0 * size});
        rank.world->barrier();
        if (overlap && own + 1 == size) parallel.exchange_during_next();
        rank.optimizer->step(options_of(step));
        claim("the step leaves no exchange behind", parallel.begun() == 0 && !rank.model->next_final);
      }
      end(rank);
    });
  };
  train(false, [&](Rank& rank) { plain[size_t(rank.world->rank())] = raw(*rank.model); });
  train(true, [&](Rank& rank) {
    const DataParallel::Times times = rank.optimizer->parallel()->times();
    claim(std::string("an exchange during the way back gives the same bits (") + kind.name + ", rank " +
              std::to_string(rank.world->rank()) + " of " + std::to_string(size) + ")",
          raw(*rank.model) == plain[size_t(rank.world->rank())]);
    claim("its times are known", times.exchanging > 0 && times.waiting >= 0);
  });
}

void only_some(int size) {
  const Kind& kind = kinds[1];
  in_world(kind, size, 60, [&](Rank& rank) {
    AdamWOptions options = options_of(1);
    const Parameter& changed = rank.model->trained()[3];
    options.only = {changed.name};
    const auto before = make_model(kind);
    write_gradients(*rank.model, rank.world->rank(), rank.world->rank() + 1, 1);
    rank.optimizer->step(options);
    bool right = true;
    for (const Parameter& p : rank.model->trained())
      right &= (rank.model->read(p) == before->read(before->parameter(p.name))) == (p.name != changed.name);
    claim("`only` names what changes, on rank " + std::to_string(rank.world->rank()) + " of " + std::to_string(size), right);
  });
}

void state_and_bytes(const Kind& kind, int size) {
  const std::vector<void*> contexts = open_threads(size, 60);
  std::vector<Rank> ranks(static_cast<size_t>(size));
  const std::string name = std::string(" (") + kind.name + ", " + std::to_string(size) + " ranks)";
  size_t total = 0;
  bool fair = true;
  const auto one = make_model(kind);
  const size_t copies = kind.dt == LOOP_BF16 ? 3 : 2, real = loop_dtype_size(one->real()), elements = one->trained_elements();
  for (size_t r = 0; r < ranks.size(); r++) {
    ranks[r].world = std::make_shared<Communicator>(threads_comm(), contexts[r]);
    ranks[r].model = make_model(kind);
    const size_t before = memory_stats().allocated_bytes;
    ranks[r].optimizer = std::make_unique<AdamW>(ranks[r].model, ranks[r].world);
    const size_t state = memory_stats().allocated_bytes - before;
    total += state;
    const Partition partition(elements, size);
    const double most = double(elements) / size + double(partition.buckets() * (size == 1 ? 0 : Partition::ALIGNMENT));
    fair &= double(state) <= double(copies * real) * most;
  }
  claim("all ranks together have one state" + name, total == copies * real * elements, std::to_string(total));
  claim("no rank has more than its share of the state" + name, fair);

  std::vector<std::thread> threads;
  for (Rank& rank : ranks)
    threads.emplace_back([&rank] {
      write_gradients(*rank.model, rank.world->rank(), rank.world->rank() + 1, 1);
      rank.optimizer->step(options_of(1));
    });
  for (std::thread& thread : threads) thread.join();
  int64_t sent = 0;
  for (const Rank& rank : ranks) sent += rank.world->bytes_sent();
  const int64_t others = size - 1, moved = int64_t(elements * (real + loop_dtype_size(one->dt)));
  // Numbers sent besides: squares of each parameter's gradient, and whether bounds are known; in the first step also the
  // bounds, and a description of each device.
  const int64_t numbers = 8 * (int64_t(one->trained().size()) + 1 + 3) + (size == 1 ? 0 : DeviceLink::INTRODUCTION);
  claim("a step sends gradients and parameters once, to each rank that needs them" + name,
        sent == others * moved + size * others * numbers, std::to_string(sent));
  if (kind.architecture == &large) {
    const double wanted = double(others) / size * double(moved);
    claim("a rank sends (N - 1) / N of gradients and parameters" + name, std::abs(double(sent) / size - wanted) <= 0.01 * wanted);
  }
}

void bad_gradients(const Kind& kind, int size) {
  for (int bad : {0, size - 1})
    in_world(kind, size, 60, [&](Rank& rank) {
      const Bytes before = raw(*rank.model);
      write_gradients(*rank.model, rank.world->rank(), rank.world->rank() + 1, 1);
      const Parameter& p = rank.model->trained()[2];
      const float infinity = std::numeric_limits<float>::infinity();
      if (rank.world->rank() == bad)
        rank.model->device->run(&LoopBackend::copy_in, "copy_in", rank.model->gradient_data(p),
                                static_cast<const void*>(&infinity), sizeof infinity);
      const std::string said = error_of([&] { rank.optimizer->step(options_of(1)); });
      const std::string name = " (rank " + std::to_string(rank.world->rank()) + " of " + std::to_string(size) + ", bad on rank " +
                               std::to_string(bad) + ")";
      claim("a gradient that is not finite on one rank is every rank's error" + name,
            said.starts_with("NON_FINITE step 1: the gradient of " + p.name + " is not finite"), said);
      claim("nothing was changed" + name, raw(*rank.model) == before && rank.optimizer->steps() == 0);
      rank.model->zero_gradients();
      write_gradients(*rank.model, rank.world->rank(), rank.world->rank() + 1, 2);
      rank.optimizer->step(options_of(1));
      claim("the next step is made" + name, raw(*rank.model) != before && rank.optimizer->steps() == 1);
    });
}

std::string fail_out_of_range(Rank& rank) {
  AdamWOptions options = options_of(1);
  options.learning_rate = 1e30;
  return error_of([&] { rank.optimizer->step(options); });
}

void out_of_range(int size) {
  std::vector<Bytes> expected(static_cast<size_t>(size));
  for (bool fails : {false, true})
    in_world(kinds[1], size, 60, [&](Rank& rank) {
      const int own = rank.world->rank();
      const std::string name = " (rank " + std::to_string(own) + " of " + std::to_string(size) + ")";
      write_gradients(*rank.model, own, own + 1, 1);
      if (fails) {
        const std::string said = fail_out_of_range(rank);
        claim("an update out of range is refused" + name,
              contains(said, "NON_FINITE step 1: the update could leave the range of float32"), said);
      }
      rank.optimizer->step(options_of(1));
      if (fails) claim("a step made again has the same bits" + name, raw(*rank.model) == expected[size_t(own)]);
      else expected[size_t(own)] = raw(*rank.model);
    });
}

// Gradients that are accumulated after a failed step are added to those that it left.
void accumulated_after_failure(int size) {
  std::vector<double> norms(static_cast<size_t>(size));
  for (bool fails : {false, true})
    in_world(kinds[1], size, 60, [&](Rank& rank) {
      const int own = rank.world->rank();
      for (int part = 0; part < 2; part++) {
        Sequences s;
        for (int j = 0; j < 7; j++) s.tokens.push_back((own * 5 + part * 3 + j * j) % 12);
        s.offsets = {0, int64_t(s.tokens.size())};
        backward(*rank.model, s, Numbers(6 * size_t(rank.model->config.loops), -0.01), {}, {}, Recompute::none);
        if (fails && part == 0) fail_out_of_range(rank);
      }
      const double norm = rank.optimizer->step(options_of(1));
      if (!fails) norms[size_t(own)] = norm;
      else
        claim("gradients are added to those of a failed step (rank " + std::to_string(own) + " of " + std::to_string(size) + ")",
              std::abs(norm - norms[size_t(own)]) <= 1e-6 * norm, std::to_string(norm));
    });
}

struct Shares : test::Folder {
  std::string share(int rank) const { return *this / std::to_string(rank); }
  std::vector<std::string> shares(int size) const {
    std::vector<std::string> all;
    for (int rank = 0; rank < size; rank++) all.push_back(share(rank));
    return all;
  }
};

// The same gradient for any number of ranks: rank 0 has all of it.
void step_alike(Rank& rank, int step) {
  if (rank.world->rank() == 0) write_gradients(*rank.model, 0, 3, step);
  rank.optimizer->step(options_of(step));
}

void write_all(Model& model, const Bytes& from) {
  const uint8_t* next = from.data();
  for (const Parameter& p : model.trained()) {
    model.write_raw(p, next);
    next += p.count * loop_dtype_size(model.dt);
  }
}

// The shares saved by a world of any size can be loaded by a world of any other size.
void resumed_from_shares(const Kind& kind, int size, const std::vector<int>& others) {
  const Shares folder;
  Bytes saved, expected;
  in_world(kind, size, 60, [&](Rank& rank) {
    for (int step = 1; step <= 2; step++) step_alike(rank, step);
    rank.optimizer->save(folder.share(rank.world->rank()));
    if (rank.world->rank() == 0) saved = raw(*rank.model);
    step_alike(rank, 3);
    if (rank.world->rank() == 0) expected = raw(*rank.model);
  });
  for (int other : others)
    in_world(kind, other, 60, [&](Rank& rank) {
      write_all(*rank.model, saved);
      rank.optimizer->load(folder.shares(size));
      step_alike(rank, 3);
      claim(std::string("shares of ") + std::to_string(size) + " ranks are read by " + std::to_string(other) + " (" + kind.name +
                ", rank " + std::to_string(rank.world->rank()) + ")",
            rank.optimizer->steps() == 3 && raw(*rank.model) == expected);
    });
}

void refused_shares() {
  const Shares folder;
  in_world(kinds[1], 3, 60, [&](Rank& rank) {
    step_alike(rank, 1);
    rank.optimizer->save(folder.share(rank.world->rank()));
    step_alike(rank, 2);
    rank.world->barrier();
    if (rank.world->rank() != 1) return;
    rank.optimizer->save(folder.share(3));
  });
  in_world(kinds[1], 1, 60, [&](Rank& rank) {
    const auto refused = [&](const std::vector<std::string>& paths, const std::string& part, const char* what) {
      const std::string said = error_of([&] { rank.optimizer->load(paths); });
      claim(std::string("refused: ") + what, contains(said, "INVALID_FILE") && contains(said, part), said);
    };
    refused({folder.share(0), folder.share(2)}, "is missing; is a file of another rank?", "shares without one of them");
    refused({folder.share(0), folder.share(1)}, "is missing; is a file of another rank?", "shares without the last one");
    refused({folder.share(0), folder.share(3), folder.share(2)}, "they belong to different checkpoints", "shares of two steps");
    refused({folder.share(0), folder.share(1), folder.share(1), folder.share(2)}, "is stored twice",
            "a share that is there twice");
  });
}

void lost_rank() {
  in_world(kinds[5], 3, 0.5, [&](Rank& rank) {
    if (rank.world->rank() == 1) return;  // never arrives
    write_gradients(*rank.model, rank.world->rank(), rank.world->rank() + 1, 1);
    const std::string said = error_of([&] { rank.optimizer->step(options_of(1)); });
    claim("a rank that never comes: the step of rank " + std::to_string(rank.world->rank()) + " ends with an error",
          contains(said, "PARALLEL") && contains(said, "all_gather_v: rank ") && contains(said, "for rank 1"), said);
  });
}

void partitions() {
  for (int size = 1; size <= 5; size++)
    for (size_t elements : {size_t(0), size_t(1), size_t(63), size_t(64), size_t(65), size_t(1000), size_t(1) << 20,
                            (size_t(1) << 20) + 1, (size_t(3) << 20) + 17}) {
      const Partition partition(elements, size);
      size_t next = 0;
      bool right = true;
      for (size_t b = 0; b < partition.buckets(); b++) {
        right &= partition.bucket(b).begin == next && partition.bucket(b).count() > 0;
        for (int r = 0; r < size; r++) {
          const ElementRange share = partition.share(b, r);
          right &= share.begin == next && share.end >= share.begin && share.end <= partition.bucket(b).end;
          right &= share.count() == 0 || share.begin % Partition::ALIGNMENT == 0;
          next = share.end;
        }
        right &= next == partition.bucket(b).end;
      }
      claim("shares cover " + std::to_string(elements) + " elements once, " + std::to_string(size) + " ranks",
            right && next == elements);
    }
}

// On the emulated device, with a stand-in for NCCL that fails on one rank or on all.
void link_fault(int size) {
  in_world(kinds[1], size, 4, [&](Rank& rank) {
    write_gradients(*rank.model, rank.world->rank(), rank.world->rank() + 1, 1);
    const std::string said = error_of([&] { rank.optimizer->step(options_of(1)); });
    std::printf("# rank %d: %s\n", rank.world->rank(), said.c_str());
    claim("the step of rank " + std::to_string(rank.world->rank()) + " ends with an error", said.starts_with("PARALLEL"), said);
  });
}

void all_tests(bool every) {
  partitions();
  const bool processor = device_name.empty();
  const int most = processor ? 5 : 4;
  for (const Kind& kind : kinds)
    // The large model has millions of elements: two and the most ranks. `partitions` has the shares of the others.
    for (int size : kind.architecture == &large && !every ? std::vector{2, most} : std::vector{1, 2, 3, 4, 5}) {
      if (size > most || !runs(kind)) continue;
      equals_one_rank(kind, size, 0);
      if (processor) state_and_bytes(kind, size);
      if (kind.architecture == &small) equals_one_rank(kind, size, 1);
    }
  for (int size : every ? std::vector{2, 3, 5} : std::vector{3}) {
    early_exchange(kinds[5], size);
    overlapped(kinds[5], size);
  }
  for (int size : processor ? std::vector<int>{2, 3, 5} : std::vector<int>{2, 3}) {
    if (processor) early_exchange(kinds[1], size);
    for (const Kind& kind : {kinds[1], kinds[4]}) overlapped(kind, size);
    only_some(size);
    bad_gradients(kinds[1], size);
    out_of_range(size);
    accumulated_after_failure(size);
  }
  for (const Kind& kind : kinds) {
    if (!runs(kind)) continue;
    resumed_from_shares(kind, 4, kind.architecture == &large ? std::vector{3} : std::vector{1, 2, 3, 4});
    resumed_from_shares(kind, 1, {3});
  }
  refused_shares();
  lost_rank();
}

// For slow devices: each code path once.
void some_tests() {
  for (int size = 1; size <= 4; size++) equals_one_rank(kinds[size % 2 == 0 ? 2 : 1], size, 0);
  equals_one_rank(kinds[4], 3, 1);
  early_exchange(two_buckets, 3);
  overlapped(one_layer, 3);
  bad_gradients(kinds[1], 2);
  out_of_range(2);
}

void say_way() {
  in_world(kinds[1], 2, 60, [](Rank& rank) {
    write_gradients(*rank.model, rank.world->rank(), rank.world->rank() + 1, 1);
    rank.optimizer->step(options_of(1));
    if (rank.world->rank() == 0) std::printf("# gradients go over %s\n", rank.optimizer->parallel()->over().c_str());
  });
}

}  // namespace
}  // namespace looplm

int main(int argc, char** argv) {
  using namespace looplm;
  if (argc > 1) device_name = argv[1];
  const std::string part = argc > 2 ? argv[2] : "most";
  try {
    if (part == "fault") link_fault(3);
    else if (part == "some") some_tests();
    else all_tests(part == "every");
    if (part != "fault") say_way();
  } catch (const std::exception& error) {
    claim("no unexpected error", false, error.what());
  }
  return test::failures > 0;
}
