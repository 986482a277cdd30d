// Requests on their way in: added and cancelled from any thread, and given a row and room in the cache in the order in which they
// came.
#pragma once
#include <deque>
#include <utility>

#include "prompts.h"

namespace looplm {

class Admission {
 public:
  explicit Admission(Generation& generation)
      : g_(generation), prompts_(generation), device_bytes_(generation.model.device->memory().total) {}

  // From any thread. Throws when the request can never run.
  int64_t add(GenerateRequest request);
  void cancel(int64_t request, bool keep);

  // Takes over what other threads have added; returns the rows that were cancelled, which are still there, and whether what
  // they have is kept.
  std::vector<std::pair<Row*, bool>> receive();
  // First come, first served: a request that does not fit holds back those behind it, so that none waits for ever. One that does
  // not fit although nothing else is there fails.
  void admit();
  // A row that found no memory begins again before the others that wait, once a row has ended or, when it is alone, in a cache no
  // larger than it needs. Its draws are the same again.
  void put_back(Row& row);
  // False where that would change nothing, and where the host would have to answer a second time.
  bool may_put_back(const Row& row) const;
  // No row is left: more of them may begin at the same time. False while one that was put back has not begun again.
  bool relax();
  bool waiting() const { return !waiting_.empty(); }
  bool idle() const {  // nothing waits, and nothing has arrived
    std::lock_guard lock(mutex_);
    return waiting_.empty() && arrived_.empty();
  }
  void update_counts();
  void clear() noexcept;

 private:
  using Entry = std::pair<int64_t, GenerateRequest>;
  struct Place {  // first slots, of a prompt and of a row
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
  int64_t blocked_ = 0;            // the first request that waits, when it found no room,
  uint64_t blocked_releases_ = 0;  // and how many rows had gone by then
  int64_t limit_ = INT64_MAX;      // rows that found memory at the same time, since some did not
  bool returned_ = false;          // nothing has begun since a row was put back

  mutable std::mutex mutex_;
  std::deque<Entry> arrived_;
  std::map<int64_t, bool> cancelled_;
  int64_t next_id_ = 1;
};

}  // namespace looplm
