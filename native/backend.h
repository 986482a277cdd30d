// The kernel table: everything the engine asks of a device. Plain C, so that a backend can live in its own shared library.
//
// Conventions
//   dt     the dtype of parameters and activations ("act"): LOOP_F32, LOOP_BF16 or LOOP_F64.
//   real   the dtype of everything that accumulates (gradients, log-probabilities, gate logits): double if dt is LOOP_F64,
//          otherwise float.
//   Pointers marked `host` are host memory. All other pointers are device memory from `allocate`.
//   All matrices are row-major, and dense unless a leading dimension is given.
//   A function returns 0 on success. On failure it sets last_error and returns non-zero (LOOP_OUT_OF_MEMORY if it could not
//   get memory that it needs itself).
//   "+=" outputs accumulate. Sums run in a fixed order: the same inputs give the same bits with any number of threads.
//   A row of a forward result does not depend on the values of the other rows. With cuBLASLt it may depend on their number, from
//   1024 rows on (cuda/cublaslt.cu).
//   Indices (ids, slots, positions) must be valid. The engine checks them; a backend may check them too.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define LOOPLM_BACKEND_ABI 13

#ifdef __cplusplus
extern "C" {
#endif

typedef enum LoopDType { LOOP_F32 = 0, LOOP_BF16 = 1, LOOP_F64 = 2, LOOP_I32 = 3, LOOP_F16 = 4 } LoopDType;

// DECLINED: an optional function does not support this case. Nothing has changed; the caller uses the ordinary functions.
// UNSUPPORTED: this device cannot do what was asked, even with more memory. last_error says what it can do.
enum { LOOP_OUT_OF_MEMORY = 2, LOOP_DECLINED = 3, LOOP_UNSUPPORTED = 4 };
enum { LOOP_GEMM_REAL_OUT = 1, LOOP_GEMM_ACCUMULATE = 2 };  // C is real instead of act; C += (implies REAL_OUT)

// Properties that the engine plans with. It never decides by the name of a device.
typedef struct LoopDeviceProperties {
  uint32_t model_dtypes;  // bit set: 1 << LoopDType for each dtype that models may have
  int32_t host_visible;   // 1: device memory is host memory. memory_free and memory_total are then 0; the engine asks the host
  size_t memory_free, memory_total;  // bytes: free to allocate, and in total
  int64_t logits_bytes;              // bytes of logits that the head computes at a time
  int64_t micro_batch_bytes;         // bytes of activations of a micro-batch that stay in or near a cache
  int64_t micro_batch_tokens;        // smallest number of rows at which matrix products run at full rate
  int32_t quantized_rows;            // LoopQuantized's R; more than 1 only if device memory is host memory
  int32_t int8_activations;          // for products with quantized weights. 0: unsupported. 1: only if requested. 2: by default
  int32_t asymmetric_weights;        // 1: products support LoopQuantized's `asymmetric`
} LoopDeviceProperties;

// A quantized weight [n, k]. Element (i, l) is code(i, l) · scale(i, l / group) + middle(i, l / group). The middle is 0
// unless the weight is asymmetric. k is a multiple of `group`, and `group` is a multiple of 32.
// The codes of a row are units = k · bits / 32 units of 32 bits. Rows are stored in blocks of R, interleaved unit by unit. If
// n is not a multiple of R, the missing rows of the last block are 0.
// - Unit u of row i is codes[(i / R · units + u) · R + i % R].
// - Its scale of group g is scales[(i / R · groups + g) · R + i % R], with groups = k / group.
// - Exception: with R = 1, codes are [n, k] and scales are [groups, n].
// The codes start at a multiple of 16 bytes. The 64 bytes after them must be readable.
typedef struct LoopQuantized {
  int32_t bits;   // 8: int8 codes. 4: two codes per byte, even l in the lower half, each stored as code + 8
  int32_t group;  // number of neighbours along k that share a scale
  const void* codes;
  const float* scales;
  // 0: activations are used unchanged. 8: activations are quantized per row and per group g of k, in float32:
  // q = round(x · (127 / max |x|)), ties to even, with the scale max |x| / 127. If max |x| is at most 1e-30, q = 0. The
  // result is Σ_g scale(x, g) · (scale(i, g) · Σ_l q(l) · code(i, l) + middle(i, g) · Σ_l q(l)). It is NaN if an x is not
  // finite.
  int32_t activation_bits;
  // Not 0 (only with 4 bits): an element of `scales` holds two bfloat16 in 32 bits, the scale in the upper half and the
  // middle in the lower half.
  int32_t asymmetric;
} LoopQuantized;

// A segment: a run of packed tokens [begin, end). It attends causally to itself, and to all of the prefix run
// [prefix_begin, prefix_end). The prefix holds the tokens just before it, such as a prompt that several responses share. An
// empty prefix means that the segment is a whole sequence. The first `two_way` tokens of the segment attend to each other in
// both directions.
// The segments of a group are consecutive. A group is a prefix segment followed by the segments that read it, or a single
// segment.
typedef struct LoopSegment {
  int32_t begin, end, prefix_begin, prefix_end, group, two_way;
} LoopSegment;

// Which channels of a head the rotary embedding rotates together: (j, j + head_dim/2), or (2j, 2j + 1).
typedef enum LoopRotaryPairs { LOOP_HALVES = 0, LOOP_NEIGHBOURS = 1 } LoopRotaryPairs;
// The gate of swiglu: silu(g) = g σ(g), or only σ(g).
typedef enum LoopGate { LOOP_SILU = 0, LOOP_SIGMOID = 1 } LoopGate;

typedef struct LoopAttention {
  int64_t tokens;
  int32_t heads, kv_heads, head_dim;
  double scale;
  const LoopSegment* segments;
  int32_t segment_count, group_count;  // no backend here reads group_count: it is for those that plan by groups
  int32_t max_context;                 // largest prefix length + own length of a segment
  const void* qkv;   // act [tokens, (heads + 2 kv_heads) * head_dim]: q heads, k heads, v heads; q and k already rotated
  void* out;         // act [tokens, heads * head_dim]
  void* lse;         // real [heads, tokens]: log-sum-exp of the scaled scores; the forward writes it, the backward reads it
  const void* dout;  // act [tokens, heads * head_dim]   (backward only)
  void* dqkv;        // act, shape of qkv, fully written  (backward only)
} LoopAttention;

// A run of consecutive slots of a cache plane.
typedef struct LoopCacheRun {
  int32_t begin, length;
} LoopCacheRun;

// The slots of the keys of one decoded row in a cache plane, as runs in order. A run may be empty.
#define LOOP_CACHE_RUNS 8
typedef struct LoopCacheContext {
  LoopCacheRun runs[LOOP_CACHE_RUNS];
} LoopCacheContext;

typedef struct LoopDecodeAttention {
  int64_t rows;
  int32_t heads, kv_heads, head_dim;
  double scale;
  const void* qkv;                   // act [rows, (heads + 2 kv_heads) * head_dim]
  const void *keys, *values;         // act [slots, kv_heads * head_dim]; the row's own key and value are already written
  const LoopCacheContext* contexts;  // [rows]
  void* out;                         // act [rows, heads * head_dim]
} LoopDecodeAttention;

// A quantized KV cache. Instead of a row in act, a slot holds a record of the row's kv_heads · head_dim numbers.
// A group is `group` neighbouring numbers of one head. Its codes take words = ceil(group · bits / 32) words of 32 bits. After
// the codes of all groups comes one word per group: the scale in the lower half and the minimum in the upper half, both
// bfloat16.
// Number i of a group is minimum + scale · code(i). Its code is in word i % words and starts at bit (i / words) · bits.
// A group is quantized in float32:
// - The minimum is the largest bfloat16 that is not above any number of the group.
// - The scale is the smallest bfloat16 that is not below (largest - minimum) / (2^bits - 1).
// - code = min(round((x - minimum) · (1 / scale)), 2^bits - 1), ties to even. It is 0 if the scale is 0.
// - If a number is not finite, the minimum is NaN.
//
// Pruned keys: `kept` numbers of each group of a key record have their own code (only with 4 bits). The others, the pruned
// numbers, share one more code. Values are never pruned.
// - The pruned numbers are the group - kept numbers in the shortest interval. Sort the group, equal numbers by index. Of all
//   runs of group - kept sorted numbers, take the first with the smallest last - first in float32.
// - Their shared code is the one nearest to the middle, first / 2 + last / 2.
// - The scale is the smallest bfloat16 that is not below (largest - minimum) / 14.
// - A kept number's code is even: 2 · min(round((x - minimum) · (1 / scale) / 2), 7).
// Each of the group's `words` words has eight places, as without `kept`: number i is at place i / words of word i % words.
// The record holds these parts in order, each for all groups:
// - ceil(3 kept / 32) words: the codes of the kept numbers, halved, 3 bits each, in the order of words, then places.
// - ceil(words / 4) words: one mask byte per word. Bit p is set if the number at place p is kept.
// - One word: scale and minimum.
// - One byte: the code of the pruned numbers.
// If the scale is 0, codes and masks are 0.
typedef struct LoopCacheCodes {
  int32_t bits;   // 2, 4 or 8
  int32_t group;  // a divisor of head_dim
  int32_t kept;   // numbers of a group with their own code, less than group; 0: all
} LoopCacheCodes;

// A quantized KV cache with residuals. Each slot has one anchor record: the numbers of the token's last loop. Each earlier
// loop has a residual record: its numbers minus the anchor's decoded numbers, rounded to float32. A row in an earlier loop
// reads the sum of both.
typedef struct LoopResidualToken {
  int32_t exact, slot;  // its slot in the act planes, and the slot of its records
  int32_t loops;        // number of loops that it ran
} LoopResidualToken;

typedef struct LoopResidualEncode {
  int64_t count, width;  // number of tokens; numbers per record
  LoopCacheCodes anchor, residual;
  const LoopResidualToken* tokens;        // [count]
  int64_t exact_slots, slots;             // per plane
  const void *keys, *values;              // act [loops, exact_slots, width]
  void *anchor_keys, *anchor_values;      // records [slots]
  void *residual_keys, *residual_values;  // records [loops - 1, slots]
} LoopResidualEncode;

typedef struct LoopCodedAttention {
  LoopDecodeAttention rows;  // keys, values: records; the row's own record is optional
  LoopCacheCodes codes;      // of the keys; values are never pruned
  // After the keys and values from records come the recent ones, unquantized: act [slots, kv_heads * head_dim].
  const void *recent_keys, *recent_values;
  const LoopCacheContext* recent;  // [rows]
  // Residuals; bits 0: none. For each slot in `rows`, the row reads the sum of the slot's record and the residual record at
  // slot + residual_at[row]. If residual_at is -1, it reads only the anchor.
  LoopCacheCodes residual;
  const void *residual_keys, *residual_values;
  const int32_t* residual_at;  // [rows]
} LoopCodedAttention;

typedef struct LoopDecodeLayer {  // one block: norms [D], matrices [out, in], and the layer's first cache plane
  const void *attention_norm, *qkv, *output, *attention_norm_2, *mlp_norm, *gate_up, *down, *mlp_norm_2;
  void *keys, *values;
} LoopDecodeLayer;

// Runs one token of one row through the blocks, loop after loop. Slots count from the layer's first plane. The slots of loop
// t start `plane` slots after those of loop t - 1 (`plane` is 0 if the loops share a plane).
typedef struct LoopDecodeToken {
  int32_t layers, heads, kv_heads, head_dim;
  int64_t hidden, intermediate;
  double norm_eps, scale;
  const LoopDecodeLayer* host_layers;
  const void *norm, *gate_weight, *gate_bias;
  const void* cos_sin;       // as for rope
  const void* embedded;      // act [D]
  int32_t position, slot;    // of the token; its key and value are written to `slot`
  LoopCacheContext context;  // includes the token itself
  int64_t plane;
  // Early exit: the token exits after the first loop t, min_loops <= t < loops, with Σ_{s<=t} p_s >= threshold (math.md §1).
  // Otherwise it exits after `loops`. with_gate 0: it always runs `loops` loops, and the gate is not read.
  int32_t loops, min_loops, with_gate;
  double threshold;
  void* state;         // act [D]: the state after its last loop
  int32_t* exit_loop;  // the loop after which it exited, 1-based
} LoopDecodeToken;

typedef enum LoopSurrogate { LOOP_GIVEN = 0, LOOP_REINFORCE = 1, LOOP_PPO = 2, LOOP_CISPO = 3 } LoopSurrogate;

// How a row's log-probability ℓ becomes its coefficient c = ∂L/∂ℓ (math.md §2). Arrays are real, one entry per row.
//   GIVEN      c = scale
//   REINFORCE  c = -scale·A                        loss -scale·A·ℓ
//   PPO        c = -scale·A·r·1[A>=0 ? r < 1+ε_hi : (r > 1-ε_lo and r < dual_clip)]
//              loss: A>=0: -scale·A·min(r, 1+ε_hi); A<0: -scale·A·min(max(r, 1-ε_lo), dual_clip)          r = exp(ℓ - old)
//   CISPO      c = -scale·A·min(r, cap)            loss -scale·A·sg(min(r, cap))·ℓ
// If kl_scale is set, c += kl_scale·(1 - e^d) and loss += kl_scale·(e^d - d - 1), with d = reference - ℓ.
// scale is n·w: length normaliser times loop weight. If entropy_scale is set, the head's row kernel also minimises
// -entropy_scale·H, where H is the entropy of the row's distribution. The sums do not include this term.
typedef struct LoopLoss {
  int32_t surrogate;
  double epsilon_low, epsilon_high, dual_clip /* 0: none */, cap;
  const void* scale;
  const void* advantage;          // NULL with GIVEN
  const void* old_logprob;        // NULL: the row's own log-probability, so r = 1 (the first step on fresh rollouts)
  const void* reference_logprob;  // NULL without KL
  const void* kl_scale;           // NULL without KL
  const void* entropy_scale;      // NULL without an entropy bonus; only head_rows reads it
} LoopLoss;

typedef struct LoopLossSums {  // host doubles, summed over rows in row order
  double loss;                 // the minimised loss: surrogate + KL
  double policy_loss;
  double kl;  // Σ (e^d - d - 1) over the rows with a kl_scale other than 0
  double kl_rows;
  double ratio;                      // Σ r over the rows with a scale other than 0 (r = 1 if the surrogate has no ratio)
  double clipped_low, clipped_high;  // number of rows whose surrogate gradient was clipped
  double rows;                       // number of rows with a scale other than 0
} LoopLossSums;

typedef struct LoopAdamW {
  int64_t count;
  void* parameter;  // act
  void* master;     // real; the exact parameters if dt is bf16, otherwise NULL
  const void* gradient;
  void *first_moment, *second_moment;  // real
  double learning_rate, beta1, beta2, epsilon, weight_decay, gradient_scale;
  int64_t step;  // 1-based, for bias correction
} LoopAdamW;

typedef struct LoopSample {
  int64_t rows, vocabulary;
  const void* logits;   // real [rows, vocabulary]; the kernel may overwrite it, although it is const
  double temperature;   // 0: greedy; the lowest index wins a tie
  int32_t top_k;        // 0: off
  double top_p, min_p;  // off: top_p 1, min_p 0
  uint64_t seed;
  const int32_t *sequences, *positions;  // Philox counters: a draw depends only on (seed, sequence, position)
  int32_t* tokens;
  void* logprobs;  // real: log softmax(logits / temperature)[token] over the full vocabulary (temperature 1 if greedy)
} LoopSample;

// The edit of one logit x by the generation options: y = x + bias; then y / `repetition` if y > 0, otherwise
// y · `repetition`; then minus `penalty`. It is computed in double and rounded once. A bias of -infinity bans the token.
typedef struct LoopLogitEdit {
  int64_t place;  // row * vocabulary + token
  double bias, repetition, penalty;
} LoopLogitEdit;

typedef struct LoopLogitEdits {
  int64_t rows, vocabulary;
  void* logits;                // real [rows, vocabulary], in place
  int64_t count;               // number of edits; each has a different place
  const LoopLogitEdit* edits;  // [count]
  // [rows, ceil(vocabulary / 32)], a mask of the tokens that may be drawn; NULL: all of them. If bit v % 32 of word v / 32 is
  // not set, the logit of v becomes -infinity.
  const uint32_t* allowed;
} LoopLogitEdits;

typedef enum LoopBinaryOp { LOOP_ADD = 0, LOOP_MULTIPLY = 1 } LoopBinaryOp;
typedef enum LoopReduceOp { LOOP_SUM = 0, LOOP_MEAN = 1, LOOP_MAX = 2, LOOP_ARGMAX = 3 /* out: int32 */ } LoopReduceOp;
#define LOOP_MAX_RANK 8

// The direct link from a device to the devices of other processes, as a context describes it.
#define LOOP_LINK_KEY_BYTES 128
typedef struct LoopLinkInfo {
  int32_t usable;     // 0: no; `library` says why
  int32_t chosen;     // the user chose this library, so there is no fallback
  char library[256];  // name and version
  char device[64];    // identifies the device within its machine
} LoopLinkInfo;

typedef struct LoopBackend {
  uint32_t abi;
  const char* name;  // "cpu", "reference", "cuda"

  // Contexts and memory. threads = 0 means the default.
  void* (*open)(int32_t device, int32_t threads);
  // Describes the device that `open` would use, from its properties alone. The string is valid until the next call. Returns
  // NULL if `open` would fail, and last_error(NULL) says why. The function is NULL if the backend has none.
  const char* (*inspect)(int32_t device);
  void (*close)(void* ctx);
  const char* (*last_error)(void* ctx);
  const char* (*describe)(void* ctx);                       // e.g. "avx512_bf16, 2 threads"
  int (*properties)(void* ctx, LoopDeviceProperties* out);  // callable from any thread
  void* (*allocate)(void* ctx, size_t bytes);               // 64-byte aligned, contents undefined; NULL if out of memory
  void (*release)(void* ctx, void* p);
  int (*copy_in)(void* ctx, void* dst, const void* host_src, size_t bytes);
  int (*copy_out)(void* ctx, void* host_dst, const void* src, size_t bytes);
  int (*copy)(void* ctx, void* dst, const void* src, size_t bytes);
  int (*zero)(void* ctx, void* dst, size_t bytes);
  int (*synchronize)(void* ctx);

  // C[m,n] = op(A) op(B). A is [m,k] (lda) or, transposed, [k,m]; B is [k,n] or, transposed, [n,k] (a weight). A and B act.
  int (*gemm)(void* ctx, LoopDType dt, int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const void* a,
              int64_t lda, const void* b, int64_t ldb, void* c, int64_t ldc, int flags);

  // C[m,n] = A Bᵀ with a quantized B. A is act [m, k]; C is act, or real with LOOP_GEMM_REAL_OUT. NULL: unsupported by the
  // backend.
  int (*gemm_quantized)(void* ctx, LoopDType dt, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda,
                        const LoopQuantized* b, void* c, int64_t ldc, int flags);

  // out[i] = table[ids[i]];   dtable[ids[i]] += dout[i] (dout, dtable real; rows of one id are added in order of i)
  int (*embed)(void* ctx, LoopDType dt, int64_t n, int64_t d, const int32_t* ids, const void* table, void* out);
  int (*embed_backward)(void* ctx, LoopDType dt, int64_t n, int64_t d, int64_t vocabulary, const int32_t* ids, const void* dout,
                        void* dtable);

  // h_out = h + RMS(branch; w_branch);  x = RMS(h_out; w_next).  RMS(v; w) = v · rsqrt(mean v² + eps) · w, float32 inside.
  // branch NULL: h_out is not written and x = RMS(h; w_next).  w_branch NULL: h_out = h + branch.
  // w_next NULL: x is not written.  h_out may be h.
  int (*residual_norm)(void* ctx, LoopDType dt, int64_t n, int64_t d, double eps, const void* h, const void* branch,
                       const void* w_branch, const void* w_next, void* h_out, void* x);
  // The backward takes ∂x (act) and dh (real; on entry, ∂h_out from other uses of h_out). It computes dh += RMSᵀ(∂x) at h_out,
  // then dbranch (act) = RMS_branchᵀ(dh). dw_branch and dw_next are real, +=; NULL: not computed. branch NULL: only the first
  // step, with h_out = h. dx NULL: only the second step. w_branch NULL: dbranch = dh.
  int (*residual_norm_backward)(void* ctx, LoopDType dt, int64_t n, int64_t d, double eps, const void* h_out, const void* branch,
                                const void* w_branch, const void* w_next, const void* dx, void* dh, void* dbranch,
                                void* dw_branch, void* dw_next);

  // In place: rotates the first `heads` heads of each row (q, then k) by the row's position. inverse != 0 rotates back, for
  // the backward. cos_sin is real [max position + 1, head_dim]: head_dim/2 cosines, then head_dim/2 sines.
  int (*rope)(void* ctx, LoopDType dt, LoopRotaryPairs pairs, int64_t n, int32_t heads, int32_t head_dim, int64_t row_stride,
              const int32_t* positions, const void* cos_sin, int inverse, void* qkv);

  int (*attention)(void* ctx, LoopDType dt, const LoopAttention* a);
  int (*attention_backward)(void* ctx, LoopDType dt, const LoopAttention* a);

  // gate_up [n, 2f]: g, then u. out [n, f] = gate(g)·u. The backward writes dgate_up (may alias gate_up). It also recomputes
  // `out` for the weight gradient.
  int (*swiglu)(void* ctx, LoopDType dt, LoopGate gate, int64_t n, int64_t f, const void* gate_up, void* out);
  int (*swiglu_backward)(void* ctx, LoopDType dt, LoopGate gate, int64_t n, int64_t f, const void* gate_up, const void* dout,
                         void* dgate_up, void* out);

  // Exit gate: a[i] = w·h[i] + b (a real). Backward: dh[i] += da[i]·w (real), dw += Σ da[i]·h[i], db += Σ da[i] (real).
  int (*gate)(void* ctx, LoopDType dt, int64_t n, int64_t d, const void* h, const void* w, const void* b, void* a);
  int (*gate_backward)(void* ctx, LoopDType dt, int64_t n, int64_t d, const void* da, const void* h, const void* w, void* dh,
                       void* dw, void* db);
  // Exit distribution over loops (math.md §1). gates, log_pdf and pdf are real [loops, n]; either output may be NULL. The
  // backward computes dgates from dpdf.
  int (*exit_pdf)(void* ctx, LoopDType dt, int64_t loops, int64_t n, const void* gates, void* log_pdf, void* pdf);
  int (*exit_pdf_backward)(void* ctx, LoopDType dt, int64_t loops, int64_t n, const void* gates, const void* dpdf, void* dgates);

  // gather_rows: dst[i] = src[index[i]], for rows of d elements of `type`. scatter_add_rows: dst[index[i]] += src[i] (both
  // real); an index occurs at most once.
  int (*gather_rows)(void* ctx, LoopDType type, int64_t n, int64_t d, const int32_t* index, const void* src, void* dst);
  int (*scatter_add_rows)(void* ctx, LoopDType dt, int64_t n, int64_t d, const int32_t* index, const void* src, void* dst);
  // host_out [n, 4] in double, for rows x, y [n, d] in act: |x - y|², |x|², x·y, |y|². Waits for the device only once.
  int (*compare_rows)(void* ctx, LoopDType dt, int64_t n, int64_t d, const void* x, const void* y, double* host_out);

  // The head's row kernel over real logits [rows, vocabulary], with P = softmax(logits / temperature).
  // logprob[i] = log P[target[i]] and entropy[i] = -Σ P log P; either may be NULL. With a loss, the row is overwritten in act
  // with ∂L/∂logits = (c·(onehot(target) - P) + entropy_scale·P·(log P + H))/temperature. The rows still start every
  // `vocabulary` real elements.
  int (*head_rows)(void* ctx, LoopDType dt, int64_t rows, int64_t vocabulary, double temperature, void* logits,
                   const int32_t* targets, const LoopLoss* loss, void* logprobs, void* entropies);
  // Computes the same coefficients from given log-probabilities, and the sums. coefficients may be NULL.
  int (*policy_gradient)(void* ctx, LoopDType dt, int64_t rows, const void* logprobs, const LoopLoss* loss, void* coefficients,
                         LoopLossSums* host_sums);

  // host_out[i] = Σ x² over the host_counts[i] reals at host_x[i]. Waits for the device only once.
  int (*sum_squares)(void* ctx, LoopDType dt, int64_t arrays, const int64_t* host_counts, const void* const* host_x,
                     double* host_out);
  int (*adamw)(void* ctx, LoopDType dt, const LoopAdamW* a);

  // An exponential moving average in real: average += weight·(x - average), where x is act. `parameter` receives it rounded
  // to act (NULL: not written).
  int (*moving_average)(void* ctx, LoopDType dt, int64_t count, double weight, const void* x, void* average, void* parameter);
  // x[i][k] += sigma · N(0, 1), a pure function of (seed, streams[i], positions[i], loop, k): native/numeric/philox.h,
  // latent_noise.
  int (*add_noise)(void* ctx, LoopDType dt, int64_t n, int64_t d, double sigma, uint64_t seed, uint32_t loop,
                   const int32_t* streams, const int32_t* positions, void* x);

  // host_out[i] = deviation · normal, for element first + i of `parameter`; act, rounded once. truncated: values outside of
  // ±3 are redrawn. The bits are those of native/numeric/philox.h in double on every processor. NULL: unsupported by the
  // backend.
  int (*draw_normals)(void* ctx, LoopDType dt, int truncated, uint64_t seed, uint32_t parameter, uint32_t first, int64_t count,
                      double deviation, void* host_out);

  // Decoding. cache_write stores the k and v parts of the qkv rows at the given slots of a plane.
  int (*cache_write)(void* ctx, LoopDType dt, int64_t rows, int32_t heads, int32_t kv_heads, int32_t head_dim,
                     const int32_t* slots, const void* qkv, void* keys, void* values);
  int (*decode_attention)(void* ctx, LoopDType dt, const LoopDecodeAttention* a);
  // Quantized KV cache. cache_encode is cache_write into records; values are never pruned. cache_decode reads `rows` records
  // of `width` numbers and, unless NULL, adds those of `residuals`. It writes out act [rows, width], a row every `stride`
  // elements. cache_encode_residuals writes the records of tokens that have finished their last loop.
  int (*cache_encode)(void* ctx, LoopDType dt, LoopCacheCodes codes, int64_t rows, int32_t heads, int32_t kv_heads,
                      int32_t head_dim, const int32_t* slots, const void* qkv, void* keys, void* values);
  int (*cache_decode)(void* ctx, LoopDType dt, LoopCacheCodes codes, int64_t rows, int64_t width, const void* records,
                      LoopCacheCodes residual, const void* residuals, int64_t stride, void* out);
  int (*cache_encode_residuals)(void* ctx, LoopDType dt, const LoopResidualEncode* e);
  int (*coded_attention)(void* ctx, LoopDType dt, const LoopCodedAttention* a);
  int (*sample)(void* ctx, LoopDType dt, const LoopSample* s);
  int (*edit_logits)(void* ctx, LoopDType dt, const LoopLogitEdits* e);

  // Runs all blocks and loops of one token in one call. The result has the same bits as with the functions above. NULL:
  // unsupported by the backend.
  int (*decode_token)(void* ctx, LoopDType dt, const LoopDecodeToken* t);

  // Recording. Calls between `record` and `recorded` are stored instead of executed. They may only read and write device
  // memory. Each must have run before at the same sizes, so that none has to allocate. `replay` runs them all, with the same
  // addresses and arguments, on the current contents of that memory. NULL: unsupported by the backend.
  int (*record)(void* ctx);
  int (*recorded)(void* ctx, void** recording);  // also call it after an error; *recording is then NULL
  int (*replay)(void* ctx, void* recording);
  void (*forget)(void* ctx, void* recording);

  // Tensor operations. Strides are in elements; a stride of 0 broadcasts. `out` is dense.
  int (*binary)(void* ctx, LoopDType type, LoopBinaryOp op, int32_t rank, const int64_t* host_shape, const void* a,
                const int64_t* host_a_strides, const void* b, const int64_t* host_b_strides, void* out);
  int (*copy_strided)(void* ctx, LoopDType from, LoopDType to, int32_t rank, const int64_t* host_shape, const void* src,
                      const int64_t* host_src_strides, void* dst, const int64_t* host_dst_strides);
  int (*softmax)(void* ctx, LoopDType type, int64_t rows, int64_t n, int logarithm, const void* x, void* out);
  // LOOP_MAX and LOOP_ARGMAX take the first NaN as the largest element. On ties the lowest index wins.
  int (*reduce)(void* ctx, LoopDType type, LoopReduceOp op, int64_t outer, int64_t n, int64_t inner, const void* x, void* out);

  // For benchmarks: multiplies bytes only in registers, on all threads, to measure the peak rate of products with 8 bits on
  // both sides. *host_operations: two for each product of two bytes; each thread computes a few hundred products times
  // `rounds`. NULL: unsupported by the backend.
  int (*byte_products)(void* ctx, int64_t rounds, double* host_operations);

  // The link copies between the device memory of processes directly, without passing through host memory.
  // - Rank 0 creates a key of LOOP_LINK_KEY_BYTES. All ranks pass it to link_open, which waits for all of them (NULL: it
  //   failed).
  // - link_exchange starts an exchange after all earlier calls of the context. Its arrays have one entry per rank.
  // - link_exchanged completes the oldest exchange. With `wait` it waits at most link_open's `timeout` seconds. Otherwise it
  //   returns at once, with LOOP_DECLINED if the exchange is not complete.
  // After an error the link can no longer be used. link_info NULL: the backend has no link functions.
  int (*link_info)(void* ctx, LoopLinkInfo* out);
  int (*link_key)(void* ctx, void* host_key);
  void* (*link_open)(void* ctx, const void* host_key, int32_t rank, int32_t size, double timeout);
  void (*link_close)(void* ctx, void* link);
  int (*link_exchange)(void* ctx, void* link, const void* const* host_send, const int64_t* host_send_bytes,
                       void* const* host_receive, const int64_t* host_receive_bytes);
  int (*link_exchanged)(void* ctx, void* link, int wait);
} LoopBackend;

#ifdef __cplusplus
}

