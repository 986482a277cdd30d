// Pointers to a model's parameters or gradients, by role.
#pragma once
#include <cstdint>
#include <vector>

#include "linear.h"
#include "parameters.h"
#include "shift.h"

namespace looplm {

// Pointers into arenas (parameters: act; gradients: real).
struct LayerWeights {
  Linear qkv, output, gate_up, down;
  void *attention_norm = nullptr, *attention_norm_2 = nullptr, *mlp_norm = nullptr, *mlp_norm_2 = nullptr;
  void *query_norm = nullptr, *key_norm = nullptr;
  Shift shift;  // of an adapter
};
// Among gradients, NULL means not trained. With an adapter, only its own matrices and the exit gate have gradients; the
// gate's gradient is not used.
struct Weights {
  void *embedding = nullptr, *head = nullptr /* the embedding when tied; NULL when quantized */;
  const void* ones = nullptr;                         // act [D]
  void *gate_weight = nullptr, *gate_bias = nullptr;  // of the exit gate
  std::vector<void*> norms, starts;                   // indexed by the `index` of norm and start steps
  std::vector<Linear> injections;                     // [D, 2 D]
  std::vector<LayerWeights> layers;
  int64_t rank = 0;             // of the adapters
  int64_t shift_rank = 0;       // of the layers' shifts; 0: there are none
  int32_t adapter_loops = 0;    // number of loops with separate adapters; 0: all loops share one
  const void* scale = nullptr;  // alpha / rank of the adapter: real, on the device
  const void *embedding_scale = nullptr, *embedding_scale_real = nullptr;  // one number each, act and real; NULL: 1
  const LoopQuantized* quantized_head = nullptr;
};

// The member for the matrix of a layer; NULL for other roles.
Linear LayerWeights::*matrix_of(Role role);
inline bool is_layer_matrix(Role role) { return matrix_of(role) != nullptr; }

// Pointers into an arena with elements of `type`, laid out like `parameters`. Quantized parameters are not in it.
Weights weights_in(Buffer& arena, LoopDType type, const Architecture& config, const std::vector<Parameter>& parameters);

}  // namespace looplm
