// The communication table: compares every operation with its expected result, which each rank computes itself.
//
//   looplm_comm_tests                         solo, and threads as ranks, in worlds of 1 to 5 ranks
//   looplm_comm_tests LIBRARY [bytes]         this process as one rank of LIBRARY (openmpi, mpich), under its launcher;
//                                             `bytes` is the largest message
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "../comm/solo.h"
#include "../comm/threads.h"
#include "../comm_library.h"
#include "../engine/communicator.h"
#include "../engine/error.h"
#include "engine/claims.h"

namespace looplm {
namespace {

using test::claim;
using Bytes = std::vector<uint8_t>;

// The bytes that rank `from` sends to rank `to`; different for every pair.
Bytes message(int from, int to, size_t count) {
  Bytes bytes(count);
  for (size_t i = 0; i < count; i++) bytes[i] = uint8_t(17 * from + 5 * to + 3 * i + i / 251);
  return bytes;
}

struct Tested {
  const LoopComm& table;
  void* ctx;
  const int rank, size;
  const std::string name;
  Tested(const LoopComm& table, void* ctx)
      : table(table),
        ctx(ctx),
        rank(table.rank(ctx)),
        size(table.size(ctx)),
        name(std::string(" (") + table.name + ", rank " + std::to_string(rank) + " of " + std::to_string(size) + ")") {}
  void holds(const std::string& what, int status, bool result) const {
    claim(what + name, status == 0 && result, status ? table.last_error(ctx) : "wrong values");
  }
};

void exchange(const Tested& t, const std::string& what, const std::function<size_t(int, int)>& count) {
  std::vector<Bytes> out, into;
  std::vector<const void*> send;
  std::vector<void*> receive;
  std::vector<int64_t> send_bytes, receive_bytes;
  int64_t others = 0;
  for (int q = 0; q < t.size; q++) {
    out.push_back(message(t.rank, q, count(t.rank, q)));
    into.push_back(Bytes(count(q, t.rank), 0xee));
    send_bytes.push_back(int64_t(out.back().size()));
    receive_bytes.push_back(int64_t(into.back().size()));
    if (q != t.rank) others += send_bytes.back();
  }
  for (int q = 0; q < t.size; q++) send.push_back(out[q].data()), receive.push_back(into[q].data());
  const int64_t before = t.table.bytes_sent(t.ctx);
  const int status = t.table.all_to_all_v(t.ctx, send.data(), send_bytes.data(), receive.data(), receive_bytes.data());
  bool right = true;
  for (int q = 0; q < t.size; q++) right &= into[q] == message(q, t.rank, count(q, t.rank));
  t.holds("all_to_all_v, " + what, status, right);
  t.holds("all_to_all_v, " + what + ", counts its bytes", status, t.table.bytes_sent(t.ctx) - before == others);
}

// Two exchanges at the same time. Ranks start them before, between and after other operations.
void exchanges(const Tested& t) {
  constexpr int COUNT = 2;
  std::vector<Bytes> out[COUNT], into[COUNT];
  void* handles[COUNT] = {};
  const auto bytes = [](int i, int from, int to) {
    return size_t((from + to + i) % 4 == 0 ? 0 : 200'000 * i + 1000 * from + to);
  };
  const auto begin = [&](int i) {
    std::vector<const void*> send;
    std::vector<void*> receive;
    std::vector<int64_t> send_bytes, receive_bytes;
    for (int q = 0; q < t.size; q++) {
      out[i].push_back(message(t.rank + i, q, bytes(i, t.rank, q)));
      into[i].push_back(Bytes(bytes(i, q, t.rank), 0xee));
      send_bytes.push_back(int64_t(out[i].back().size())), receive_bytes.push_back(int64_t(into[i].back().size()));
    }
    for (int q = 0; q < t.size; q++) send.push_back(out[i][size_t(q)].data()), receive.push_back(into[i][size_t(q)].data());
    handles[i] = t.table.exchange(t.ctx, send.data(), send_bytes.data(), receive.data(), receive_bytes.data());
  };
  const auto end = [&](int i) {
    int status = handles[i] ? int(LOOP_COMM_UNDER_WAY) : 1;
    while (status == LOOP_COMM_UNDER_WAY) status = t.table.exchanged(t.ctx, handles[i]);
    bool right = true;
    for (int q = 0; q < t.size; q++) right &= into[i][size_t(q)] == message(q + i, t.rank, bytes(i, q, t.rank));
    t.holds("exchange " + std::to_string(i), status, right);
  };
  double one = 1;
  if (t.rank % 2 == 0) begin(0);
  int status = t.table.all_reduce(t.ctx, LOOP_COMM_SUM, 1, &one);
  t.holds("an operation while other ranks have begun to exchange", status, one == t.size);
  if (t.rank % 2 == 1) begin(0);
  begin(1);
  t.holds("a barrier while all ranks exchange", t.table.barrier(t.ctx), true);
  end(1);
  end(0);
}

void gather(const Tested& t, const std::string& what, const std::function<size_t(int)>& count) {
  std::vector<int64_t> bytes;
  Bytes all, expected;
  for (int q = 0; q < t.size; q++) {
    const Bytes part = message(q, q, count(q));
    bytes.push_back(int64_t(part.size()));
    expected.insert(expected.end(), part.begin(), part.end());
    const Bytes own = q == t.rank ? part : Bytes(part.size(), 0xee);
    all.insert(all.end(), own.begin(), own.end());
  }
  const int status = t.table.all_gather_v(t.ctx, all.data(), bytes.data());
  t.holds("all_gather_v, " + what, status, all == expected);
}

void reduce(const Tested& t) {
  // Any other order gives another sum: 1e17 absorbs what is added to it before it is subtracted again.
  const auto value = [](int q, size_t i) { return q == 0 ? 1e17 : q == 2 ? -1e17 : double(q) + double(i) / 8; };
  for (size_t count : {size_t(0), size_t(1), size_t(3), size_t(1000)}) {
    std::vector<double> values(count), sums(count), largest(count);
    for (size_t i = 0; i < count; i++) {
      values[i] = value(t.rank, i);
      for (int q = 0; q < t.size; q++) {
        sums[i] = q == 0 ? value(q, i) : sums[i] + value(q, i);
        largest[i] = q == 0 ? value(q, i) : std::fmax(largest[i], value(q, i));
      }
    }
    const std::vector<double> own = values;
    const std::string what = std::to_string(count) + " numbers";
    int status = t.table.all_reduce(t.ctx, LOOP_COMM_SUM, int64_t(count), values.data());
    t.holds("all_reduce adds in the order of the ranks, " + what, status, values == sums);
    values = own;
    status = t.table.all_reduce(t.ctx, LOOP_COMM_MAX, int64_t(count), values.data());
    t.holds("all_reduce finds the largest, " + what, status, values == largest);
  }
  for (LoopCommReduce op : {LOOP_COMM_SUM, LOOP_COMM_MAX})
    for (int q : {0, t.size - 1}) {
      double value = t.rank == q ? std::numeric_limits<double>::quiet_NaN() : 1;
      const int status = t.table.all_reduce(t.ctx, op, 1, &value);
      t.holds("all_reduce keeps the NaN of rank " + std::to_string(q) + " in operation " + std::to_string(op), status,
              std::isnan(value));
    }
}

void every_operation(const LoopComm& table, void* ctx) {
  const Tested t(table, ctx);
  exchange(t, "one byte each", [](int, int) { return 1; });
  exchange(t, "sizes that differ", [](int from, int to) { return size_t(1000 * from + 7 * to + 3); });
  exchange(t, "empty ones among them", [](int from, int to) { return size_t((from + to) % 3 == 0 ? 0 : 100 + 13 * from); });
  exchange(t, "nothing at all", [](int, int) { return 0; });
  exchange(t, "megabytes", [](int from, int to) { return size_t(3'000'000 + 1001 * from + to); });
  gather(t, "equal parts", [](int) { return 4096; });
  gather(t, "parts that differ", [](int q) { return size_t(1 + 333 * q * q); });
  gather(t, "an empty part", [&](int q) { return size_t(q == t.size / 2 ? 0 : 77 + q); });
  gather(t, "nothing at all", [](int) { return 0; });
  gather(t, "megabytes", [](int q) { return size_t(2'000'003 + 10 * q); });
  reduce(t);
  exchanges(t);
  for (int root = 0; root < t.size; root++)
    for (size_t count : {size_t(0), size_t(1), size_t(1'000'001)}) {
      Bytes data = t.rank == root ? message(root, root, count) : Bytes(count, 0xee);
      const int status = table.broadcast(ctx, root, data.data(), int64_t(count));
      t.holds("broadcast of " + std::to_string(count) + " bytes from rank " + std::to_string(root), status,
              data == message(root, root, count));
    }
  t.holds("barrier", table.barrier(ctx), true);
  claim("rank, size and local rank fit together" + t.name,
        t.rank >= 0 && t.rank < t.size && table.local_rank(ctx) >= 0 && table.local_rank(ctx) <= t.rank);
}

// One thread per rank, each of which closes its context.
void as_owners(int size, double timeout, const std::function<void(int, void*)>& work) {
  const std::vector<void*> ranks = open_threads(size, timeout);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; r++) threads.emplace_back([&, r] { work(r, ranks[size_t(r)]); });
  for (std::thread& thread : threads) thread.join();
}
void in_world(int size, double timeout, const std::function<void(int, void*)>& work) {
  as_owners(size, timeout, [&](int rank, void* ctx) {
    work(rank, ctx);
    threads_comm()->close(ctx);
  });
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

void absent_ranks() {
  const LoopComm& t = *threads_comm();
  for (int absent : {0, 1, 2})
    in_world(3, 0.2, [&](int rank, void* ctx) {
      if (rank == absent) return;
      const int status = t.barrier(ctx);
      const std::string said = t.last_error(ctx), name = " (rank " + std::to_string(rank) + ", " + std::to_string(absent) + ")";
      claim("a rank that never comes: the error names operation, rank and limit" + name,
            status == LOOP_COMM_TIMEOUT && contains(said, "barrier: rank ") && contains(said, " of 3 waited 0.2 s for rank ") &&
                contains(said, "for rank " + std::to_string(absent) + ";") && contains(said, "raise the time limit"),
            said);
      double value = 1;
      claim("a world is lost after an error" + name,
            t.all_reduce(ctx, LOOP_COMM_SUM, 1, &value) == LOOP_COMM_TIMEOUT && t.last_error(ctx) == said, t.last_error(ctx));
    });
}

void failing_ranks() {
  const LoopComm& t = *threads_comm();
  in_world(4, 60, [&](int rank, void* ctx) {
    if (rank == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      return t.abort(ctx, "out of memory", 1);
    }
    double value = 1;
    const int status = t.all_reduce(ctx, LOOP_COMM_SUM, 1, &value);
    claim("a rank that fails ends the waiting of rank " + std::to_string(rank),
          status == LOOP_COMM_FAILED && contains(t.last_error(ctx), "rank 2 failed: out of memory"), t.last_error(ctx));
  });
  in_world(3, 60, [&](int rank, void* ctx) {
    char byte = 0;
    const int status = rank == 1 ? t.broadcast(ctx, 0, &byte, 1) : t.barrier(ctx);
    claim("different operations are noticed by rank " + std::to_string(rank),
          status == LOOP_COMM_FAILED && contains(t.last_error(ctx), "rank 0 calls barrier, rank 1 calls broadcast"),
          t.last_error(ctx));
  });
  in_world(3, 60, [&](int rank, void* ctx) {
    char byte = 0;
    const int status = t.broadcast(ctx, rank == 2 ? 1 : 0, &byte, 1);
    claim("different roots are noticed by rank " + std::to_string(rank),
          status == LOOP_COMM_FAILED && contains(t.last_error(ctx), "different arguments"), t.last_error(ctx));
  });
  in_world(2, 60, [&](int rank, void* ctx) {
    char out[8] = {}, into[8] = {};
    const void* send[2] = {out, out};
    void* receive[2] = {into, into};
    const int64_t send_bytes[2] = {0, 4}, receive_bytes[2] = {rank == 0 ? 0 : 8, 0};
    const int64_t none[2] = {0, 0};
    const int status = t.all_to_all_v(ctx, send, rank == 0 ? send_bytes : none, receive, receive_bytes);
    claim("sizes that do not fit are noticed by rank " + std::to_string(rank),
          status == LOOP_COMM_FAILED && contains(t.last_error(ctx), "rank 0 sends 4 bytes to rank 1, which takes 8"),
          t.last_error(ctx));
  });
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.code + " " + error.operation + " " + error.what();
  }
  return "nothing";
}

void communicators() {
  as_owners(3, 0.2, [&](int rank, void* ctx) {
    Communicator world(threads_comm(), ctx);
    const std::string name = ", rank " + std::to_string(rank);
    claim("a communicator knows its place" + name, world.rank() == rank && world.size() == 3);
    std::vector<double> values = {double(rank)};
    world.all_reduce(LOOP_COMM_SUM, values);
    claim("its operations are those of the table" + name, values[0] == 3);
    // Started one after the other, completed in any order.
    Bytes all(3, uint8_t(rank)), more(3, uint8_t(10 + rank));
    auto first = world.start_all_gather_v(all.data(), {1, 1, 1}), second = world.start_all_gather_v(more.data(), {1, 1, 1});
    second.get(), first.get();
    claim("operations under way keep their order" + name, all == Bytes{0, 1, 2} && more == Bytes{10, 11, 12});
    const Bytes own = message(rank, rank, size_t(10 * rank));
    const std::vector<Bytes> gathered = world.gather(own);
    std::vector<Bytes> parts, expected_parts;
    bool right = gathered.size() == 3;
    for (int q = 0; q < 3; q++) {
      right &= gathered[size_t(q)] == message(q, q, size_t(10 * q));
      parts.push_back(message(rank, q, size_t(rank + q)));
      expected_parts.push_back(message(q, rank, size_t(rank + q)));
    }
    claim("it gathers what differs in size" + name, right);
    claim("it exchanges what differs in size" + name, world.exchange(parts) == expected_parts);
    Bytes data = rank == 1 ? message(1, 1, 1234) : Bytes(7);
    world.broadcast(1, data);
    claim("it broadcasts what only the root has the size of" + name, data == message(1, 1, 1234));
    claim("it is idle when all is done" + name, world.idle());
    if (rank == 0) return;
    const std::string said = error_of([&] { world.barrier(); });
    claim("its errors have code and operation" + name, said.starts_with("PARALLEL barrier barrier: rank "), said);
    world.close();
    const std::string late = error_of([&] { world.barrier(); });
    claim("a world that was left is refused" + name, contains(late, "this process has left its world"), late);
  });
}

// This process is one rank, started by a launcher.
int run_rank(const std::string& library, int64_t message_bytes) {
  const LoopComm* table = comm_library(library);
  const LoopCommOptions options{60, message_bytes};
  void* ctx = table->open(&options);
  if (!ctx) throw Error("PARALLEL", "open", table->last_error(nullptr));
  every_operation(*table, ctx);
  claim("it says which library it is", contains(table->describe(ctx), library == "openmpi" ? "Open MPI" : "MPICH"),
        table->describe(ctx));
  if (test::failures) table->abort(ctx, "a test failed", 1);
  table->close(ctx);
  return 0;
}

}  // namespace
}  // namespace looplm

int main(int argc, char** argv) {
  using namespace looplm;
  try {
    if (argc > 1) return run_rank(argv[1], argc > 2 ? std::atoll(argv[2]) : 0);
    void* alone = solo_comm()->open(nullptr);
    every_operation(*solo_comm(), alone);
    for (int size = 1; size <= 5; size++) in_world(size, 60, [](int, void* ctx) { every_operation(*threads_comm(), ctx); });
    absent_ranks();
    failing_ranks();
    communicators();
  } catch (const std::exception& error) {
    claim("no unexpected error", false, error.what());
  }
  return test::failures > 0;
}
