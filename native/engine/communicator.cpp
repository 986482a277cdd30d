#include "communicator.h"

#include <algorithm>
#include <chrono>
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

void Communicator::loop() {
  for (;;) {
    std::list<Task> own;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      own.splice(own.begin(), queue_, queue_.begin());
    }
    std::exception_ptr error;
    try {
      own.front().work();
    } catch (...) {
      error = std::current_exception();
    }
    own.front().work = nullptr;
    {
      std::lock_guard lock(mutex_);
      unfinished_--;
    }
    if (error) own.front().done.set_exception(error);
    else own.front().done.set_value();
  }
}

std::future<void> Communicator::start(const char* operation, std::function<int()> call, bool exchange) {
  std::lock_guard lock(mutex_);
  if (reserved_ && !exchange)
    throw Error("PARALLEL", operation,
                std::string(operation) +
                    ": the exchange of gradients has begun in the backward pass: make the optimizer's step " +
                    "before any other operation of the processes");
  if (stopping_) throw Error("PARALLEL", operation, std::string(operation) + ": this process has left its world");
  const auto work = [this, operation, call = std::move(call)] {
    if (call() != 0) throw Error("PARALLEL", operation, table_->last_error(ctx_));
  };
  queue_.push_back({work, {}});
  unfinished_++;
  changed_.notify_one();
  return queue_.back().done.get_future();
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
  const auto call = [this, send = std::move(send), send_bytes = std::move(send_bytes), receive = std::move(receive),
                     receive_bytes = std::move(receive_bytes)] {
    const auto began = std::chrono::steady_clock::now();
    const int status = table_->all_to_all_v(ctx_, send.data(), send_bytes.data(), receive.data(), receive_bytes.data());
    exchange_seconds_ = exchange_seconds_ + std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    return status;
  };
  return start("all_to_all_v", call, true);
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
