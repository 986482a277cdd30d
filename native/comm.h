// The communication table: what the engine needs from the processes that train together. Plain C, so that each MPI
// implementation can be in its own shared library.
//
// A world has `size` ranks. All ranks make the same calls in the same order, with matching sizes. Memory is host memory;
// sizes are in bytes. A call returns when this rank's buffers are complete and may be reused. It returns 0; LOOP_COMM_TIMEOUT
// if other ranks did not come in time; or LOOP_COMM_FAILED. On failure, last_error names the operation, the rank, the cause
// and what to do. After a failure the world is unusable: every later call fails with the same error. Calls of a context never
// overlap, but may come from different threads. `open` and `close` come from the process's first thread. Any thread may call
// `abort`, `rank`, `size`, `local_rank` and `bytes_sent` at any time.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define LOOPLM_COMM_ABI 2

#ifdef __cplusplus
extern "C" {
#endif

// UNDER_WAY is not an error: the call waits for other ranks.
enum { LOOP_COMM_FAILED = 1, LOOP_COMM_TIMEOUT = 2, LOOP_COMM_UNDER_WAY = 3 };
typedef enum LoopCommReduce { LOOP_COMM_SUM = 0, LOOP_COMM_MAX = 1 } LoopCommReduce;

typedef struct LoopCommOptions {
  double timeout;         // seconds that a call waits for other ranks
  int64_t message_bytes;  // larger messages are split into pieces of this size; 0: 2^30. MPI counts in int
} LoopCommOptions;

typedef struct LoopComm {
  uint32_t abi;
  const char* name;  // "solo", "threads", "openmpi", "mpich"

  // Joins the world that the launcher started. Waits without a limit until all ranks have joined. NULL on failure;
  // last_error(NULL) then says why. Call it on the process's first thread and run nothing else meanwhile: MPI may replace
  // functions of the C library, such as munmap.
  void* (*open)(const LoopCommOptions* options);
  // Leaves the world together with all other ranks. Waits without a limit, because they may still be computing.
  void (*close)(void* ctx);
  // Ends the processes of all ranks with `status`. Returns if the world has no processes to end.
  void (*abort)(void* ctx, const char* message, int32_t status);
  const char* (*last_error)(void* ctx);
  const char* (*describe)(void* ctx);  // "Open MPI v4.1.4"

  int32_t (*rank)(void* ctx);
  int32_t (*size)(void* ctx);
  int32_t (*local_rank)(void* ctx);  // among the ranks of this machine
  int64_t (*bytes_sent)(void* ctx);  // to other ranks so far

  // send[q] goes to rank q, receive[q] comes from rank q. Arrays have one entry per rank; the entry of this rank is copied.
  int (*all_to_all_v)(void* ctx, const void* const* send, const int64_t* send_bytes, void* const* receive,
                      const int64_t* receive_bytes);
  // The same without waiting. NULL on failure. Poll it with `exchanged` until that returns something other than UNDER_WAY,
  // which also frees it. Exchanges match only other exchanges, in order: ranks may interleave them differently with other
  // calls. The arrays may be reused at once, the buffers only at the end.
  void* (*exchange)(void* ctx, const void* const* send, const int64_t* send_bytes, void* const* receive,
                    const int64_t* receive_bytes);
  int (*exchanged)(void* ctx, void* exchange);
  // data: the parts of all ranks, one after the other; bytes[q] is the size of rank q's. Before the call, this rank's part
  // must be in place.
  int (*all_gather_v)(void* ctx, void* data, const int64_t* bytes);
  // values[i] becomes the sum over the ranks, added in rank order, or the maximum. NaN stays NaN.
  int (*all_reduce)(void* ctx, LoopCommReduce op, int64_t count, double* values);
  int (*broadcast)(void* ctx, int32_t root, void* data, int64_t bytes);
  int (*barrier)(void* ctx);
} LoopComm;

#ifdef __cplusplus
}
#endif