inline size_t loop_dtype_size(LoopDType t) { return t == LOOP_F64 ? 8 : (t == LOOP_BF16 || t == LOOP_F16) ? 2 : 4; }
inline const char* loop_dtype_name(LoopDType type) {
  switch (type) {
    case LOOP_F32:
      return "float32";
    case LOOP_BF16:
      return "bfloat16";
    case LOOP_F64:
      return "float64";
    case LOOP_I32:
      return "int32";
    case LOOP_F16:
      return "float16";
  }
  return "an unknown dtype";
}
// Sizes of a record (LoopCacheCodes). In words of 32 bits per group: the codes without `kept`, the codes of the kept numbers,
// the masks. loop_record_bytes: bytes of a record of `width` numbers.
inline int64_t loop_code_words(LoopCacheCodes c) { return (int64_t(c.group) * c.bits + 31) / 32; }
inline int64_t loop_kept_words(LoopCacheCodes c) { return (int64_t(c.kept) * 3 + 31) / 32; }
inline int64_t loop_mask_words(LoopCacheCodes c) { return (loop_code_words(c) + 3) / 4; }
inline int64_t loop_record_bytes(LoopCacheCodes c, int64_t width) {
  const int64_t groups = width / c.group;
  if (c.kept == 0) return groups * (loop_code_words(c) + 1) * 4;
  return (groups * (loop_kept_words(c) + loop_mask_words(c) + 1) + (groups + 3) / 4) * 4;
}
inline LoopCacheCodes loop_whole_codes(LoopCacheCodes c) { return {c.bits, c.group, 0}; }  // the same format without `kept`
inline LoopDType loop_real(LoopDType dt) { return dt == LOOP_F64 ? LOOP_F64 : LOOP_F32; }
#endif
