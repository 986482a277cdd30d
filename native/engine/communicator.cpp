#include "communicator.h"

#include <algorithm>
#include <utility>

#include "error.h"

namespace looplm {

Communicator::Communicator(const LoopComm* table, void* ctx, double timeout)
    : table_(table),
      ctx_(ctx),
      rank_(table->rank(ctx)),
      size_(table->size(ctx)),
      local_rank_(table->local_rank(ctx)),
      description_(table->describe(ctx)),
      timeout_(timeout),
      thread_([this] { loop(); }) {}

Communicator::~Communicator() { close(); }

// While an exchange is under way, polls for a message. If the last one came less than 2 ms ago, polls without a pause; else
// every 50 µs, so that other ranks on this machine get the processor.
void Communicator::loop() {
  using namespace std::chrono_literals;
  for (;;) {
    std::list<Task> own;
    {
      std::unique_lock lock(mutex_);
      const auto called = [this] { return stopping_ || !queue_.empty(); };
      if (exchanges_.empty()) changed_.wait(lock, called);
      else if (std::chrono::steady_clock::now() - heard_ > 2ms) changed_.wait_for(lock, 50us, [this] { return !queue_.empty(); });
      if (queue_.empty() && exchanges_.empty() && stopping_) return;
      if (!queue_.empty()) own.splice(own.begin(), queue_, queue_.begin());
    }
    if (!own.empty()) run(own.front());
    if (!exchanges_.empty()) poll_exchanges();
  }
}

void Communicator::run(Task& task) {
  std::exception_ptr error;
  try {
    task.work();
  } catch (...) {
    error = std::current_exception();
  }
  task.work = nullptr;
  {
    std::lock_guard lock(mutex_);
    unfinished_--;
  }
  if (error) task.done.set_exception(error);
  else task.done.set_value();
}

void Communicator::poll_exchanges() {
  bool heard = false;
  for (auto e = exchanges_.begin(); e != exchanges_.end();) {
    const int status = table_->exchanged(ctx_, e->handle);
    if (status == LOOP_COMM_UNDER_WAY) {
      ++e;
      continue;
    }
    heard = true;
    {
      std::lock_guard lock(mutex_);
      unfinished_--;
    }
    if (status) e->done.set_exception(std::make_exception_ptr(Error("PARALLEL", "exchange", table_->last_error(ctx_))));
    else e->done.set_value();
    e = exchanges_.erase(e);
  }
  const auto now = std::chrono::steady_clock::now();
  exchange_seconds_ = exchange_seconds_ + std::chrono::duration<double>(now - polled_).count();
  polled_ = now;
  if (heard) heard_ = now;
  else std::this_thread::yield();
}

std::future<void> Communicator::enqueue(const char* operation, std::function<void()> work) {
  std::lock_guard lock(mutex_);
  if (stopping_) throw Error("PARALLEL", operation, std::string(operation) + ": this process has left its world");
  queue_.push_back({std::move(work), {}});
  unfinished_++;
  changed_.notify_one();
  return queue_.back().done.get_future();
}

std::future<void> Communicator::start(const char* operation, std::function<int()> call) {
  return enqueue(operation, [this, operation, call = std::move(call)] {
    if (call() != 0) throw Error("PARALLEL", operation, table_->last_error(ctx_));
  });
}

std::future<void> Communicator::start_all_to_all_v(std::vector<const void*> send, std::vector<int64_t> send_bytes,
                                                   std::vector<void*> receive, std::vector<int64_t> receive_bytes) {
  return start("all_to_all_v", [this, send = std::move(send), send_bytes = std::move(send_bytes), receive = std::move(receive),
                                receive_bytes = std::move(receive_bytes)] {
    return table_->all_to_all_v(ctx_, send.data(), send_bytes.data(), receive.data(), receive_bytes.data());
  });
}
void Communicator::all_to_all_v(const std::vector<const void*>& send, const std::vector<int64_t>& send_bytes,
                                const std::vector<void*>& receive, const std::vector<int64_t>& receive_bytes) {
  start_all_to_all_v(send, send_bytes, receive, receive_bytes).get();
}

std::future<void> Communicator::start_exchange(std::vector<const void*> send, std::vector<int64_t> send_bytes,
                                               std::vector<void*> receive, std::vector<int64_t> receive_bytes) {
  const auto done = std::make_shared<std::promise<void>>();
  std::future<void> arrived = done->get_future();
  enqueue("exchange", [this, done, send = std::move(send), send_bytes = std::move(send_bytes), receive = std::move(receive),
                       receive_bytes = std::move(receive_bytes)] {
    void* handle = table_->exchange(ctx_, send.data(), send_bytes.data(), receive.data(), receive_bytes.data());
    if (!handle) {
      done->set_exception(std::make_exception_ptr(Error("PARALLEL", "exchange", table_->last_error(ctx_))));
      return;
    }
    {
      std::lock_guard lock(mutex_);
      unfinished_++;
    }
    heard_ = std::chrono::steady_clock::now();
    if (exchanges_.empty()) polled_ = heard_;
    exchanges_.push_back({handle, std::move(*done)});
  });
  return arrived;
}

std::future<void> Communicator::start_all_gather_v(void* data, std::vector<int64_t> bytes) {
  return start("all_gather_v", [this, data, bytes = std::move(bytes)] { return table_->all_gather_v(ctx_, data, bytes.data()); });
}
void Communicator::all_gather_v(void* data, const std::vector<int64_t>& bytes) { start_all_gather_v(data, bytes).get(); }

void Communicator::all_reduce(LoopCommReduce op, std::vector<double>& values) {
  start("all_reduce", [&] { return table_->all_reduce(ctx_, op, int64_t(values.size()), values.data()); }).get();
}
void Communicator::broadcast(int root, void* data, int64_t bytes) {
  start("broadcast", [=, this] { return table_->broadcast(ctx_, root, data, bytes); }).get();
}
void Communicator::barrier() {
  start("barrier", [this] { return table_->barrier(ctx_); }).get();
}

std::vector<Communicator::Bytes> Communicator::gather(const Bytes& own) {
  const size_t size = size_t(size_), rank = size_t(rank_);
  std::vector<int64_t> bytes(size);
  bytes[rank] = int64_t(own.size());
  all_gather_v(bytes.data(), std::vector<int64_t>(size, sizeof(int64_t)));
  Bytes all;
  for (size_t q = 0; q < size; q++) {
    const size_t begin = all.size();
    all.resize(begin + size_t(bytes[q]));
    if (q == rank) std::copy(own.begin(), own.end(), all.begin() + ptrdiff_t(begin));
  }
  all_gather_v(all.data(), bytes);
  std::vector<Bytes> parts;
  auto at = all.begin();
  for (size_t q = 0; q < size; at += bytes[q++]) parts.emplace_back(at, at + bytes[q]);
  return parts;
}

std::vector<Communicator::Bytes> Communicator::exchange(const std::vector<Bytes>& parts) {
  const size_t size = size_t(size_);
  std::vector<int64_t> send_bytes, receive_bytes(size), of_count(size, sizeof(int64_t));
  std::vector<const void*> counts, send;
  std::vector<void*> into, receive;
  for (size_t q = 0; q < size; q++) send_bytes.push_back(int64_t(parts[q].size()));
  for (size_t q = 0; q < size; q++) {
    counts.push_back(&send_bytes[q]), into.push_back(&receive_bytes[q]);
    send.push_back(parts[q].data());
  }
  all_to_all_v(counts, of_count, into, of_count);
  std::vector<Bytes> out;
  for (size_t q = 0; q < size; q++) out.emplace_back(size_t(receive_bytes[q]));
  for (Bytes& part : out) receive.push_back(part.data());
  all_to_all_v(send, send_bytes, receive, receive_bytes);
  return out;
}

void Communicator::broadcast(int root, Bytes& data) {
  int64_t bytes = int64_t(data.size());
  broadcast(root, &bytes, sizeof bytes);
  data.resize(size_t(bytes));
  broadcast(root, data.data(), bytes);
}

bool Communicator::idle() const {
  std::lock_guard lock(mutex_);
  return unfinished_ == 0;
}

void Communicator::close() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
  if (closed_) return;
  sent_ = table_->bytes_sent(ctx_);
  closed_ = true;
  table_->close(ctx_);
}

void Communicator::abort(const std::string& message, int status) {
  if (!closed_) table_->abort(ctx_, message.c_str(), status);
}

}  // namespace looplm
