// What every row of a token term is worth: the arrays of its RowLoss, and the parts of a loss that are not one surrogate of a
// row. Rows are those of the scored loops, [scored, R] loop by loop.
#pragma once
#include "loss_input.h"

namespace looplm {

// A term whose rows need nothing but their own log-probability can go through the head in one pass with it.
bool needs_values(const LossTerm& term);

// w: the weights of the term's loops.
RowLoss row_loss(const LossInput& in, const LossRows& rows, const LossTerm& term, const RowTable& w);
// Adds the KL to the reference and the entropy bonus.
void add_regularisers(const LossInput& in, const LossRows& rows, RowLoss& loss);

// -n (A S - τ/2 S²) per sequence, S = Σ_jt w ρ.
double k15_loss(const LossInput& in, const LossRows& rows, const LossTerm& term, const RowTable& w);

// ℓ - ℓ_old; empty without old log-probabilities: every ratio is 1.
RowTable log_ratios(const LossInput& in, const LossRows& rows, const PredictionValues& old);
// Σ_t w_t ρ_t of each token.
std::vector<double> weighted_sum(const LossRows& rows, const RowTable& w, const RowTable& rho);

// The belief's returns of a token, G_1..G_K; every loop is scored then.
std::vector<double> token_returns(const LossInput& in, const LossRows& rows, const LossTerm& term, size_t r);
void normalise(BeliefNorm norm, std::vector<double>& x);

// Adds ∂L/∂p_t = -n A ℓ_t of attached weights.
void add_weight_gradient(const LossInput& in, const LossRows& rows, const LossTerm& term, const std::vector<double>& advantages,
                         std::vector<double>& d_pdf);

// λ Σ v max(0, -ρ) over the segments whose Σ ρ is negative (LLDS): returns it, and adds its ∂L/∂ℓ.
double add_lazy_likelihood(const LossInput& in, const LossRows& rows, RowTable& coefficients);

}  // namespace looplm
