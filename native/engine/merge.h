// Merging an adapter into its base model.
#pragma once
#include <memory>

#include "model.h"

namespace looplm {

// Returns a new model without an adapter whose matrices are W + scale · B A. Throws UNSUPPORTED if loops have separate
// adapters.
std::unique_ptr<Model> merged(const Model& model);

}  // namespace looplm
