// Data-parallel training: every rank has all parameters and the gradient of its own sequences; each owns a share of the elements,
// for which it alone keeps the optimizer's state (ZeRO stage 1, Rajbhandari et al., arXiv 1910.02054).
//
// The arena of what is trained is cut into buckets, and each bucket into one share per rank. A step
//   1. exchanges gradients: of every bucket, rank q gets the parts of all ranks for its share and adds them in the order of the
//      ranks, in float32. The order is fixed, so the same world gives the same bits in every run;
//   2. lets AdamW change the elements of its own shares (optimizer.h);
//   3. gathers the parameters, in their own dtype.
// On the wire per rank: (size - 1) / size · (gradients + parameters).
#pragma once
#include <chrono>
#include <deque>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "communicator.h"
#include "device_link.h"
#include "model.h"

namespace looplm {

// Elements [begin, end) of the arena.
struct ElementRange {
  size_t begin, end;
  size_t count() const { return end - begin; }
};

// Who owns which elements.
class Partition {
 public:
  // One bucket when there is one rank.
  Partition(size_t elements, int size);
  size_t buckets() const;
  ElementRange bucket(size_t index) const;
  // Starts at a multiple of ALIGNMENT elements, as buckets do. Empty where a bucket has fewer elements than ranks.
  ElementRange share(size_t bucket, int rank) const;

  static constexpr size_t ALIGNMENT = 64;

 private:
  size_t elements_, length_;  // length_: of a bucket
  int size_;
};

class DataParallel {
 public:
  DataParallel(std::shared_ptr<Communicator> world, std::shared_ptr<Model> model);
  ~DataParallel();
  DataParallel(const DataParallel&) = delete;

  const Partition& partition() const { return partition_; }
  int rank() const { return world_->rank(); }

  // The gradients of all elements from `begin` on are final on this rank: their exchange begins while the backward pass goes on
  // with those before them. Optional, and ranks may differ. Before the first step nothing begins.
  void gradients_final_from(size_t begin);
  // The next accumulation of gradients says so by itself. It must be the last one before the step.
  void exchange_during_next();
  size_t begun() const { return partition_.buckets() - left_; }  // buckets whose exchange has begun
  // Exchanges what is left. Then the gradients of this rank's shares are the sums over all ranks; the others are this rank's own.
  void reduce_gradients();
  // Gives every rank the parameters of all shares.
  void gather_parameters();
  // Sums over the ranks, added in their order.
  void sum(std::vector<double>& values) { world_->all_reduce(LOOP_COMM_SUM, values); }

  // Of the exchanges of gradients so far, in seconds: how long they were under way on the communication thread, and how long this
  // rank's computation stood still for them.
  struct Times {
    double exchanging = 0, waiting = 0;
  };
  Times times() const { return {world_->exchange_seconds() + linked_seconds_, waiting_}; }
  // What carries them: "NCCL 2.23.4", or an MPI; empty before the first exchange.
  const std::string& over() const { return over_; }

 private:
  using Clock = std::chrono::steady_clock;
  // The exchange of one bucket. Other ranks' parts of this rank's share arrive at `slots`, one after the other.
  struct Exchange {
    size_t bucket = 0;
    Buffer slots;                    // device memory
    std::vector<uint8_t> out, into;  // host copies, on devices with memory of their own
    std::future<void> done;          // of a world's exchange; the link knows of its own
    Clock::time_point began;
  };
  void find_way();
  void advance();
  void start_exchange(size_t bucket);
  bool finish_exchange(bool wait);
  void forget_exchanges() noexcept;
  void add_in_rank_order(Exchange& exchange);
  void gather_in_place(char* parameters);
  void gather_linked(char* parameters);
  void gather_staged(char* parameters);
  void* gradient(size_t element) const { return gradients_ + element * loop_dtype_size(model_->real()); }
  std::vector<int64_t> share_bytes(size_t bucket, size_t element_size) const;

  const std::shared_ptr<Communicator> world_;
  const std::shared_ptr<Model> model_;
  const Partition partition_;
  char* gradients_ = nullptr;  // of the arena's first element
  size_t left_;                // buckets whose exchange has not begun; they begin from the last one down
  size_t final_from_ = SIZE_MAX;
  double waiting_ = 0, linked_seconds_ = 0;
  Clock::time_point last_arrival_{};  // over the link
  std::unique_ptr<DeviceLink> link_;  // NULL: the world carries
  std::string over_;
  std::deque<Exchange> under_way_;
  std::vector<Exchange> spare_;  // whose memory is used again
};

}  // namespace looplm
