// A stand-in for NVIDIA's NCCL in the tests of device cuda-emulated. It has the functions that cuda/nccl.cu uses, with the
// rules of the manual (docs.nvidia.com/deeplearning/nccl, "Point-to-point communication"). Ranks are processes or threads of
// one machine, and a message is a file in a folder. As on a GPU, a group of messages is under way until its stream is found
// to be done. Until then, received data is not there (every byte is 0xFF), and data being sent must not change. A violation
// of the rules ends the process with a message.
//
//   LOOPLM_NCCL_DOUBLE        the folder for messages; it must exist
//   LOOPLM_NCCL_DOUBLE_FAULT  what should fail, on every rank or with @RANK on one: version (the library is 2.4), init,
//                             duplicate (two ranks on one GPU), send (the end of a group), remote (a rank has gone, which
//                             ncclCommGetAsyncError reports), lost (nothing arrives, and there is no error)
//   LOOPLM_NCCL_DOUBLE_LOG    a file that gets a line for every message: rank, peer, bytes
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

namespace {

enum Status { success = 0, cuda_error = 1, system_error = 2, invalid_usage = 5, remote_error = 6 };
enum Type { type_int8 = 0 };

// The first members of the emulator's streams: run work in stream order, and add work that ends later.
struct Stream {
  int (*submit)(void* stream, const std::function<int()>& work);
  void (*later)(void* stream, const std::function<int()>& poll);
};

[[noreturn]] void refuse(const char* function, const std::string& why) {
  std::fprintf(stderr, "NCCL double, %s: %s\n", function, why.c_str());
  std::abort();
}
void require(bool holds, const char* function, const std::string& rule) {
  if (!holds) refuse(function, rule);
}

namespace fs = std::filesystem;
using Bytes = std::vector<char>;

bool fails(const char* what, int rank) {
  const char* chosen = std::getenv("LOOPLM_NCCL_DOUBLE_FAULT");
  const std::string fault = chosen ? chosen : "", own = "@" + std::to_string(rank);
  return fault == what || (rank >= 0 && fault == what + own);
}

struct Key {
  char bytes[128];
};

struct Comm {
  int rank, size;
  std::string files;                  // prefix of this world's file names
  std::map<int, int> sent, received;  // number of messages to and from each rank
  std::shared_ptr<std::atomic<bool>> ended = std::make_shared<std::atomic<bool>>(false);
};

struct Message {
  Comm* comm;
  bool sends;
  void* data;
  size_t bytes;
  int peer;
  void* stream;
};
thread_local bool grouped = false;
thread_local std::vector<Message> group;

std::string path_of(const Comm& comm, int from, int to, int number) {
  return comm.files + "-" + std::to_string(from) + "-" + std::to_string(to) + "-" + std::to_string(number);
}
void write_whole(const std::string& path, const void* data, size_t bytes) {
  const std::string unfinished = path + ".part";
  std::ofstream(unfinished, std::ios::binary).write(static_cast<const char*>(data), std::streamsize(bytes));
  fs::rename(unfinished, path);
}
// Returns whether the file existed, and deletes it.
bool read_whole(const std::string& path, Bytes& out) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return false;
  out.resize(fs::file_size(path));
  file.read(out.data(), std::streamsize(out.size()));
  fs::remove(path);
  return true;
}

// The messages of one group on one communicator, until they are complete.
struct Pending {
  Comm comm;  // a copy: the communicator may be destroyed by then
  std::vector<Message> sends, receives;
  std::vector<Bytes> snapshots;      // copies of the data being sent
  std::vector<std::string> awaited;  // files of the expected messages; empty once received
  size_t missing = 0;

  int poll() {
    if (*comm.ended) return cuda_error;
    if (fails("remote", comm.rank) || fails("lost", comm.rank)) return -1;
    for (size_t i = 0; i < receives.size(); i++) {
      Bytes came;
      if (awaited[i].empty() || !read_whole(awaited[i], came)) continue;
      require(came.size() == receives[i].bytes, "ncclRecv",
              "rank " + std::to_string(comm.rank) + " takes " + std::to_string(receives[i].bytes) + " bytes from rank " +
                  std::to_string(receives[i].peer) + ", which sent " + std::to_string(came.size()));
      std::memcpy(receives[i].data, came.data(), came.size());
      awaited[i].clear();
      missing--;
    }
    if (missing > 0) return -1;
    for (size_t i = 0; i < sends.size(); i++)
      require(std::memcmp(sends[i].data, snapshots[i].data(), snapshots[i].size()) == 0, "ncclSend",
              "what is sent has changed while it was under way");
    return success;
  }
};

void log(const Comm& comm, const Message& m) {
  const char* path = std::getenv("LOOPLM_NCCL_DOUBLE_LOG");
  if (!path || !m.sends) return;
  if (std::FILE* file = std::fopen(path, "a")) {
    std::fprintf(file, "%d %d %zu\n", comm.rank, m.peer, m.bytes);
    std::fclose(file);
  }
}

