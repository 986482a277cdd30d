// Per-row values of a token term: the arrays of its RowLoss, and those parts of a loss that are not one surrogate per row.
// Rows are those of the scored loops, [scored, R], loop by loop.
#pragma once
#include "loss_input.h"

namespace looplm {

// Whether coefficients depend on more than the row's own log-probability. If not, the head computes values and gradients in
// one pass.
bool needs_values(const LossTerm& term);

// w: weights of the scored loops for this term, [scored, R].
RowLoss row_loss(const LossInput& in, const LossRows& rows, const LossTerm& term, const RowTable& w);
// Adds the KL penalty and the entropy bonus.
void add_regularisers(const LossInput& in, const LossRows& rows, RowLoss& loss);

// -n (A S - τ/2 S²) per sequence, with S = Σ_jt w ρ.
double k15_loss(const LossInput& in, const LossRows& rows, const LossTerm& term, const RowTable& w);

// ρ = ℓ - ℓ_old. Empty without old log-probabilities: then every ratio is 1.
RowTable log_ratios(const LossInput& in, const LossRows& rows, const PredictionValues& old);
// Σ_t w_t ρ_t of each token.
std::vector<double> weighted_sum(const LossRows& rows, const RowTable& w, const RowTable& rho);

// The belief's returns G_1..G_K of one token; needs all loops to be scored.
std::vector<double> token_returns(const LossInput& in, const LossRows& rows, const LossTerm& term, size_t r);
void normalise(BeliefNorm norm, std::vector<double>& x);

// For weights that are not detached: adds ∂L/∂p_t = -n A ℓ_t.
void add_weight_gradient(const LossInput& in, const LossRows& rows, const LossTerm& term, const std::vector<double>& advantages,
                         std::vector<double>& d_pdf);

// LLDS: returns λ Σ v max(0, -ρ) over the segments whose Σ ρ is negative, and adds ∂L/∂ℓ to the coefficients.
double add_lazy_likelihood(const LossInput& in, const LossRows& rows, RowTable& coefficients);

}  // namespace looplm
