// AdamW with float32 masters and moments (math.md §6).
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "data_parallel.h"
#include "model.h"

namespace looplm {

struct AdamWOptions {
  double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
  std::vector<std::string> only;  // names of the parameters that change; empty: all
  double max_grad_norm = 0;       // 0: no clipping. Factor min(1, max / (norm + 1e-6))
  bool failed = false;  // this rank's gradients could not be made: the step fails on all ranks, as one that is not finite
};

// No parameter, first or second moment is larger in magnitude.
struct AdamWBounds {
  double parameter, first, second;
};

class AdamW {
 public:
  // `world`: the ranks that train this model together. Each of them has the same parameters, and keeps the state of its shares
  // alone (data_parallel.h).
  explicit AdamW(std::shared_ptr<Model> model, std::shared_ptr<Communicator> world = nullptr);
  // One step on the model's gradients, summed over the ranks, which are then zeroed. Returns the gradient's norm before clipping.
  // Throws NON_FINITE, and changes nothing, when a gradient is not finite (the error names its parameter) or when options and
  // gradients could take parameters or moments out of the range of real; on all ranks alike.
  double step(const AdamWOptions& options);
  int64_t steps() const { return steps_; }
  // NULL when one process trains.
  DataParallel* parallel() { return parallel_.get(); }
  // Moments, masters and the step count, exactly: whole tensors where one process trains, else this rank's share. `load` takes
  // one whole file, or the shares of all ranks of a world of any size; it reads what this rank owns, and refuses another model's.
  void save(const std::string& path) const;
  void load(const std::vector<std::string>& paths);  // after the model's own parameters, which the masters must round to

 private:
  // A run of elements of one parameter that this rank owns.
  struct Piece {
    size_t parameter;     // its index among the trained ones
    size_t first, count;  // elements of the parameter
    size_t state;         // where the first one's state is, in elements
  };
  void find_pieces();
  size_t state_elements() const;
  // Σ x² over what this rank owns of each trained parameter; data(parameter, piece) points to the reals.
  template <class Data>
  std::vector<double> sums_of_squares(Data data) const;
  struct Norm {
    double value;
    const Parameter* culprit;  // where the running sum stopped being finite
  };
  // Of the gradients of all ranks. `anew`: set when a rank does not know its bounds.
  Norm measure_gradients(bool failed, bool& anew) const;
  void update(const AdamWOptions& options, double gradient_scale);

  template <class B>
  struct State {
    const char* prefix;  // of the tensor's name in a file
    B* buffer;
  };
  // self: this; what is written to is not const.
  template <class Self>
  static auto states(Self& self) {
    std::vector<State<std::remove_reference_t<decltype((self.first_))>>> out = {{"first.", &self.first_},
                                                                                {"second.", &self.second_}};
    if (self.master_) out.push_back({"master.", &self.master_});
    return out;
  }
  void check_layout() const;
  void refresh_masters() const;

  AdamWBounds measured() const;

  std::shared_ptr<Model> model_;
  const uint64_t layout_;  // of what is trained
  std::unique_ptr<DataParallel> parallel_;
  std::vector<Piece> pieces_;  // in the order of the arena
  Buffer first_, second_;      // real
  mutable Buffer master_;      // real; only when the model is bfloat16
  mutable uint64_t version_;   // of the parameters that the masters stand for: when the model's moved on, they are made anew
  int64_t steps_ = 0;
  AdamWBounds bounds_{};
  uint64_t bounded_;  // the version of the parameters that the bounds hold for
};

double gradient_norm(Model& model);

}  // namespace looplm
