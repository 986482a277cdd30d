// The communication table on MPI. The ABIs of MPI implementations differ, so this file is compiled once against the headers
// of each, into a library that links neither. native/comm_library.cpp opens libmpi first, then this library.
//
// Every operation consists of non-blocking calls that are polled, for two reasons. A rank that waits too long can fail with
// an error that names the missing ranks. And `abort` from another thread finds a moment in which no MPI call is running.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

#include "../comm.h"
#include "../guarded.h"
#include "version_text.h"
#include "../numeric/decimal.h"

namespace {

using Clock = std::chrono::steady_clock;

struct World {
  MPI_Comm comm = MPI_COMM_NULL;        // a copy of MPI_COMM_WORLD, so that no other library's messages arrive here
  MPI_Comm exchanging = MPI_COMM_NULL;  // for exchanges, which are independent of other operations
  MPI_Comm leaving = MPI_COMM_NULL;     // for `close`, so that a leaving rank cannot match operations that others wait for
  int rank = 0, size = 1, local_rank = 0;
  double timeout = 0;
  int64_t piece = 0;                  // size of the largest message in bytes
  int operations = 0, exchanges = 0;  // counters that make message tags, so that messages of different operations never match
  std::atomic<int64_t> sent{0};
  std::atomic<bool> aborting{false};
  std::timed_mutex inside;  // held during every MPI call
  int status = 0;
  std::string error, description;
};
World& at(void* ctx) { return *static_cast<World*>(ctx); }
std::string open_error;

int fail(World& world, int status, const std::string& message) {
  if (!world.status) world.status = status, world.error = message;
  return world.status;
}
std::string who(const World& world, const char* operation) {
  return std::string(operation) + ": rank " + std::to_string(world.rank) + " of " + std::to_string(world.size);
}
std::string text_of(int code) {
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  return MPI_Error_string(code, text, &length) == MPI_SUCCESS ? std::string(text, size_t(length))
                                                              : "error " + std::to_string(code);
}

// A message under way. other: the rank at the other end; -1: all ranks.
struct Message {
  int other;
  bool receives;
  int64_t bytes;
};
struct Operation {
  World& world;
  const char* name;
  MPI_Comm comm;
  int tag;
  std::vector<MPI_Request> requests = {};
  std::vector<MPI_Status> statuses = {};  // of the requests, filled in when all are complete
  std::vector<Message> messages = {};
  Clock::time_point began = Clock::now();

  // Makes one call that starts a message, such as MPI_Isend(..., request).
  template <class Call>
  int start(Message message, Call call) {
    if (world.status) return world.status;
    std::lock_guard lock(world.inside);
    messages.push_back(message);
    statuses.emplace_back();
    requests.push_back(MPI_REQUEST_NULL);  // before the call, which must not be forgotten if memory runs out
    const int code = call(&requests.back());
    return code == MPI_SUCCESS ? 0 : fail(world, LOOP_COMM_FAILED, who(world, name) + ": " + text_of(code));
  }
  int finish();
  // Returns 0, LOOP_COMM_UNDER_WAY or an error.
  int advance();

