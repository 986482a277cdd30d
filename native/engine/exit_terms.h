// The exit channel: policy gradients through log p of the loop at which a token exits, and the entropy of the exit
// distribution.
#pragma once
#include "loss_input.h"

namespace looplm {

// -n mean_g A_g log p_{t_g} over the exits t_g of each token, which the batch gives or which are drawn from p. Adds
// ∂L/∂log p to d_log_pdf, [K, R].
double add_exit_term(const LossInput& in, const LossRows& rows, const LossTerm& term, std::vector<double>& d_log_pdf);

// -n H(p) times the objective's exit entropy weight. Adds ∂L/∂p to d_pdf, [K, R].
double add_exit_entropy(const LossInput& in, const LossRows& rows, std::vector<double>& d_pdf);

// Whether the objective has a gradient with respect to the exit distribution p.
bool trains_exits(const Objective& objective);

}  // namespace looplm
