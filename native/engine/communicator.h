// One rank of a parallel run, and the thread that makes all of its calls to the communication table. The device keeps
// computing in the meantime.
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
  // ctx: an open context; the communicator takes ownership. timeout: seconds that an operation waits for the other ranks.
  Communicator(const LoopComm* table, void* ctx, double timeout = 600);
  ~Communicator();  // leaves the world unless close() was called
  Communicator(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int local_rank() const { return local_rank_; }
  const std::string& description() const { return description_; }
  double timeout() const { return timeout_; }
  // to other ranks, including bytes that the device link sent
  int64_t bytes_sent() const { return linked_ + (closed_ ? sent_.load() : table_->bytes_sent(ctx_)); }
  void count_sent(int64_t bytes) { linked_ += bytes; }  // adds bytes sent over the device link (NCCL)

  // Collective operations, as comm.h describes them. They run in the order of the calls. `start_…` returns at once; the
  // buffers must stay unchanged until `get` on the returned future. On failure they throw PARALLEL with the operation, the
  // rank, the cause and what to do.
  void all_to_all_v(const std::vector<const void*>& send, const std::vector<int64_t>& send_bytes,
                    const std::vector<void*>& receive, const std::vector<int64_t>& receive_bytes);
  std::future<void> start_all_to_all_v(std::vector<const void*> send, std::vector<int64_t> send_bytes, std::vector<void*> receive,
                                       std::vector<int64_t> receive_bytes);
  // Exchanges are matched only with exchanges: a rank may start one before or after other operations, and those do not wait
  // for it.
  std::future<void> start_exchange(std::vector<const void*> send, std::vector<int64_t> send_bytes, std::vector<void*> receive,
                                   std::vector<int64_t> receive_bytes);
  double exchange_seconds() const { return exchange_seconds_; }  // total time in which at least one exchange was under way

  void all_gather_v(void* data, const std::vector<int64_t>& bytes);
  std::future<void> start_all_gather_v(void* data, std::vector<int64_t> bytes);
  void all_reduce(LoopCommReduce op, std::vector<double>& values);
  void broadcast(int root, void* data, int64_t bytes);
  void barrier();

  // The same for byte strings whose length only the sender knows.
  using Bytes = std::vector<uint8_t>;
  std::vector<Bytes> gather(const Bytes& own);                   // the strings of all ranks, in rank order
  std::vector<Bytes> exchange(const std::vector<Bytes>& parts);  // parts[q] goes to rank q; returns what each rank sent to
                                                                 // this one
  void broadcast(int root, Bytes& data);

  // Whether no operation is queued or under way.
  bool idle() const;
  // Leaves the world together with all other ranks, after the operations under way. Later calls fail. Call it on the thread
  // that opened the context.
  void close();
  // Callable from any thread. Ends the processes of all ranks. In a world of threads it makes all calls fail instead.
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
  // Used only by the communication thread: exchanges under way, when it last heard of one and last polled.
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
