// A rank's place in its world, and the thread that makes all calls of the communication table: work on the device goes on
// meanwhile.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <future>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../comm.h"

namespace looplm {

class Communicator {
 public:
  // An open context, which now belongs to the communicator, and the seconds that its operations wait.
  Communicator(const LoopComm* table, void* ctx, double timeout = 600);
  ~Communicator();  // leaves the world unless `close` did
  Communicator(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }
  const std::string& description() const { return description_; }
  double timeout() const { return timeout_; }
  int64_t bytes_sent() const { return linked_ + (closed_ ? sent_.load() : table_->bytes_sent(ctx_)); }  // to other ranks
  void count_sent(int64_t bytes) { linked_ += bytes; }                                                  // by another way

  // Operations of all ranks, as comm.h describes them. They are made in the order of the calls; `start_…` does not wait: buffers
  // stay as they are until `get` of what it returns. Error PARALLEL names operation, rank, cause and remedy.
  void all_to_all_v(const std::vector<const void*>& send, const std::vector<int64_t>& send_bytes,
                    const std::vector<void*>& receive, const std::vector<int64_t>& receive_bytes);
  std::future<void> start_all_to_all_v(std::vector<const void*> send, std::vector<int64_t> send_bytes, std::vector<void*> receive,
                                       std::vector<int64_t> receive_bytes);
  // Exchanges are matched with each other alone: ranks may begin them before or after other operations, which do not wait for
  // them.
  std::future<void> start_exchange(std::vector<const void*> send, std::vector<int64_t> send_bytes, std::vector<void*> receive,
                                   std::vector<int64_t> receive_bytes);
  double exchange_seconds() const { return exchange_seconds_; }  // in which at least one was under way

  void all_gather_v(void* data, const std::vector<int64_t>& bytes);
  std::future<void> start_all_gather_v(void* data, std::vector<int64_t> bytes);
  void all_reduce(LoopCommReduce op, std::vector<double>& values);
  void broadcast(int root, void* data, int64_t bytes);
  void barrier();

  // The same for what has a size that only its sender knows.
  using Bytes = std::vector<uint8_t>;
  std::vector<Bytes> gather(const Bytes& own);                   // of every rank
  std::vector<Bytes> exchange(const std::vector<Bytes>& parts);  // parts[q] for rank q; what each rank had for this one
  void broadcast(int root, Bytes& data);

  // Whether no operation is waiting or under way.
  bool idle() const;
  // Leaves the world once all ranks do so, after what is under way. Later calls fail. By the thread that opened the context.
  void close();
  // Any thread. Ends the processes of all ranks, or in a world of threads makes all calls fail.
  void abort(const std::string& message, int status);

 private:
  struct Task {
    std::function<void()> work;
    std::promise<void> done;
  };
  std::future<void> start(const char* operation, std::function<int()> call);
  std::future<void> enqueue(const char* operation, std::function<void()> work);
  void loop();
  void run(Task& task);
  void poll_exchanges();

  const LoopComm* const table_;
  void* const ctx_;
  const int rank_, size_, local_rank_;
  const std::string description_;
  const double timeout_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::list<Task> queue_;
  size_t unfinished_ = 0;  // queued or under way
  // Of the thread alone: exchanges under way, and when it last heard of one and last looked.
  struct Exchange {
    void* handle;
    std::promise<void> done;
  };
  std::list<Exchange> exchanges_;
  std::chrono::steady_clock::time_point heard_{}, polled_{};
  bool stopping_ = false;
  std::atomic<bool> closed_{false};
  std::atomic<double> exchange_seconds_{0};
  std::atomic<int64_t> sent_{0}, linked_{0};
  std::thread thread_;
};

}  // namespace looplm
