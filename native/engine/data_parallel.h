// Data-parallel training (ZeRO stage 1, Rajbhandari et al., arXiv 1910.02054). Every rank has all parameters and computes the
// gradient of its own sequences. Each rank owns a share of the elements and keeps the optimizer state for that share only.
//
// The arena of trained parameters is split into buckets, and each bucket into one share per rank. A step
//   1. exchanges gradients: for every bucket, rank q receives all ranks' gradients of its share and adds them in rank
//      order, in float32. The order is fixed, so reruns with the same number of ranks give the same bits;
//   2. applies AdamW to the elements that this rank owns (optimizer.h);
//   3. gathers the parameters, in their own dtype.
// Each rank sends (size - 1) / size · (gradients + parameters) bytes.
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

// Elements [begin, end) of the parameter arena.
struct ElementRange {
  size_t begin, end;
  size_t count() const { return end - begin; }
};

// Which rank owns which elements.
class Partition {
 public:
  // With one rank there is a single bucket.
  Partition(size_t elements, int size);
  size_t buckets() const;
  ElementRange bucket(size_t index) const;
  // The elements of a bucket that `rank` owns. Starts at a multiple of ALIGNMENT elements, as buckets do. May be empty in a
  // small bucket.
  ElementRange share(size_t bucket, int rank) const;

  static constexpr size_t ALIGNMENT = 64;

 private:
  size_t elements_, length_;  // length_: elements of a bucket
  int size_;
};

class DataParallel {
 public:
  DataParallel(std::shared_ptr<Communicator> world, std::shared_ptr<Model> model);
  ~DataParallel();
  DataParallel(const DataParallel&) = delete;

  const Partition& partition() const { return partition_; }
  int rank() const { return world_->rank(); }

  // Call when the gradients of all elements from `begin` on are final on this rank. Their exchange then overlaps the rest of
  // the backward pass. Optional, and ranks may call it at different points. Before the first step it exchanges nothing.
  void gradients_final_from(size_t begin);
  // Makes the next gradient accumulation call gradients_final_from. That accumulation must be the last one before the step.
  void exchange_during_next();
  size_t begun() const { return partition_.buckets() - left_; }  // number of buckets whose exchange has started
  // Exchanges the remaining buckets. Afterwards the gradients of this rank's shares are sums over all ranks. All other
  // gradients are still those of this rank alone.
  void reduce_gradients();
  // Zeroes the gradients that other ranks have added to their sums. The ranks' gradients then have the same total as before
  // reduce_gradients, which may be called again, also after further accumulation.
  void keep_only_sums();
  // Sends this rank's shares of the parameters to all ranks, and receives theirs.
  void gather_parameters();
  // Sums over the ranks, added in rank order.
  void sum(std::vector<double>& values) { world_->all_reduce(LOOP_COMM_SUM, values); }

  // Time spent on gradient exchanges so far, in seconds: under way in the background, and blocking this rank's computation.
  struct Times {
    double exchanging = 0, waiting = 0;
  };
  Times times() const { return {world_->exchange_seconds() + linked_seconds_, waiting_}; }
  // What carries the exchanges, such as "NCCL 2.23.4" or the name of an MPI; empty before the first exchange.
  const std::string& over() const { return over_; }

 private:
  using Clock = std::chrono::steady_clock;
  // The exchange of one bucket. The other ranks' parts of this rank's share arrive at `slots`, in rank order.
  struct Exchange {
    size_t bucket = 0;
    Buffer slots;                    // device memory
    std::vector<uint8_t> out, into;  // host copies, for devices with separate memory
    std::future<void> done;          // of an exchange over the world; the link keeps track of its own
    Clock::time_point began;
  };
  void choose_link();
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
  char* gradients_ = nullptr;  // gradient of the arena's first element
  size_t left_;                // buckets whose exchange has not started; they start from the last one down
  size_t final_from_ = SIZE_MAX;
  double waiting_ = 0, linked_seconds_ = 0;
  Clock::time_point last_arrival_{};  // over the link
  std::unique_ptr<DeviceLink> link_;  // NULL: exchanges go through the world
  std::string over_;
  std::deque<Exchange> under_way_;
  std::vector<Exchange> spare_;  // finished exchanges whose buffers are reused
};

}  // namespace looplm
