#include "threads.h"
#include "../numeric/decimal.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace looplm {

namespace threads {
namespace {

// A rank's arguments of an operation. The other ranks read them between the two meetings of the operation.
struct Call {
  const char* operation = "";
  int32_t detail = 0;  // root or op; must be the same on all ranks
  const void* const* send = nullptr;
  const int64_t* bytes = nullptr;  // bytes for each rank, or of each rank's part
  void* data = nullptr;
  int64_t count = 0;
};

// An exchange that a rank has started. Exchanges of different ranks match if they have the same number, counted from 0.
struct Exchange {
  size_t number;
  std::vector<const void*> send;
  std::vector<int64_t> send_bytes;
  std::vector<void*> receive;
  std::vector<int64_t> receive_bytes;
  std::chrono::steady_clock::time_point began;
  bool taken = false;
};
struct Exchanges {  // all ranks' exchanges of one number, and how many ranks have received their data
  std::vector<const Exchange*> of;
  int taken = 0, ended = 0;
};

struct World {
  World(int size, double timeout) : size(size), timeout(timeout), calls(size), present(size, false) {}
  const int size;
  const double timeout;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Call> calls;
  std::vector<bool> present;  // in the current meeting
  int arrived = 0;
  uint64_t meetings = 0;
  std::map<size_t, Exchanges> exchanges;
  std::string failure;  // the first failure
  int status = 0;
};

struct Rank {
  Rank(std::shared_ptr<World> world, int rank) : world(std::move(world)), rank(rank) {}
  const std::shared_ptr<World> world;
  const int rank;
  size_t exchanges = 0;  // number started
  std::atomic<int64_t> sent{0};
  std::string error;  // this rank's copy of the error
};
Rank& at(void* ctx) { return *static_cast<Rank*>(ctx); }

int fail(World& world, int status, const std::string& message) {  // under the lock
  if (world.failure.empty()) world.failure = message, world.status = status;
  world.changed.notify_all();
  return world.status;
}

std::string absent(const World& world) {
  std::string text;
  for (int q = 0; q < world.size; q++)
    if (!world.present[q]) text += (text.empty() ? "rank " : ", rank ") + std::to_string(q);
  return text;
}

// Whether this rank is the last to arrive, which completes the meeting.
bool last_of(World& world, int rank) {  // under the lock
  world.present[rank] = true;
  if (++world.arrived < world.size) return false;
  world.arrived = 0;
  world.present.assign(world.size, false);
  world.meetings++;
  world.changed.notify_all();
  return true;
}

// Waits until every rank has arrived. Returns 0 on all ranks or on none.
int meet(Rank& own, const char* operation) {
  World& world = *own.world;
  std::unique_lock lock(world.mutex);
  if (!world.failure.empty()) return world.status;
  const uint64_t meeting = world.meetings;
  if (last_of(world, own.rank)) return 0;
  const auto over = [&] { return world.meetings != meeting || !world.failure.empty(); };
  if (!world.changed.wait_for(lock, std::chrono::duration<double>(world.timeout), over)) {
    const std::string text = operation + std::string(": rank ") + std::to_string(own.rank) + " of " + std::to_string(world.size) +
                             " waited " + decimal(world.timeout) + " s for " + absent(world) +
                             "; look for the error of that rank, or raise the time limit";
    return fail(world, LOOP_COMM_TIMEOUT, text);
  }
  return world.meetings == meeting ? world.status : 0;
}

// Waits until no rank reads this one's buffers any more. All ranks of the operation call this, even after a failure.
void leave(Rank& own) {
  World& world = *own.world;
  std::unique_lock lock(world.mutex);
  const uint64_t meeting = world.meetings;
  if (!last_of(world, own.rank)) world.changed.wait(lock, [&] { return world.meetings != meeting; });
}

// Checks that all ranks called the same operation.
int compare(Rank& own) {
  World& world = *own.world;
  std::lock_guard lock(world.mutex);
  if (!world.failure.empty()) return world.status;
  const Call& first = world.calls[0];
  for (int q = 1; q < world.size; q++) {
    const Call& call = world.calls[q];
    if (std::strcmp(call.operation, first.operation) != 0)
      return fail(world, LOOP_COMM_FAILED,
                  std::string("rank 0 calls ") + first.operation + ", rank " + std::to_string(q) + " calls " + call.operation +
                      ": all ranks must make the same calls");
    if (call.detail != first.detail || call.count != first.count)
      return fail(world, LOOP_COMM_FAILED,
                  std::string(first.operation) + ": rank 0 and rank " + std::to_string(q) + " call it with different arguments");
  }
  return 0;
}

int sizes_differ(Rank& own, const char* operation, int from, int to, int64_t sent, int64_t received) {
  std::lock_guard lock(own.world->mutex);
  return fail(*own.world, LOOP_COMM_FAILED,
              std::string(operation) + ": rank " + std::to_string(from) + " sends " + std::to_string(sent) + " bytes to rank " +
                  std::to_string(to) + ", which takes " + std::to_string(received));
}

// Runs one operation: all ranks meet, each copies what it receives from the others' arguments, then all leave.
template <class Take>
int together(void* ctx, const Call& call, Take take) {
  Rank& own = at(ctx);
  own.world->calls[own.rank] = call;
  int status = meet(own, call.operation);
  if (!status) {
    status = compare(own);
    if (!status) status = take(own);
    leave(own);
  }
  std::lock_guard lock(own.world->mutex);
  if (!status) status = own.world->status;  // an error found by one rank is the error of all
  if (status) own.error = own.world->failure;
  return status;
}

int all_to_all_v(void* ctx, const void* const* send, const int64_t* send_bytes, void* const* receive,
                 const int64_t* receive_bytes) {
  Call call{"all_to_all_v"};
  call.send = send, call.bytes = send_bytes;
  return together(ctx, call, [&](Rank& own) {
    for (int q = 0; q < own.world->size; q++) {
      const Call& other = own.world->calls[q];
      if (other.bytes[own.rank] != receive_bytes[q])
        return sizes_differ(own, "all_to_all_v", q, own.rank, other.bytes[own.rank], receive_bytes[q]);
      if (receive_bytes[q] > 0 && other.send[own.rank] != receive[q])
        std::memcpy(receive[q], other.send[own.rank], size_t(receive_bytes[q]));
      if (q != own.rank) own.sent += send_bytes[q];
    }
    return 0;
  });
}

void* exchange(void* ctx, const void* const* send, const int64_t* send_bytes, void* const* receive,
               const int64_t* receive_bytes) {
  Rank& own = at(ctx);
  World& world = *own.world;
  const size_t size = size_t(world.size);
  std::lock_guard lock(world.mutex);
  if (!world.failure.empty()) return own.error = world.failure, nullptr;
  auto* e = new Exchange{own.exchanges++,
                         std::vector<const void*>(send, send + size),
                         std::vector<int64_t>(send_bytes, send_bytes + size),
                         std::vector<void*>(receive, receive + size),
                         std::vector<int64_t>(receive_bytes, receive_bytes + size),
                         std::chrono::steady_clock::now()};
  Exchanges& all = world.exchanges[e->number];
  all.of.resize(size);
  all.of[size_t(own.rank)] = e;
  for (size_t q = 0; q < size; q++)
    if (int(q) != own.rank) own.sent += send_bytes[q];
  return e;
}

// Copies what this rank receives, once all ranks have started the exchange.
int take(Rank& own, Exchange& e, Exchanges& all) {  // under the lock
  World& world = *own.world;
  const size_t rank = size_t(own.rank);
  std::string missing;
  for (size_t q = 0; q < all.of.size(); q++)
    if (!all.of[q]) missing += (missing.empty() ? "rank " : ", rank ") + std::to_string(q);
  if (!missing.empty()) {
    if (std::chrono::duration<double>(std::chrono::steady_clock::now() - e.began).count() <= world.timeout)
      return LOOP_COMM_UNDER_WAY;
    return fail(world, LOOP_COMM_TIMEOUT,
                "exchange: rank " + std::to_string(own.rank) + " of " + std::to_string(world.size) + " waited " +
                    decimal(world.timeout) + " s for " + missing + "; look for the error of that rank, or raise the time limit");
  }
  for (size_t q = 0; q < all.of.size(); q++) {
    const int64_t sent = all.of[q]->send_bytes[rank];
    if (sent != e.receive_bytes[q])
      return fail(world, LOOP_COMM_FAILED,
                  "exchange: rank " + std::to_string(q) + " sends " + std::to_string(sent) + " bytes to rank " +
                      std::to_string(own.rank) + ", which takes " + std::to_string(e.receive_bytes[q]));
  }
  for (size_t q = 0; q < all.of.size(); q++)
    if (e.receive_bytes[q] > 0 && all.of[q]->send[rank] != e.receive[q])
      std::memcpy(e.receive[q], all.of[q]->send[rank], size_t(e.receive_bytes[q]));
  e.taken = true;
  all.taken++;
  return 0;
}

// Complete only when all ranks have received their data, because they read this rank's buffers until then.
int exchanged(void* ctx, void* exchange) {
  Rank& own = at(ctx);
  World& world = *own.world;
  std::unique_ptr<Exchange> e(static_cast<Exchange*>(exchange));
  std::lock_guard lock(world.mutex);
  Exchanges& all = world.exchanges[e->number];
  int status = world.failure.empty() ? 0 : world.status;
  if (!status && !e->taken) status = take(own, *e, all);
  if (!status && all.taken < world.size) status = LOOP_COMM_UNDER_WAY;
  if (status == LOOP_COMM_UNDER_WAY) {
    e.release();
    return status;
  }
  if (status) own.error = world.failure;
  else if (++all.ended == world.size) world.exchanges.erase(e->number);
  return status;
}

int all_gather_v(void* ctx, void* data, const int64_t* bytes) {
  Call call{"all_gather_v"};
  call.data = data, call.bytes = bytes;
  return together(ctx, call, [&](Rank& own) {
    size_t offset = 0;
    for (int q = 0; q < own.world->size; q++) {
      const Call& other = own.world->calls[q];
      if (other.bytes[q] != bytes[q]) return sizes_differ(own, "all_gather_v", q, own.rank, other.bytes[q], bytes[q]);
      if (q != own.rank && bytes[q] > 0)
        std::memcpy(static_cast<char*>(data) + offset, static_cast<const char*>(other.data) + offset, size_t(bytes[q]));
      offset += size_t(bytes[q]);
    }
    own.sent += bytes[own.rank] * (own.world->size - 1);
    return 0;
  });
}

double larger(double a, double b) { return std::isnan(a) || a > b ? a : b; }

int all_reduce(void* ctx, LoopCommReduce op, int64_t count, double* values) {
  const std::vector<double> mine(values, values + count);  // a copy, because other ranks read it while `values` is written
  Call call{"all_reduce"};
  call.detail = op, call.count = count, call.data = const_cast<double*>(mine.data());
  return together(ctx, call, [&](Rank& own) {
    for (int64_t i = 0; i < count; i++)
      for (int q = 0; q < own.world->size; q++) {
        const double other = static_cast<const double*>(own.world->calls[q].data)[i];
        values[i] = q == 0 ? other : op == LOOP_COMM_SUM ? values[i] + other : larger(values[i], other);
      }
    own.sent += count * int64_t(sizeof(double)) * (own.world->size - 1);
    return 0;
  });
}

int broadcast(void* ctx, int32_t root, void* data, int64_t bytes) {
  Call call{"broadcast"};
  call.detail = root, call.count = bytes, call.data = data;
  return together(ctx, call, [&](Rank& own) {
    if (own.rank != root && bytes > 0) std::memcpy(data, own.world->calls[root].data, size_t(bytes));
    if (own.rank == root) own.sent += bytes * (own.world->size - 1);
    return 0;
  });
}

int barrier(void* ctx) {
  return together(ctx, Call{"barrier"}, [](Rank&) { return 0; });
}

void* open(const LoopCommOptions*) { return nullptr; }
void close(void* ctx) { delete static_cast<Rank*>(ctx); }
void abort(void* ctx, const char* message, int32_t) {
  Rank& own = at(ctx);
  std::lock_guard lock(own.world->mutex);
  fail(*own.world, LOOP_COMM_FAILED, "rank " + std::to_string(own.rank) + " failed: " + message);
}
const char* last_error(void* ctx) { return ctx ? at(ctx).error.c_str() : "create ranks that are threads with open_threads"; }
const char* describe(void*) { return "threads of one process"; }
int32_t rank(void* ctx) { return at(ctx).rank; }
int32_t size(void* ctx) { return at(ctx).world->size; }
int64_t bytes_sent(void* ctx) { return at(ctx).sent; }

const LoopComm table = {LOOPLM_COMM_ABI, "threads", open,         close,      abort,      last_error,
                        describe,        rank,      size,         rank,       bytes_sent, all_to_all_v,
                        exchange,        exchanged, all_gather_v, all_reduce, broadcast,  barrier};

}  // namespace
}  // namespace threads

const LoopComm* threads_comm() { return &threads::table; }

std::vector<void*> open_threads(int size, double timeout) {
  const auto world = std::make_shared<threads::World>(size, timeout);
  std::vector<void*> ranks;
  for (int r = 0; r < size; r++) ranks.push_back(new threads::Rank(world, r));
  return ranks;
}

}  // namespace looplm
