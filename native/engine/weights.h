// Where a model's parameters or gradients lie, by what they are for.
#pragma once
#include <cstdint>
#include <vector>

#include "linear.h"
#include "parameters.h"
#include "shift.h"

namespace looplm {

// Pointers into arenas (parameters: act, gradients: real).
struct LayerWeights {
  Linear qkv, output, gate_up, down;
  void *attention_norm = nullptr, *attention_norm_2 = nullptr, *mlp_norm = nullptr, *mlp_norm_2 = nullptr;
  void *query_norm = nullptr, *key_norm = nullptr;
  Shift shift;  // of an adapter
};
// As gradients: NULL for what is not trained (of a model with an adapter: for all but the adapters, and the exit gate, whose
// place nobody reads).
struct Weights {
  void *embedding = nullptr, *head = nullptr /* the embedding when tied; NULL when quantized */;
  const void* ones = nullptr;                         // act [D]
  void *gate_weight = nullptr, *gate_bias = nullptr;  // of the exit gate
  std::vector<void*> norms, starts;                   // of the steps that name them
  std::vector<Linear> injections;                     // [D, 2 D]
  std::vector<LayerWeights> layers;
  int64_t rank = 0;                                                        // of the adapters
  int64_t shift_rank = 0;                                                  // of the layers' shifts; 0: there are none
  int32_t adapter_loops = 0;                                               // that have their own adapters; 0: they share one
  const void* scale = nullptr;                                             // and alpha / rank: real, on the device
  const void *embedding_scale = nullptr, *embedding_scale_real = nullptr;  // one number each; NULL: 1
  const LoopQuantized* quantized_head = nullptr;
};

// The place of a matrix of a layer; NULL when the role is another one.
Linear LayerWeights::*matrix_of(Role role);
inline bool is_layer_matrix(Role role) { return matrix_of(role) != nullptr; }

// Places in an arena, of elements of `type`, that is laid out as `parameters` are. Quantized parameters are in none.
Weights weights_in(Buffer& arena, LoopDType type, const Architecture& config, const std::vector<Parameter>& parameters);

}  // namespace looplm
