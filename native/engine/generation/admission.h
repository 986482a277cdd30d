// The queue of requests. Any thread adds and cancels requests; they get a row and cache slots in the order in which they
// arrived.
#pragma once
#include <deque>
#include <utility>

#include "prompts.h"

namespace looplm {

class Admission {
 public:
  explicit Admission(Generation& generation)
      : g_(generation), prompts_(generation), device_bytes_(generation.model.device->memory().total) {}

  // Callable from any thread. Throws if the request can never run.
  int64_t add(GenerateRequest request);
  void cancel(int64_t request, bool keep);

  // Takes over the requests that other threads added. Returns the rows that were cancelled but still exist, each with its
  // `keep` flag.
  std::vector<std::pair<Row*, bool>> receive();
  // First come, first served: a request that does not fit blocks those after it, so that none waits forever. It fails only if
  // it does not fit although nothing else is running.
  void admit();
  // Restarts a row that ran out of memory: it goes to the front of the queue and starts again after another row has ended. If
  // it is the only row, it starts again with a cache of exactly the size that it needs. It draws the same tokens again.
  void put_back(Row& row);
  // False if a restart would not help, or if the host (the caller's program) would have to answer twice for the same draw.
  bool may_put_back(const Row& row) const;
  // Drops all that no row uses from the cache, and frees its memory. No row may be left.
  void empty_cache();
  // Called when no row is left: allows more rows to run at the same time again. Returns false while a restarted row has not
  // begun.
  bool relax();
  bool waiting() const { return !waiting_.empty(); }
  bool idle() const {  // no request is waiting or has just arrived
    std::lock_guard lock(mutex_);
    return waiting_.empty() && arrived_.empty();
  }
  void update_counts();
  void clear() noexcept;

 private:
  using Entry = std::pair<int64_t, GenerateRequest>;
  struct Place {  // first cache slots of a prompt and of a row
    int64_t prompt = -1, row = -1, prompt_recent = -1, row_recent = -1;
    bool found = false;
  };
  bool admit_first();
  Place find_place(const Prompt* prompt, const GenerateRequest& request);
  bool make_room(int64_t slots, int64_t parent, bool& grown);
  bool evict(int64_t parent);
  int64_t slots_of_waiting() const;
  std::string too_large(const GenerateRequest& request, int64_t room) const;

  Generation& g_;
  Prompts prompts_;
  const size_t device_bytes_;
  std::deque<Entry> waiting_;
  int64_t blocked_ = 0;            // the first waiting request, if it found no room,
  uint64_t blocked_releases_ = 0;  // and the number of rows that had ended by then
  int64_t limit_ = INT64_MAX;      // how many rows may run at once, after more than that ran out of memory
  bool returned_ = false;          // a row was put back, and no row has begun since

  mutable std::mutex mutex_;
  std::deque<Entry> arrived_;
  std::map<int64_t, bool> cancelled_;
  int64_t next_id_ = 1;
};

}  // namespace looplm
