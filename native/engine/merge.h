// A model without its adapter.
#pragma once
#include <memory>

#include "model.h"

namespace looplm {

// A fresh model without adapter whose matrices are W + scale·B A. Throws UNSUPPORTED when loops have their own adapters.
std::unique_ptr<Model> merged(const Model& model);

}  // namespace looplm
