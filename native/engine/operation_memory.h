// Device buffers that operations reuse from call to call. Each belongs to one operation, or to one step that several
// operations share. They only grow, and belong to the model.
#pragma once
#include "device.h"

namespace looplm {

struct BatchMemory {      // a packed batch of N tokens
  Buffer ids, positions;  // int32 [N]
  Buffer segments;        // LoopSegment
  Buffer previous;        // int32 [N]
  Buffer states;          // act [N, D]
  Buffer vectors;         // act [input vectors, D]
  Buffer d_vectors;       // real, the same shape
};

struct HeadMemory {
  Buffer index, targets;            // int32 [rows]
  Buffer hidden, logits, d_hidden;  // for a chunk of m rows: act [m, D], real [m, V], real [m, D]
  Buffer values;                    // real [2, rows]: log-probabilities, then entropies, so that one download gets both
  Buffer predicted;                 // int32 [rows]
};

struct RowLossMemory {  // real [rows]
  Buffer scale, advantage, old_logprob, reference_logprob, kl_scale, entropy_scale, coefficients;
};

struct ExitMemory {
  Buffer token_gates, d_token_gates;  // real [K, N]
  Buffer index;                       // int32 [K, R]: positions of the rows in them
  Buffer gates;                       // real [K, R]
  Buffer pdf;                         // real [K, R] followed by its logarithm, or [K, N] for all tokens
  Buffer d_pdf, d_gates;              // real [K, R]
};

struct LoopRptMemory {
  Buffer first, d_first;  // act and real [N, D]: the states after the first loop, and their gradient
  Buffer streams, noise;  // int32 [N]; act [T, N, D]
};

struct OperationMemory {
  BatchMemory batch;
  HeadMemory head;
  RowLossMemory loss;
  ExitMemory exits;
  LoopRptMemory looprpt;
  Buffer d_hidden;     // real [K, N, D]
  Buffer last_states;  // real [N, D]
};

}  // namespace looplm