 private:
  int poll(bool& done);
  int check();
  int late();
};

int Operation::poll(bool& done) {
  while (!world.inside.try_lock_for(std::chrono::milliseconds(10)))
    if (world.aborting) return fail(world, LOOP_COMM_FAILED, who(world, name) + ": this process is being ended");
  std::lock_guard lock(world.inside, std::adopt_lock);
  int complete = 0;
  const int code = MPI_Testall(int(requests.size()), requests.data(), &complete, statuses.data());
  done = complete != 0;
  if (code == MPI_SUCCESS) return 0;
  std::string text = text_of(code);
  if (code == MPI_ERR_IN_STATUS)
    for (const MPI_Status& status : statuses)
      if (status.MPI_ERROR != MPI_SUCCESS && status.MPI_ERROR != MPI_ERR_PENDING) text = text_of(status.MPI_ERROR);
  return fail(world, LOOP_COMM_FAILED, who(world, name) + ": " + text);
}

// Checks received sizes, because MPI accepts a message shorter than expected.
int Operation::check() {
  for (size_t i = 0; i < messages.size(); i++) {
    int count = 0;
    if (!messages[i].receives || MPI_Get_count(&statuses[i], MPI_BYTE, &count) != MPI_SUCCESS) continue;
    if (count != messages[i].bytes)
      return fail(world, LOOP_COMM_FAILED,
                  who(world, name) + " takes " + std::to_string(messages[i].bytes) + " bytes from rank " +
                      std::to_string(messages[i].other) + ", which sent " + std::to_string(count));
  }
  return 0;
}

int Operation::late() {
  std::string missing;
  int last = -1;
  for (size_t i = 0; i < messages.size(); i++) {  // requests of finished messages are MPI_REQUEST_NULL
    if (requests[i] == MPI_REQUEST_NULL || messages[i].other < 0 || messages[i].other == last) continue;
    last = messages[i].other;
    missing += (missing.empty() ? "rank " : ", rank ") + std::to_string(last);
  }
  const std::string whom = missing.empty() ? "other ranks; look for their errors" : missing + "; look for the error of that rank";
  const std::string text =
      who(world, name) + " waited " + looplm::decimal(world.timeout) + " s for " + whom + ", or raise the time limit";
  return fail(world, LOOP_COMM_TIMEOUT, text);
}

int Operation::advance() {
  if (world.status) return world.status;
  if (requests.empty()) return 0;
  bool done = false;
  if (const int status = poll(done)) return status;
  if (done) return check();
  return std::chrono::duration<double>(Clock::now() - began).count() > world.timeout ? late() : int(LOOP_COMM_UNDER_WAY);
}

// Waits for all messages of the operation.
int Operation::finish() {
  for (;;) {
    const int status = advance();
    if (status != LOOP_COMM_UNDER_WAY) return status;
    const double waited = std::chrono::duration<double>(Clock::now() - began).count();
    // first polls without a pause for short waits; then sleeps, so that other ranks on this machine get the processor
    if (waited < 2e-3) sched_yield();
    else std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
}

Operation begin(World& world, const char* name) {
  world.operations = (world.operations + 1) % 32768;  // every MPI supports tags up to 32767
  return {world, name, world.comm, world.operations};
}

// Sends one message as pieces, in order.
int send(Operation& op, int to, const void* data, int64_t bytes) {
  for (int64_t from = 0; from < bytes; from += op.world.piece) {
    const int count = int(std::min(op.world.piece, bytes - from));
    const int status = op.start({to, false, count}, [&](MPI_Request* request) {
      return MPI_Isend(static_cast<const char*>(data) + from, count, MPI_BYTE, to, op.tag, op.comm, request);
    });
    if (status) return status;
  }
  op.world.sent += bytes;
  return 0;
}
int receive(Operation& op, int from_rank, void* data, int64_t bytes) {
  for (int64_t from = 0; from < bytes; from += op.world.piece) {
    const int count = int(std::min(op.world.piece, bytes - from));
    const int status = op.start({from_rank, true, count}, [&](MPI_Request* request) {
      return MPI_Irecv(static_cast<char*>(data) + from, count, MPI_BYTE, from_rank, op.tag, op.comm, request);
    });
    if (status) return status;
  }
  return 0;
}

// Sends to every other rank, starting with the next one, so that not all ranks send to the same rank first.
int start_exchange(Operation& op, const void* const* data, const int64_t* send_bytes, void* const* into,
                   const int64_t* receive_bytes) {
  World& world = op.world;
  for (int i = 1; i < world.size; i++) {
    const int from = (world.rank + world.size - i) % world.size;
    if (const int status = receive(op, from, into[from], receive_bytes[from])) return status;
  }
  for (int i = 1; i < world.size; i++) {
    const int to = (world.rank + i) % world.size;
    if (const int status = send(op, to, data[to], send_bytes[to])) return status;
  }
  if (send_bytes[world.rank] > 0 && data[world.rank] != into[world.rank])
    std::memcpy(into[world.rank], data[world.rank], size_t(send_bytes[world.rank]));
  return 0;
}
int all_to_all_v(void* ctx, const void* const* data, const int64_t* send_bytes, void* const* into, const int64_t* receive_bytes) {
  Operation op = begin(at(ctx), "all_to_all_v");
  const int status = start_exchange(op, data, send_bytes, into, receive_bytes);
  return status ? status : op.finish();
}

void* exchange(void* ctx, const void* const* data, const int64_t* send_bytes, void* const* into, const int64_t* receive_bytes) {
  World& world = at(ctx);
  world.exchanges = (world.exchanges + 1) % 32768;
  auto* op = new Operation{world, "exchange", world.exchanging, world.exchanges};
  if (start_exchange(*op, data, send_bytes, into, receive_bytes) == 0) return op;
  delete op;
  return nullptr;
}
int exchanged(void* ctx, void* exchange) {
  auto* op = static_cast<Operation*>(exchange);
  const int status = op->advance();
  if (status != LOOP_COMM_UNDER_WAY) delete op;
  return status;
}

// A ring: every rank passes each part on to its neighbour, so over a network each machine sends to only one other.
int ring(World& world, char* data, const std::vector<int64_t>& offsets) {
  const int next = (world.rank + 1) % world.size, before = (world.rank + world.size - 1) % world.size;
  const auto bytes = [&](int q) { return offsets[size_t(q) + 1] - offsets[size_t(q)]; };
  for (int i = 0; i + 1 < world.size; i++) {
    const int out = (world.rank + world.size - i) % world.size, in = (world.rank + 2 * world.size - i - 1) % world.size;
    Operation op = begin(world, "all_gather_v");
    int status = receive(op, before, data + offsets[size_t(in)], bytes(in));
    if (!status) status = send(op, next, data + offsets[size_t(out)], bytes(out));
    if (!status) status = op.finish();
    if (status) return status;
  }
  return 0;
}

int all_gather_v(void* ctx, void* data, const int64_t* bytes) {
  World& world = at(ctx);
  std::vector<int64_t> offsets = {0};
  for (int q = 0; q < world.size; q++) offsets.push_back(offsets.back() + bytes[q]);
  if (offsets.back() > world.piece) return ring(world, static_cast<char*>(data), offsets);
  // for small parts, MPI has algorithms with logarithmic depth
  const std::vector<int> counts(bytes, bytes + world.size), places(offsets.begin(), offsets.end() - 1);
  Operation op = begin(world, "all_gather_v");
  const int status = op.start({-1, false, 0}, [&](MPI_Request* request) {
    return MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_BYTE, data, counts.data(), places.data(), MPI_BYTE, world.comm, request);
  });
  world.sent += bytes[world.rank] * (world.size - 1);
  return status ? status : op.finish();
}

// Gathers all values and adds them here in rank order, because MPI may add in any order.
int all_reduce(void* ctx, LoopCommReduce reduce, int64_t count, double* values) {
  World& world = at(ctx);
  const size_t n = size_t(count);
  std::vector<double> all(n * size_t(world.size));
  std::copy(values, values + n, all.begin() + ptrdiff_t(n) * world.rank);
  const std::vector<int64_t> bytes(size_t(world.size), count * int64_t(sizeof(double)));
  if (const int status = all_gather_v(ctx, all.data(), bytes.data())) return status;
  for (size_t i = 0; i < n; i++) {
    values[i] = all[i];
    for (size_t q = 1; q < size_t(world.size); q++) {
      const double other = all[q * n + i];
      if (reduce == LOOP_COMM_SUM) values[i] += other;
      else if (!(values[i] != values[i] || values[i] > other)) values[i] = other;
    }
  }
  return 0;
}

int broadcast(void* ctx, int32_t root, void* data, int64_t bytes) {
  World& world = at(ctx);
  for (int64_t from = 0; from < bytes; from += world.piece) {
    const int count = int(std::min(world.piece, bytes - from));
    Operation op = begin(world, "broadcast");
    int status = op.start({-1, false, 0}, [&](MPI_Request* request) {
      return MPI_Ibcast(static_cast<char*>(data) + from, count, MPI_BYTE, root, world.comm, request);
    });
    if (!status) status = op.finish();
    if (status) return status;
  }
  if (world.rank == root) world.sent += bytes * (world.size - 1);
  return world.status;
}

int barrier(void* ctx) {
  World& world = at(ctx);
  Operation op = begin(world, "barrier");
  const int status = op.start({-1, false, 0}, [&](MPI_Request* request) { return MPI_Ibarrier(world.comm, request); });
  return status ? status : op.finish();
}

void* fail_open(World* world, const std::string& message) {
  open_error = message;
  delete world;
  return nullptr;
}

void* open(const LoopCommOptions* options) {
  int began = 0, granted = MPI_THREAD_SINGLE;
  if (MPI_Initialized(&began) != MPI_SUCCESS || began) return fail_open(nullptr, "MPI was started before in this process");
  int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &granted);
  if (code != MPI_SUCCESS) return fail_open(nullptr, "MPI_Init_thread: " + text_of(code));
  if (granted < MPI_THREAD_SERIALIZED)
    return fail_open(nullptr, "this MPI was built without threads (MPI_THREAD_SERIALIZED): use another build of it");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  auto* world = new World;
  world->timeout = options->timeout;
  world->piece = std::clamp<int64_t>(options->message_bytes, 1, 1 << 30);
  if (options->message_bytes == 0) world->piece = 1 << 30;
  code = MPI_Comm_dup(MPI_COMM_WORLD, &world->comm);
  if (code == MPI_SUCCESS) code = MPI_Comm_dup(world->comm, &world->exchanging);
  if (code == MPI_SUCCESS) code = MPI_Comm_dup(world->comm, &world->leaving);
  if (code != MPI_SUCCESS) return fail_open(world, "MPI_Comm_dup: " + text_of(code));
  MPI_Comm_rank(world->comm, &world->rank);
  MPI_Comm_size(world->comm, &world->size);
  MPI_Comm machine = MPI_COMM_NULL;
  code = MPI_Comm_split_type(world->comm, MPI_COMM_TYPE_SHARED, world->rank, MPI_INFO_NULL, &machine);
  if (code != MPI_SUCCESS) return fail_open(world, "MPI_Comm_split_type: " + text_of(code));
  MPI_Comm_rank(machine, &world->local_rank);
  MPI_Comm_free(&machine);
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  world->description = looplm::mpi_version_text(std::string(text, size_t(length)));
  return world;
}

