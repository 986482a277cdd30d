// NVIDIA's library for communication between GPUs, opened at run time if it is installed; building needs no headers of it. It
// only moves bytes. Sums are computed by our kernels, in rank order.
//
// Exchanges run on a separate stream, after all earlier work of the context, so kernels run at the same time. The host polls
// for their completion, because a rank that has gone away would block the stream forever.
#include <dlfcn.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "../native/nccl_version.h"
#include "context.h"

namespace looplm::cuda {
namespace {

// The library's C interface as its manual documents it, with opaque handles and enumerations as int.
using Comm = void*;
struct Key {
  char bytes[LOOP_LINK_KEY_BYTES];
};
constexpr int bytes_type = 0;  // ncclInt8

struct Functions {
  int (*version)(int*);
  int (*get_key)(Key*);
  int (*open)(Comm*, int size, Key, int rank);
  int (*close)(Comm);
  int (*abort)(Comm);
  int (*async_error)(Comm, int* error);
  const char* (*error_text)(int);
  const char* (*last_error)(Comm);  // since 2.13
  int (*send)(const void*, size_t count, int type, int peer, Comm, cudaStream_t);
  int (*receive)(void*, size_t count, int type, int peer, Comm, cudaStream_t);
  int (*group_begin)();
  int (*group_end)();
};

struct Library {
  Functions f{};
  std::string description;  // or the reason why it cannot be used
  bool usable = false, chosen = false;
};

std::string load(Library& lib) {
  const char* path = std::getenv("LOOPLM_NCCL");  // a file chosen by the user (no other is tried), or "off"
  lib.chosen = path != nullptr;
  if (path && std::string(path) == "off") return "LOOPLM_NCCL=off";
#ifdef __CUDACC__
  const std::string name = path ? path : "libnccl.so.2";
#else
  if (!path) return "NCCL cannot use the emulator's memory";
  const std::string name = path;
#endif
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) return std::string(dlerror()) + nccl_packages;
  std::string missing;
  const auto find = [&](auto& function, const char* symbol, bool needed = true) {
    function = reinterpret_cast<std::decay_t<decltype(function)> >(dlsym(library, symbol));
    if (!function && needed && missing.empty()) missing = symbol;
  };
  find(lib.f.version, "ncclGetVersion");
  find(lib.f.get_key, "ncclGetUniqueId");
  find(lib.f.open, "ncclCommInitRank");
  find(lib.f.close, "ncclCommDestroy");
  find(lib.f.abort, "ncclCommAbort");
  find(lib.f.async_error, "ncclCommGetAsyncError");
  find(lib.f.error_text, "ncclGetErrorString");
  find(lib.f.last_error, "ncclGetLastError", false);
  find(lib.f.send, "ncclSend");
  find(lib.f.receive, "ncclRecv");
  find(lib.f.group_begin, "ncclGroupStart");
  find(lib.f.group_end, "ncclGroupEnd");
  if (!missing.empty()) return name + " has no function " + missing + ": NCCL 2.7 or later is needed";
  int version = 0;
  if (lib.f.version(&version) != 0) return name + " does not say its version";
  if (version < oldest_nccl) return name + " is NCCL " + nccl_version_text(version) + ": 2.7 or later is needed";
  lib.description = "NCCL " + nccl_version_text(version);
  return "";
}

const Library& library() {
  static const Library opened = [] {
    Library lib;
    const std::string why = load(lib);
    lib.usable = why.empty();
    if (!lib.usable) lib.description = why;
    return lib;
  }();
  return opened;
}

struct Link {
  Comm comm = nullptr;
  int rank = 0, size = 1;
  double timeout = 0;
  cudaStream_t stream = nullptr;
  cudaEvent_t ready = nullptr;  // marks the work of the context that an exchange must wait for
  std::deque<cudaEvent_t> under_way;
  std::vector<cudaEvent_t> spare;
  std::string lost;  // the reason why no more exchanges are possible
};

std::string who(const Link& link, const char* operation) {
  return std::string(operation) + ": rank " + std::to_string(link.rank) + " of " + std::to_string(link.size);
}
int fail_link(Context& c, Link& link, const std::string& message) {
  if (link.lost.empty()) link.lost = message;
  if (link.comm) library().f.abort(link.comm);  // ends what is on the stream
  link.comm = nullptr;
  return fail(c, link.lost);
}
std::string reason(int status, Comm comm) {
  const Functions& f = library().f;
  std::string text = std::string("NCCL: ") + f.error_text(status);
  const char* more = f.last_error ? f.last_error(comm) : "";
  if (more && *more) text += std::string(" (") + more + ")";
  return text + "; NCCL_DEBUG=WARN says more";
}

int describe_link(void* ctx, LoopLinkInfo* out) {
  Context& c = enter(ctx);
  *out = {};
  const Library& lib = library();
  out->usable = lib.usable;
  out->chosen = lib.chosen;
  std::strncpy(out->library, lib.description.c_str(), sizeof out->library - 1);
  return check(c, cudaDeviceGetPCIBusId(out->device, sizeof out->device, c.device), "the device's place");
}

int make_key(void* ctx, void* key) {
  Context& c = enter(ctx);
  const int status = library().f.get_key(static_cast<Key*>(key));
  return status ? fail(c, reason(status, nullptr)) : 0;
}

void close_link(void* ctx, void* p) {
  enter(ctx);
  auto* link = static_cast<Link*>(p);
  if (link->stream && link->lost.empty()) cudaStreamSynchronize(link->stream);
  if (link->comm) library().f.close(link->comm);
  for (cudaEvent_t e : link->under_way) link->spare.push_back(e);
  for (cudaEvent_t e : link->spare) cudaEventDestroy(e);
  if (link->ready) cudaEventDestroy(link->ready);
  if (link->stream) cudaStreamDestroy(link->stream);
  delete link;
}

void* open_link(void* ctx, const void* key, int32_t rank, int32_t size, double timeout) {
  Context& c = enter(ctx);
  auto* link = new Link;
  link->rank = rank, link->size = size, link->timeout = timeout;
  int status = check(c, cudaStreamCreateWithFlags(&link->stream, cudaStreamNonBlocking), "the link's stream");
  if (!status) status = check(c, cudaEventCreateWithFlags(&link->ready, cudaEventDisableTiming), "the link's event");
  if (!status) {
    Key own;
    std::memcpy(own.bytes, key, sizeof own.bytes);
    if (const int s = library().f.open(&link->comm, size, own, rank)) {
      link->comm = nullptr;
      status = fail(c, reason(s, nullptr));
    }
  }
  if (!status) return link;
  close_link(ctx, link);
  return nullptr;
}

int exchange(void* ctx, void* p, const void* const* send, const int64_t* send_bytes, void* const* receive,
             const int64_t* receive_bytes) {
  Context& c = enter(ctx);
  Link& link = *static_cast<Link*>(p);
  const Functions& f = library().f;
  if (!link.lost.empty()) return fail(c, link.lost);
  // The event is created first: an exchange that has started must not be forgotten.
  if (link.spare.empty()) {
    link.spare.push_back(nullptr);
    if (int s = check(c, cudaEventCreateWithFlags(&link.spare.back(), cudaEventDisableTiming), "exchange"))
      return link.spare.pop_back(), s;
  }
  if (int s = check(c, cudaEventRecord(link.ready, c.stream), "exchange")) return s;
  if (int s = check(c, cudaStreamWaitEvent(link.stream, link.ready, 0), "exchange")) return s;
  int status = f.group_begin();
  // Every rank starts with the next one, so that not all ranks send to the same rank first.
  for (int i = 0; i < link.size && !status; i++) {
    const int from = (link.rank + link.size - i) % link.size, to = (link.rank + i) % link.size;
    if (receive_bytes[from] > 0)
      status = f.receive(receive[from], size_t(receive_bytes[from]), bytes_type, from, link.comm, link.stream);
    if (send_bytes[to] > 0 && !status) status = f.send(send[to], size_t(send_bytes[to]), bytes_type, to, link.comm, link.stream);
  }
  const int ended = f.group_end();
  if (!status) status = ended;
  if (status) return fail_link(c, link, who(link, "exchange") + ": " + reason(status, link.comm));
  link.under_way.push_back(link.spare.back());
  link.spare.pop_back();
  if (const cudaError_t s = cudaEventRecord(link.under_way.back(), link.stream))
    return fail_link(c, link, who(link, "exchange") + ": " + cudaGetErrorString(s));
  return 0;
}

int exchanged(void* ctx, void* p, int wait) {
  Context& c = enter(ctx);
  Link& link = *static_cast<Link*>(p);
  if (!link.lost.empty()) return fail(c, link.lost);
  if (link.under_way.empty()) return 0;
  const auto began = std::chrono::steady_clock::now();
  for (;;) {
    const cudaError_t status = cudaEventQuery(link.under_way.front());
    if (status == cudaSuccess) break;
    if (status != cudaErrorNotReady) return check(c, status, "exchange");
    cudaGetLastError();  // clears cudaErrorNotReady
    int error = 0;
    if (library().f.async_error(link.comm, &error) == 0 && error != 0)
      return fail_link(c, link,
                       who(link, "exchange") + ": " + reason(error, link.comm) + "; look for the error of the rank that failed");
    if (!wait) return LOOP_DECLINED;
    const double waited = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    if (waited > link.timeout)
      return fail_link(c, link,
                       who(link, "exchange") + " waited " + std::to_string(int(link.timeout)) +
                           " s for other ranks; look for their errors, or raise the time limit");
    if (waited > 2e-3) std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  link.spare.push_back(link.under_way.front());
  link.under_way.pop_front();
  return 0;
}

}  // namespace

void add_link(LoopBackend& table) {
  table.link_info = guarded<describe_link>;
  table.link_key = guarded<make_key>;
  table.link_open = guarded<open_link>;
  table.link_close = guarded<close_link>;
  table.link_exchange = guarded<exchange>;
  table.link_exchanged = guarded<exchanged>;
}

}  // namespace looplm::cuda
