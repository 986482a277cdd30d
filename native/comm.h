// The communication table: what the engine asks of the processes that train together. Plain C, so that each implementation of MPI
// can live in its own shared library.
//
// A world has `size` ranks. All of them make the same calls in the same order, with sizes that fit together. Memory is the
// host's, and sizes are in bytes. A call returns when this rank's buffers are complete and free again: 0, LOOP_COMM_TIMEOUT when
// other ranks did not come in time, or LOOP_COMM_FAILED; last_error then names the operation, the rank, the cause and what helps.
// A world in which a call failed is lost: every later call fails with the same error. One thread makes all calls of a context,
// `open` included. `abort`, `rank`, `size`, `local_rank` and `bytes_sent` are for any thread.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define LOOPLM_COMM_ABI 2

#ifdef __cplusplus
extern "C" {
#endif

// UNDER_WAY: no error; other ranks are awaited.
enum { LOOP_COMM_FAILED = 1, LOOP_COMM_TIMEOUT = 2, LOOP_COMM_UNDER_WAY = 3 };
typedef enum LoopCommReduce { LOOP_COMM_SUM = 0, LOOP_COMM_MAX = 1 } LoopCommReduce;

typedef struct LoopCommOptions {
  double timeout;         // seconds that a call waits for other ranks
  int64_t message_bytes;  // larger messages are cut into pieces of that size; 0: 2^30. MPI counts in int
} LoopCommOptions;

typedef struct LoopComm {
  uint32_t abi;
  const char* name;  // "solo", "threads", "openmpi", "mpich"

  // Joins the world that the launcher started: waits, without a limit, until all ranks do so. NULL when that fails, and
  // last_error(NULL) says why. Called by the process's first thread, whose work rests meanwhile: MPI may replace functions of the
  // C library then, such as munmap.
  void* (*open)(const LoopCommOptions* options);
  // Leaves the world, once all ranks do so. Waits for them without a limit: they may still be at work that needs nobody.
  void (*close)(void* ctx);
  // Ends the processes of all ranks with that status. Returns in worlds that have no processes to end.
  void (*abort)(void* ctx, const char* message, int32_t status);
  const char* (*last_error)(void* ctx);
  const char* (*describe)(void* ctx);  // "Open MPI v4.1.4"

  int32_t (*rank)(void* ctx);
  int32_t (*size)(void* ctx);
  int32_t (*local_rank)(void* ctx);  // among the ranks of this machine
  int64_t (*bytes_sent)(void* ctx);  // to other ranks, so far

  // send[q] goes to rank q, receive[q] comes from rank q. Arrays have an entry per rank; that of this rank itself is copied.
  int (*all_to_all_v)(void* ctx, const void* const* send, const int64_t* send_bytes, void* const* receive,
                      const int64_t* receive_bytes);
  // The same without waiting: under way until `exchanged` says otherwise, which also ends it. NULL: it failed. Exchanges are
  // matched with each other, in their order, and with nothing else: a rank may make other calls before one that another rank
  // makes after it. The arrays are the caller's again at once, the buffers at the end.
  void* (*exchange)(void* ctx, const void* const* send, const int64_t* send_bytes, void* const* receive,
                    const int64_t* receive_bytes);
  int (*exchanged)(void* ctx, void* exchange);
  // data: the parts of all ranks back to back, bytes[q] of rank q. Before the call this rank's part is in its place.
  int (*all_gather_v)(void* ctx, void* data, const int64_t* bytes);
  // values[i] becomes the sum over the ranks, added in the order of the ranks, or the largest. A NaN stays a NaN.
  int (*all_reduce)(void* ctx, LoopCommReduce op, int64_t count, double* values);
  int (*broadcast)(void* ctx, int32_t root, void* data, int64_t bytes);
  int (*barrier)(void* ctx);
} LoopComm;

#ifdef __cplusplus
}
#endif