void close(void* ctx) {
  World& world = at(ctx);
  MPI_Request request = MPI_REQUEST_NULL;
  if (!world.status && MPI_Ibarrier(world.leaving, &request) == MPI_SUCCESS) {
    int done = 0;
    while (MPI_Test(&request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && !done)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    MPI_Comm_free(&world.leaving);
    MPI_Comm_free(&world.exchanging);
    MPI_Comm_free(&world.comm);
    MPI_Finalize();
  }
  delete &world;
}

void abort(void* ctx, const char* message, int32_t status) {
  World& world = at(ctx);
  world.aborting = true;
  std::fprintf(stderr, "looplm: rank %d of %d ends all ranks: %s\n", world.rank, world.size, message);
  std::fflush(stderr);
  // MPICH's launcher discards output that it has not read when it hears of the abort
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  // MPI_Abort may end this process through exit(), whose handlers wait for threads that wait for other ranks
  static int exit_status;
  exit_status = status;
  std::atexit([] { _exit(exit_status); });
  // a blocked MPI call keeps the lock; then end only this process, and the launcher ends the others
  if (world.inside.try_lock_for(std::chrono::seconds(2))) MPI_Abort(MPI_COMM_WORLD, status);
  _exit(status);
}

const char* last_error(void* ctx) { return ctx ? at(ctx).error.c_str() : open_error.c_str(); }
const char* describe(void* ctx) { return at(ctx).description.c_str(); }
int32_t rank(void* ctx) { return at(ctx).rank; }
int32_t size(void* ctx) { return at(ctx).size; }
int32_t local_rank(void* ctx) { return at(ctx).local_rank; }
int64_t bytes_sent(void* ctx) { return at(ctx).sent; }

// Only memory can run out.
int out_of_memory(void* ctx, const std::exception&) { return fail(at(ctx), LOOP_COMM_FAILED, "out of memory"); }
template <auto function>
constexpr auto guarded = looplm::Guarded<function, out_of_memory>::call;

const LoopComm table = {LOOPLM_COMM_ABI,
                        LOOPLM_MPI_NAME,
                        open,
                        close,
                        abort,
                        last_error,
                        describe,
                        rank,
                        size,
                        local_rank,
                        bytes_sent,
                        guarded<all_to_all_v>,
                        guarded<exchange>,
                        guarded<exchanged>,
                        guarded<all_gather_v>,
                        guarded<all_reduce>,
                        guarded<broadcast>,
                        guarded<barrier>};

}  // namespace

extern "C" __attribute__((visibility("default"))) const LoopComm* looplm_comm() { return &table; }
