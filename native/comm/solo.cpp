#include "solo.h"

#include <cstring>

namespace looplm {

namespace solo {
namespace {

char alone;  // the context; it has no state

void* open(const LoopCommOptions*) { return &alone; }
void close(void*) {}
void abort(void*, const char*, int32_t) {}
const char* last_error(void*) { return ""; }
const char* describe(void*) { return "one process"; }
int32_t zero(void*) { return 0; }
int32_t one(void*) { return 1; }
int64_t no_bytes(void*) { return 0; }

int all_to_all_v(void*, const void* const* send, const int64_t* send_bytes, void* const* receive, const int64_t*) {
  if (send_bytes[0] > 0 && send[0] != receive[0]) std::memcpy(receive[0], send[0], size_t(send_bytes[0]));
  return 0;
}
void* exchange(void* ctx, const void* const* send, const int64_t* send_bytes, void* const* receive, const int64_t* bytes) {
  all_to_all_v(ctx, send, send_bytes, receive, bytes);
  return ctx;
}
int exchanged(void*, void*) { return 0; }
int all_gather_v(void*, void*, const int64_t*) { return 0; }
int all_reduce(void*, LoopCommReduce, int64_t, double*) { return 0; }
int broadcast(void*, int32_t, void*, int64_t) { return 0; }
int barrier(void*) { return 0; }

const LoopComm table = {LOOPLM_COMM_ABI, "solo",    open,         close,      abort,     last_error,
                        describe,        zero,      one,          zero,       no_bytes,  all_to_all_v,
                        exchange,        exchanged, all_gather_v, all_reduce, broadcast, barrier};

}  // namespace
}  // namespace solo

const LoopComm* solo_comm() { return &solo::table; }

}  // namespace looplm
