// The kernel table: everything the engine asks of a device. Plain C, so that a backend can live in its own shared library.
//
// Conventions
//   dt     the dtype of parameters and activations ("act"): LOOP_F32, LOOP_BF16 or LOOP_F64.
//   real   the dtype of everything that accumulates (gradients, log-probabilities, gate logits): double when dt is LOOP_F64, else
//   float. Pointers marked `host` are ordinary memory; every other pointer is device memory from `allocate`. All matrices are
//   row-major and dense unless a leading dimension is given. A function returns 0, or non-zero after setting last_error
//   (LOOP_OUT_OF_MEMORY when memory of its own was missing).
//   "+=" outputs accumulate. Sums run in a fixed order: the same inputs give the same bits whatever the number of threads.
//   A row of a forward result never depends on the other rows of the call.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define LOOPLM_BACKEND_ABI 13

#ifdef __cplusplus
extern "C" {
#endif

typedef enum LoopDType { LOOP_F32 = 0, LOOP_BF16 = 1, LOOP_F64 = 2, LOOP_I32 = 3, LOOP_F16 = 4 } LoopDType;

// DECLINED: an optional function does not do this case. Nothing has happened, and the caller takes the ordinary way.
// UNSUPPORTED: this device cannot do what was asked, even with more memory; last_error says what it can do.
enum { LOOP_OUT_OF_MEMORY = 2, LOOP_DECLINED = 3, LOOP_UNSUPPORTED = 4 };
enum { LOOP_GEMM_REAL_OUT = 1, LOOP_GEMM_ACCUMULATE = 2 };  // C is real instead of act; C += (implies REAL_OUT)

// What the engine plans with, instead of a device's name.
typedef struct LoopDeviceProperties {
  uint32_t model_dtypes;             // 1 << LoopDType of each dtype that models may have
  int32_t host_visible;              // device memory is the host's: the numbers of bytes below are 0, and the host's count
  size_t memory_free, memory_total;  // bytes that can still be allocated, and all of them
  int64_t logits_bytes;              // of logits that the head makes at a time
  int64_t micro_batch_bytes;         // of activations of a micro-batch, so that they stay in or near a cache
  int64_t micro_batch_tokens;        // rows from which on products run at their full rate
  int32_t quantized_rows;            // LoopQuantized's R; more than 1 only where device memory is the host's
  int32_t int8_activations;          // of products with quantized weights. 0: there are none. 1: when asked for. 2: unless not
  int32_t asymmetric_weights;        // products take LoopQuantized's `asymmetric`
} LoopDeviceProperties;

// A weight [n, k] in few bits: element (i, l) is code(i, l) · scale(i, l / group) + middle(i, l / group). The middle is 0 unless
// the weight is asymmetric. k is a multiple of `group`, `group` of 32.
// A row's codes are k · bits / 32 units of 32 bits. R rows lie side by side, unit by unit, and those that are missing in the last
// R are 0: unit u of row i is codes[(i / R · units + u) · R + i % R], and its scale of group g scales[(i / R · groups + g) · R +
// i % R]. With R = 1, codes are [n, k] and scales, which is its own exception, [groups, n].
// The codes begin at a multiple of 16 bytes, and behind them lie 64 bytes that may be read.
typedef struct LoopQuantized {
  int32_t bits;   // 8: int8 codes. 4: two codes a byte, the lower half the even l, each stored as code + 8
  int32_t group;  // neighbours along k that share a scale
  const void* codes;
  const float* scales;
  // 0: products take activations as they are. 8: of every row and group g of k they take q = round(x · (127 / max |x|)), ties to
  // even, and the scale max |x| / 127, both computed in float32; where max |x| is not above 1e-30, q = 0. The result is
  // Σ_g scale(x, g) · (scale(i, g) · Σ_l q(l) · code(i, l) + middle(i, g) · Σ_l q(l)), NaN where an x is not finite.
  int32_t activation_bits;
  // Not 0 (4 bits alone): an element of `scales` is two bfloat16 in 32 bits, the scale in the upper half, the middle in the
  // lower.
  int32_t asymmetric;
} LoopQuantized;

// A run of packed tokens [begin, end) that attends causally to itself and to all of the prefix run [prefix_begin, prefix_end),
// which holds the tokens just before it (a prompt that several responses share). An empty prefix means a whole sequence.
// Its first `two_way` tokens attend to each other both ways.
// Segments of one group are consecutive; a group is a prefix segment followed by the segments that read it, or one segment alone.
typedef struct LoopSegment {
  int32_t begin, end, prefix_begin, prefix_end, group, two_way;
} LoopSegment;

// Which channels of a head the rotary embedding turns together: (j, j + head_dim/2), or (2j, 2j + 1).
typedef enum LoopRotaryPairs { LOOP_HALVES = 0, LOOP_NEIGHBOURS = 1 } LoopRotaryPairs;
// The gate of swiglu: silu(g) = g σ(g), or σ(g) alone.
typedef enum LoopGate { LOOP_SILU = 0, LOOP_SIGMOID = 1 } LoopGate;

typedef struct LoopAttention {
  int64_t tokens;
  int32_t heads, kv_heads, head_dim;
  double scale;
  const LoopSegment* segments;
  int32_t segment_count, group_count;
  int32_t max_context;  // the longest prefix + own length of a segment
  const void* qkv;      // act [tokens, (heads + 2 kv_heads) * head_dim]: q heads, k heads, v heads; q and k already rotated
  void* out;            // act [tokens, heads * head_dim]
  void* lse;            // real [heads, tokens]: log-sum-exp of the scaled scores, written forward, read backward
  const void* dout;     // act [tokens, heads * head_dim]   (backward only)
  void* dqkv;           // act, shape of qkv, fully written  (backward only)
} LoopAttention;

// Neighbouring slots of a cache plane.
typedef struct LoopCacheRun {
  int32_t begin, length;
} LoopCacheRun;

// Where the keys of one decoded row lie in a cache plane: run after run. A run may be empty.
#define LOOP_CACHE_RUNS 8
typedef struct LoopCacheContext {
  LoopCacheRun runs[LOOP_CACHE_RUNS];
} LoopCacheContext;

typedef struct LoopDecodeAttention {
  int64_t rows;
  int32_t heads, kv_heads, head_dim;
  double scale;
  const void* qkv;                   // act [rows, (heads + 2 kv_heads) * head_dim]
  const void *keys, *values;         // act [slots, kv_heads * head_dim], the row's own key and value already written
  const LoopCacheContext* contexts;  // [rows]
  void* out;                         // act [rows, heads * head_dim]
} LoopDecodeAttention;

// A cache in few bits. Instead of a row in act, a slot has a record: of the row's kv_heads · head_dim numbers each group of
// `group` neighbours, which lie in one head, in words = ceil(group · bits / 32) words of 32 bits; behind those of all groups each
// group's scale and minimum, bfloat16. Number i of a group is minimum + scale · code(i), and its code lies in word i % words from
// bit (i / words) · bits on. A group is rounded in float32: the minimum is the largest bfloat16 not above any of its numbers, the
// scale the smallest one not below (largest - minimum) / (2^bits - 1), and code = min(round((x - minimum) · (1 / scale)),
// 2^bits - 1), ties to even, 0 where the scale is 0. When a number is not finite, the minimum is NaN.
//
// With `kept`, and then 4 bits, a record of keys has codes of so many numbers of a group, and one more code that stands for the
// others, the pruned ones. Those are the group - kept numbers that lie in the shortest interval: with the numbers in their order,
// equal ones by place, the first run of so many with the least last - first in float32. Their code is the nearest to the middle
// first / 2 + last / 2. The scale is of 1 / 14 of the range, and a kept number's code is even, 2 · min(round((x - minimum) ·
// (1 / scale) / 2), 7). Eight places belong to each of the words that a group without `kept` has: number i is at place i / words
// of word i % words. The record holds, each for all groups: ceil(3 kept / 32) words of kept codes, halved, in 3 bits each in the
// order of words and places; ceil(words / 4) words with a byte of each word, bit p set where the number at place p is kept; scale
// and minimum; a byte, the code of the pruned ones. Where the scale is 0, codes and masks are 0.
typedef struct LoopCacheCodes {
  int32_t bits;   // 2, 4 or 8
  int32_t group;  // a divisor of head_dim
  int32_t kept;   // less than group; 0: all
} LoopCacheCodes;

// Of a cache with residuals. A slot has one record of the numbers in its last loop, the anchor. Each earlier loop has a record of
// the difference, rounded to float32, between its numbers and those that the anchor's codes stand for. A row of an earlier loop
// reads the sum of both.
typedef struct LoopResidualToken {
  int32_t exact, slot;  // where its numbers lie in act, and where its records go
  int32_t loops;        // that it has
} LoopResidualToken;

typedef struct LoopResidualEncode {
  int64_t count, width;  // tokens; numbers of a record
  LoopCacheCodes anchor, residual;
  const LoopResidualToken* tokens;        // [count]
  int64_t exact_slots, slots;             // of a plane
  const void *keys, *values;              // act [loops, exact_slots, width]
  void *anchor_keys, *anchor_values;      // records [slots]
  void *residual_keys, *residual_values;  // records [loops - 1, slots]
} LoopResidualEncode;

typedef struct LoopCodedAttention {
  LoopDecodeAttention rows;  // keys, values: records; a row's own need not be among them
  LoopCacheCodes codes;      // of keys; values keep all
  // Behind those of the records come the recent keys and values, as they were: act [slots, kv_heads * head_dim].
  const void *recent_keys, *recent_values;
  const LoopCacheContext* recent;  // [rows]
  // With residuals, else bits 0: a row's record of a slot in `rows` and that of the slot residual_at[row] behind it in these are
  // added. residual_at -1: the row reads the anchor alone.
  LoopCacheCodes residual;
  const void *residual_keys, *residual_values;
  const int32_t* residual_at;  // [rows]
} LoopCodedAttention;

typedef struct LoopDecodeLayer {  // of a block: norms [D], matrices [out, in], and the first of the layer's cache planes
  const void *attention_norm, *qkv, *output, *attention_norm_2, *mlp_norm, *gate_up, *down, *mlp_norm_2;
  void *keys, *values;
} LoopDecodeLayer;

// One token of one row through the blocks, loop after loop. Slots count from the layer's first plane; loop t's lie `plane` slots
// behind those of loop t - 1 (0 where the loops share a plane).
typedef struct LoopDecodeToken {
  int32_t layers, heads, kv_heads, head_dim;
  int64_t hidden, intermediate;
  double norm_eps, scale;
  const LoopDecodeLayer* host_layers;
  const void *norm, *gate_weight, *gate_bias;
  const void* cos_sin;       // as for rope
  const void* embedded;      // act [D]
  int32_t position, slot;    // of the token; its key and value are written there
  LoopCacheContext context;  // the token itself included
  int64_t plane;
  // It leaves after the first loop t, min_loops <= t < loops, at which Σ_{s<=t} p_s >= threshold (math.md §1), and after `loops`
  // in any case. with_gate 0: that case alone, and the gate is not read.
  int32_t loops, min_loops, with_gate;
  double threshold;
  void* state;    // act [D]: after the loop that it left from
  int32_t* left;  // that loop, 1-based
} LoopDecodeToken;

typedef enum LoopSurrogate { LOOP_GIVEN = 0, LOOP_REINFORCE = 1, LOOP_PPO = 2, LOOP_CISPO = 3 } LoopSurrogate;

// How a row's log-probability ℓ becomes its coefficient c = ∂L/∂ℓ (math.md §2). Arrays are real, one entry per row.
//   GIVEN      c = scale
//   REINFORCE  c = -scale·A                        loss -scale·A·ℓ
//   PPO        c = -scale·A·r·1[A>=0 ? r < 1+ε_hi : (r > 1-ε_lo and r < dual_clip)]
//              loss: A>=0: -scale·A·min(r, 1+ε_hi); A<0: -scale·A·min(max(r, 1-ε_lo), dual_clip)          r = exp(ℓ - old)
//   CISPO      c = -scale·A·min(r, cap)            loss -scale·A·sg(min(r, cap))·ℓ
// and, when kl_scale is given, + kl_scale·(1 - e^d), loss + kl_scale·(e^d - d - 1), d = reference - ℓ.
// scale is n·w: length normaliser times loop weight. When entropy_scale is given, the head's row kernel also descends on
// - entropy_scale·H, H the entropy of the row's distribution; the sums know nothing of it.
typedef struct LoopLoss {
  int32_t surrogate;
  double epsilon_low, epsilon_high, dual_clip /* 0: none */, cap;
  const void* scale;
  const void* advantage;          // NULL with GIVEN
  const void* old_logprob;        // NULL: the row's own, r = 1 (the first step on fresh rollouts)
  const void* reference_logprob;  // NULL without KL
  const void* kl_scale;           // NULL without KL
  const void* entropy_scale;      // NULL without an entropy bonus; read by head_rows alone
} LoopLoss;

typedef struct LoopLossSums {  // host doubles, summed over rows in row order
  double loss;                 // surrogate + KL, as minimised
  double policy_loss;
  double kl;  // Σ (e^d - d - 1) over the rows whose kl_scale is not 0
  double kl_rows;
  double ratio;                      // Σ r over the rows whose scale is not 0 (1 where the surrogate has no ratio)
  double clipped_low, clipped_high;  // rows whose surrogate gradient was cut
  double rows;                       // rows whose scale is not 0
} LoopLossSums;

typedef struct LoopAdamW {
  int64_t count;
  void* parameter;  // act
  void* master;     // real; the truth when dt is bf16, NULL otherwise
  const void* gradient;
  void *first_moment, *second_moment;  // real
  double learning_rate, beta1, beta2, epsilon, weight_decay, gradient_scale;
  int64_t step;  // 1-based, for bias correction
} LoopAdamW;

typedef struct LoopSample {
  int64_t rows, vocabulary;
  const void* logits;   // real [rows, vocabulary], may be overwritten
  double temperature;   // 0: greedy, the lowest index wins a tie
  int32_t top_k;        // 0: off
  double top_p, min_p;  // 1 and 0: off
  uint64_t seed;
  const int32_t *sequences, *positions;  // Philox counters: a draw depends on (seed, sequence, position) alone
  int32_t* tokens;
  void* logprobs;  // real: log softmax(logits / temperature)[token] over the full vocabulary (temperature 1 when greedy)
} LoopSample;

// What generation options make of one logit x: y = x + bias, divided by `repetition` where y > 0 and multiplied by it elsewhere,
// then minus `penalty`; computed in double, rounded once. A bias of -infinity bans the token.
typedef struct LoopLogitEdit {
  int64_t place;  // row * vocabulary + token
  double bias, repetition, penalty;
} LoopLogitEdit;

typedef struct LoopLogitEdits {
  int64_t rows, vocabulary;
  void* logits;                // real [rows, vocabulary], in place
  int64_t count;               // of the edits, each of a place of its own
  const LoopLogitEdit* edits;  // [count]
  // [rows, ceil(vocabulary / 32)], NULL: every token may be drawn. Where bit v % 32 of word v / 32 is not set, the logit of v
  // becomes -infinity.
  const uint32_t* allowed;
} LoopLogitEdits;

typedef enum LoopBinaryOp { LOOP_ADD = 0, LOOP_MULTIPLY = 1 } LoopBinaryOp;
typedef enum LoopReduceOp { LOOP_SUM = 0, LOOP_MEAN = 1, LOOP_MAX = 2, LOOP_ARGMAX = 3 /* out: int32 */ } LoopReduceOp;
#define LOOP_MAX_RANK 8

// What a context can say of the direct way from its device to those of other processes.
#define LOOP_LINK_KEY_BYTES 128
typedef struct LoopLinkInfo {
  int32_t usable;     // 0: `library` says why not
  int32_t chosen;     // the user named this library, and would not have another way
  char library[256];  // name and version
  char device[64];    // which device of its machine this is
} LoopLinkInfo;

typedef struct LoopBackend {
  uint32_t abi;
  const char* name;  // "cpu", "reference", "cuda"

  // Contexts and memory. options: threads = 0 asks for the default.
  void* (*open)(int32_t device, int32_t threads);
  // What `open` would find, from the properties of the device alone, valid until the next call; NULL where it would fail, and
  // last_error(NULL) says why. NULL: the backend has none.
  const char* (*inspect)(int32_t device);
  void (*close)(void* ctx);
  const char* (*last_error)(void* ctx);
  const char* (*describe)(void* ctx);                       // e.g. "avx512_bf16, 2 threads"
  int (*properties)(void* ctx, LoopDeviceProperties* out);  // any thread
  void* (*allocate)(void* ctx, size_t bytes);               // 64-byte aligned, contents undefined; NULL when out of memory
  void (*release)(void* ctx, void* p);
  int (*copy_in)(void* ctx, void* dst, const void* host_src, size_t bytes);
  int (*copy_out)(void* ctx, void* host_dst, const void* src, size_t bytes);
  int (*copy)(void* ctx, void* dst, const void* src, size_t bytes);
  int (*zero)(void* ctx, void* dst, size_t bytes);
  int (*synchronize)(void* ctx);

  // C[m,n] = op(A) op(B). A is [m,k] (lda) or, transposed, [k,m]; B is [k,n] or, transposed, [n,k] (a weight). A and B act.
  int (*gemm)(void* ctx, LoopDType dt, int transpose_a, int transpose_b, int64_t m, int64_t n, int64_t k, const void* a,
              int64_t lda, const void* b, int64_t ldb, void* c, int64_t ldc, int flags);

  // C[m,n] = A Bᵀ with a quantized B; A is act [m, k], C act or with LOOP_GEMM_REAL_OUT real. NULL: the backend has none.
  int (*gemm_quantized)(void* ctx, LoopDType dt, int64_t m, int64_t n, int64_t k, const void* a, int64_t lda,
                        const LoopQuantized* b, void* c, int64_t ldc, int flags);

  // out[i] = table[ids[i]];   dtable[ids[i]] += dout[i] (dout, dtable real; rows of one id are added in order of i)
  int (*embed)(void* ctx, LoopDType dt, int64_t n, int64_t d, const int32_t* ids, const void* table, void* out);
  int (*embed_backward)(void* ctx, LoopDType dt, int64_t n, int64_t d, int64_t vocabulary, const int32_t* ids, const void* dout,
                        void* dtable);

  // h_out = h + RMS(branch; w_branch);  x = RMS(h_out; w_next).  RMS(v; w) = v · rsqrt(mean v² + eps) · w, float32 inside.
  // branch NULL: h_out is not written and x = RMS(h; w_next).  w_branch NULL: h_out = h + branch.  w_next NULL: x is not written.
  // h_out may be h.
  int (*residual_norm)(void* ctx, LoopDType dt, int64_t n, int64_t d, double eps, const void* h, const void* branch,
                       const void* w_branch, const void* w_next, void* h_out, void* x);
  // Given ∂x (act) and dh (real, in: ∂h_out from elsewhere): dh += RMSᵀ(∂x) at h_out, and dbranch (act) = RMS_branchᵀ(dh).
  // dw_branch, dw_next real +=, NULL: not wanted. branch NULL: only the first half, h_out is then h. dx NULL: only the second
  // half. w_branch NULL: dbranch = dh.
  int (*residual_norm_backward)(void* ctx, LoopDType dt, int64_t n, int64_t d, double eps, const void* h_out, const void* branch,
                                const void* w_branch, const void* w_next, const void* dx, void* dh, void* dbranch,
                                void* dw_branch, void* dw_next);

  // In place: rotates the first `heads` heads of each row (q, then k) by the row's position; inverse != 0 rotates back (the
  // backward). cos_sin real [max position + 1, head_dim]: head_dim/2 cosines, then head_dim/2 sines.
  int (*rope)(void* ctx, LoopDType dt, LoopRotaryPairs pairs, int64_t n, int32_t heads, int32_t head_dim, int64_t row_stride,
              const int32_t* positions, const void* cos_sin, int inverse, void* qkv);

  int (*attention)(void* ctx, LoopDType dt, const LoopAttention* a);
  int (*attention_backward)(void* ctx, LoopDType dt, const LoopAttention* a);

  // gate_up [n, 2f]: g then u. out [n,f] = gate(g)·u. Backward: dgate_up (may alias gate_up) and out, recomputed for the weight
  // gradient.
  int (*swiglu)(void* ctx, LoopDType dt, LoopGate gate, int64_t n, int64_t f, const void* gate_up, void* out);
  int (*swiglu_backward)(void* ctx, LoopDType dt, LoopGate gate, int64_t n, int64_t f, const void* gate_up, const void* dout,
                         void* dgate_up, void* out);

  // Exit gate: a[i] = w·h[i] + b (a real). Backward: dh[i] += da[i]·w (real), dw += Σ da[i]·h[i], db += Σ da[i] (real).
  int (*gate)(void* ctx, LoopDType dt, int64_t n, int64_t d, const void* h, const void* w, const void* b, void* a);
  int (*gate_backward)(void* ctx, LoopDType dt, int64_t n, int64_t d, const void* da, const void* h, const void* w, void* dh,
                       void* dw, void* db);
  // Exit distribution over loops (math.md §1): gates, log_pdf, pdf real [loops, n]; either output may be NULL. Backward: dgates
  // from dpdf.
  int (*exit_pdf)(void* ctx, LoopDType dt, int64_t loops, int64_t n, const void* gates, void* log_pdf, void* pdf);
  int (*exit_pdf_backward)(void* ctx, LoopDType dt, int64_t loops, int64_t n, const void* gates, const void* dpdf, void* dgates);

  // dst[i] = src[index[i]], rows of d elements of `type`;   dst[index[i]] += src[i] (both real), every index at most once.
  int (*gather_rows)(void* ctx, LoopDType type, int64_t n, int64_t d, const int32_t* index, const void* src, void* dst);
  int (*scatter_add_rows)(void* ctx, LoopDType dt, int64_t n, int64_t d, const int32_t* index, const void* src, void* dst);
  // host_out [n, 4], in double, of rows x, y [n, d] in act: |x - y|², |x|², x·y, |y|². All of them with one wait.
  int (*compare_rows)(void* ctx, LoopDType dt, int64_t n, int64_t d, const void* x, const void* y, double* host_out);

  // The head's row kernel over real logits [rows, vocabulary] (a row per stride `vocabulary`), P = softmax(logits / temperature):
  // logprob[i] = log P[target[i]], entropy[i] = -Σ P log P (each may be NULL). With a loss, the row becomes
  // ∂L/∂logits = (c·(onehot(target) - P) + entropy_scale·P·(log P + H))/temperature in act, in place, still at a stride of
  // `vocabulary` real elements.
  int (*head_rows)(void* ctx, LoopDType dt, int64_t rows, int64_t vocabulary, double temperature, void* logits,
                   const int32_t* targets, const LoopLoss* loss, void* logprobs, void* entropies);
  // The same coefficients from known log-probabilities, and the sums. coefficients may be NULL.
  int (*policy_gradient)(void* ctx, LoopDType dt, int64_t rows, const void* logprobs, const LoopLoss* loss, void* coefficients,
                         LoopLossSums* host_sums);

  // host_out[i] = Σ x² over the host_counts[i] reals at host_x[i]: all of them with one wait.
  int (*sum_squares)(void* ctx, LoopDType dt, int64_t arrays, const int64_t* host_counts, const void* const* host_x,
                     double* host_out);
  int (*adamw)(void* ctx, LoopDType dt, const LoopAdamW* a);

  // parameter = average = average + weight·(x - average): an exponential moving average kept in real, rounded to act in
  // `parameter` (NULL: not written). x act.
  int (*moving_average)(void* ctx, LoopDType dt, int64_t count, double weight, const void* x, void* average, void* parameter);
  // x[i][k] += sigma · N(0, 1), a pure function of (seed, streams[i], positions[i], loop, k): native/numeric/philox.h,
  // latent_noise.
  int (*add_noise)(void* ctx, LoopDType dt, int64_t n, int64_t d, double sigma, uint64_t seed, uint32_t loop,
                   const int32_t* streams, const int32_t* positions, void* x);

  // host_out[i] = deviation · normal (truncated: redrawn outside of ±3) of element first + i of `parameter`, act, rounded once:
  // the bits of native/numeric/philox.h in double on every processor. NULL: the backend has none.
  int (*draw_normals)(void* ctx, LoopDType dt, int truncated, uint64_t seed, uint32_t parameter, uint32_t first, int64_t count,
                      double deviation, void* host_out);

  // Decoding. cache_write stores the k and v parts of qkv rows at slots of a plane.
  int (*cache_write)(void* ctx, LoopDType dt, int64_t rows, int32_t heads, int32_t kv_heads, int32_t head_dim,
                     const int32_t* slots, const void* qkv, void* keys, void* values);
  int (*decode_attention)(void* ctx, LoopDType dt, const LoopDecodeAttention* a);
  // A cache in few bits. cache_encode is cache_write into records; values have no `kept`. cache_decode: out act [rows, width], a
  // row every `stride` elements, from `rows` records of `width` numbers, to which those of `residuals` are added unless that is
  // NULL. cache_encode_residuals writes the records of tokens whose last loop is there.
  int (*cache_encode)(void* ctx, LoopDType dt, LoopCacheCodes codes, int64_t rows, int32_t heads, int32_t kv_heads,
                      int32_t head_dim, const int32_t* slots, const void* qkv, void* keys, void* values);
  int (*cache_decode)(void* ctx, LoopDType dt, LoopCacheCodes codes, int64_t rows, int64_t width, const void* records,
                      LoopCacheCodes residual, const void* residuals, int64_t stride, void* out);
  int (*cache_encode_residuals)(void* ctx, LoopDType dt, const LoopResidualEncode* e);
  int (*coded_attention)(void* ctx, LoopDType dt, const LoopCodedAttention* a);
  int (*sample)(void* ctx, LoopDType dt, const LoopSample* s);
  int (*edit_logits)(void* ctx, LoopDType dt, const LoopLogitEdits* e);

  // All blocks and loops of one token at once, bit for bit what the functions above make of it. NULL: the backend has none.
  int (*decode_token)(void* ctx, LoopDType dt, const LoopDecodeToken* t);

  // Calls kept for later. From `record` to `recorded` calls are kept instead of done: those that read and write device memory
  // alone, each of which has been done before at the same sizes, so that none needs memory of its own any more. `replay` does
  // them all, with the same addresses and numbers and whatever lies there by then. NULL: the backend has none.
  int (*record)(void* ctx);
  int (*recorded)(void* ctx, void** recording);  // after an error too; *recording is then NULL
  int (*replay)(void* ctx, void* recording);
  void (*forget)(void* ctx, void* recording);

  // Tensor operations. Strides are in elements; a stride of 0 broadcasts. `out` is dense.
  int (*binary)(void* ctx, LoopDType type, LoopBinaryOp op, int32_t rank, const int64_t* host_shape, const void* a,
                const int64_t* host_a_strides, const void* b, const int64_t* host_b_strides, void* out);
  int (*copy_strided)(void* ctx, LoopDType from, LoopDType to, int32_t rank, const int64_t* host_shape, const void* src,
                      const int64_t* host_src_strides, void* dst, const int64_t* host_dst_strides);
  int (*softmax)(void* ctx, LoopDType type, int64_t rows, int64_t n, int logarithm, const void* x, void* out);
  int (*reduce)(void* ctx, LoopDType type, LoopReduceOp op, int64_t outer, int64_t n, int64_t inner, const void* x, void* out);

  // Multiplies bytes in registers alone, on all threads: what products with 8 bits on both sides could reach, for benchmarks.
  // *host_operations: two for each product of two bytes, of which each thread did some hundred times `rounds`. NULL: there is
  // none.
  int (*byte_products)(void* ctx, int64_t rounds, double* host_operations);

  // The link: device memory to and from the devices of other processes, without the host's memory between them. Rank 0 makes a
  // key of LOOP_LINK_KEY_BYTES, all ranks open with it, and wait for each other there (NULL: it failed). An exchange is asked for
  // behind everything asked of the context before, and is under way until `link_exchanged` has found it complete, the oldest one
  // first: with `wait` after at most `timeout` seconds, else at once, LOOP_DECLINED when it is not. Arrays have an entry per
  // rank. After an error the link is lost. link_info NULL: the backend has none of these.
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
// Of a LoopCacheCodes: words of a group whose codes are all there, those with `kept`, and bytes of a record of `width` numbers.
inline int64_t loop_code_words(LoopCacheCodes c) { return (int64_t(c.group) * c.bits + 31) / 32; }
inline int64_t loop_kept_words(LoopCacheCodes c) { return (int64_t(c.kept) * 3 + 31) / 32; }
inline int64_t loop_mask_words(LoopCacheCodes c) { return (loop_code_words(c) + 3) / 4; }
inline int64_t loop_record_bytes(LoopCacheCodes c, int64_t width) {
  const int64_t groups = width / c.group;
  if (c.kept == 0) return groups * (loop_code_words(c) + 1) * 4;
  return (groups * (loop_kept_words(c) + loop_mask_words(c) + 1) + (groups + 3) / 4) * 4;
}
inline LoopCacheCodes loop_whole_codes(LoopCacheCodes c) { return {c.bits, c.group, 0}; }  // without `kept`
inline LoopDType loop_real(LoopDType dt) { return dt == LOOP_F64 ? LOOP_F64 : LOOP_F32; }
#endif
