// The exit channel: policy gradients through log p of the loop that a token leaves at, and the entropy of the exits.
#pragma once
#include "loss_input.h"

namespace looplm {

// -n mean_g A_g log p_{t_g} over the exits of each token: the batch's, or draws from p. Adds ∂L/∂p, [K, R].
double add_exit_term(const LossInput& in, const LossRows& rows, const LossTerm& term, std::vector<double>& d_pdf);

// -n H(p) times the objective's weight. Adds ∂L/∂p.
double add_exit_entropy(const LossInput& in, const LossRows& rows, std::vector<double>& d_pdf);

// Whether ∂L/∂p of an objective is not zero everywhere.
bool trains_exits(const Objective& objective);

}  // namespace looplm
