// Recorded calls: a captured stream, instantiated as a CUDA graph. One launch then runs a whole decoding pass. What changes
// from pass to pass (positions, slots, cache contexts, states) is read from device memory.
#include "context.h"

namespace looplm::cuda {
namespace {

int record(void* ctx) {
  Context& c = enter(ctx);
  if (c.decode == DecodeBy::launches) return LOOP_DECLINED;
  if (int status = check(c, cudaStreamBeginCapture(c.stream, cudaStreamCaptureModeThreadLocal), "record")) return status;
  c.recording = true;
  return 0;
}

int recorded(void* ctx, void** recording) {
  Context& c = enter(ctx);
  c.recording = false;
  *recording = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  int status = check(c, cudaStreamEndCapture(c.stream, &graph), "recorded");
  if (!status) status = check(c, cudaGraphInstantiate(&executable, graph, 0), "recorded");
  if (graph) cudaGraphDestroy(graph);
  if (status) return status;
  c.recordings++;
  *recording = executable;
  return 0;
}

int replay(void* ctx, void* recording) {
  Context& c = enter(ctx);
  return check(c, cudaGraphLaunch(static_cast<cudaGraphExec_t>(recording), c.stream), "replay");
}

void forget(void* ctx, void* recording) {
  Context& c = enter(ctx);
  cudaStreamSynchronize(c.stream);  // it may still be running
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(recording));
  c.recordings--;
}

}  // namespace

void add_recording(LoopBackend& table) {
  table.record = guarded<record>;
  table.recorded = guarded<recorded>;
  table.replay = guarded<replay>;
  table.forget = guarded<forget>;
}

}  // namespace looplm::cuda