int begin(const std::vector<Message>& messages) {
  Comm& comm = *messages[0].comm;
  void* const stream = messages[0].stream;
  auto pending = std::make_shared<Pending>();
  for (const Message& m : messages) {
    require(m.comm == &comm && m.stream == stream, "ncclGroupEnd", "the double takes one communicator and one stream in a group");
    if (!m.sends) {
      pending->awaited.push_back(path_of(comm, m.peer, comm.rank, comm.received[m.peer]++));
      pending->receives.push_back(m);
      continue;
    }
    const char* first = static_cast<const char*>(m.data);
    pending->snapshots.emplace_back(first, first + m.bytes);
    pending->sends.push_back(m);
    log(comm, m);
  }
  for (size_t i = 0; i < pending->sends.size(); i++) {
    const Message& m = pending->sends[i];
    write_whole(path_of(comm, comm.rank, m.peer, comm.sent[m.peer]++), pending->snapshots[i].data(), m.bytes);
  }
  for (const Message& m : pending->receives) std::memset(m.data, 0xFF, m.bytes);
  pending->comm = comm;
  pending->missing = pending->receives.size();
  static_cast<Stream*>(stream)->later(stream, [pending] { return pending->poll(); });
  return success;
}

int add(const char* function, Comm* comm, bool sends, void* data, size_t count, int type, int peer, void* stream) {
  require(comm, function, "no communicator");
  require(grouped, function, "outside of a group: two ranks that both send first would wait for ever");
  require(type == type_int8, function, "type " + std::to_string(type));
  require(peer >= 0 && peer < comm->size, function, "rank " + std::to_string(peer) + " of " + std::to_string(comm->size));
  require(data && count > 0 && stream, function, "a buffer or the stream is missing");
  group.push_back({comm, sends, data, count, peer, stream});
  return success;
}

}  // namespace

extern "C" {

int ncclGetVersion(int* version) {
  *version = fails("version", -1) ? 2408 : 22304;
  return success;
}
const char* ncclGetErrorString(int status) {
  switch (status) {
    case success:
      return "no error";
    case cuda_error:
      return "unhandled cuda error";
    case system_error:
      return "unhandled system error";
    case invalid_usage:
      return "invalid usage";
    case remote_error:
      return "remote process exited or there was a network error";
  }
  return "unknown result code";
}
const char* ncclGetLastError(void*) { return ""; }

int ncclGetUniqueId(Key* key) {
  static std::atomic<int> made{0};
  const char* folder = std::getenv("LOOPLM_NCCL_DOUBLE");
  require(folder, "ncclGetUniqueId", "LOOPLM_NCCL_DOUBLE names no folder");
  std::memset(key, 0xA5, sizeof *key);  // all bytes of the key must be transferred
  const int length = std::snprintf(key->bytes, 127, "%s/%d-%d", folder, int(getpid()), made++);
  require(length < 127, "ncclGetUniqueId", "the folder's name is too long");
  key->bytes[127] = char(0x5A);
  return success;
}

int ncclCommInitRank(void** out, int size, Key key, int rank) {
  const char* f = "ncclCommInitRank";
  require(rank >= 0 && rank < size, f, "rank " + std::to_string(rank) + " of " + std::to_string(size));
  require(key.bytes[127] == char(0x5A) && key.bytes[126] == char(0xA5), f, "a key that did not travel whole");
  if (fails("init", rank)) return system_error;
  if (fails("duplicate", rank)) return invalid_usage;
  const std::string files = key.bytes;
  write_whole(files + "-rank" + std::to_string(rank), &size, sizeof size);
  const bool spoilt = std::getenv("LOOPLM_NCCL_DOUBLE_FAULT") != nullptr;
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(spoilt ? 1 : 60);
  for (int other = 0; other < size; other++) {
    const std::string path = files + "-rank" + std::to_string(other);
    while (!fs::exists(path)) {
      if (std::chrono::steady_clock::now() > limit) return system_error;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    int theirs = 0;
    std::ifstream(path, std::ios::binary).read(reinterpret_cast<char*>(&theirs), sizeof theirs);
    require(theirs == size, f, "ranks of worlds of " + std::to_string(size) + " and " + std::to_string(theirs));
  }
  auto* comm = new Comm;
  comm->rank = rank, comm->size = size, comm->files = files;
  *out = comm;
  return success;
}
int ncclCommDestroy(void* comm) {
  require(comm && !grouped, "ncclCommDestroy", "no communicator, or within a group");
  delete static_cast<Comm*>(comm);
  return success;
}
int ncclCommAbort(void* comm) {
  require(comm, "ncclCommAbort", "no communicator");
  *static_cast<Comm*>(comm)->ended = true;
  delete static_cast<Comm*>(comm);
  return success;
}
int ncclCommGetAsyncError(void* comm, int* error) {
  require(comm && error, "ncclCommGetAsyncError", "no communicator");
  *error = fails("remote", static_cast<Comm*>(comm)->rank) ? remote_error : success;
  return success;
}

int ncclGroupStart() {
  require(!grouped, "ncclGroupStart", "a group within a group");
  grouped = true;
  group.clear();
  return success;
}
int ncclGroupEnd() {
  require(grouped, "ncclGroupEnd", "no group has begun");
  grouped = false;
  if (group.empty()) return success;
  if (fails("send", group[0].comm->rank)) return cuda_error;
  return begin(std::exchange(group, {}));
}
int ncclSend(const void* data, size_t count, int type, int peer, void* comm, void* stream) {
  return add("ncclSend", static_cast<Comm*>(comm), true, const_cast<void*>(data), count, type, peer, stream);
}
int ncclRecv(void* data, size_t count, int type, int peer, void* comm, void* stream) {
  return add("ncclRecv", static_cast<Comm*>(comm), false, data, count, type, peer, stream);
}

}  // extern "C"
