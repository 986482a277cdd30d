// AdamW with float32 master weights and moments (math.md §6).
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "data_parallel.h"
#include "model.h"

namespace looplm {

struct AdamWOptions {
  double learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weight_decay = 0;
  std::vector<std::string> only;  // names of the parameters to update; empty: all
  double max_grad_norm = 0;       // 0: no clipping. Gradients are scaled by min(1, max / (norm + 1e-6))
  bool failed = false;  // this rank could not compute its gradients: the step fails on all ranks, as for a gradient that is
                        // not finite
};

// Upper bounds on the magnitude of every parameter, first moment and second moment.
struct AdamWBounds {
  double parameter, first, second;
};

class AdamW {
 public:
  // world: the ranks that train this model together. Each rank has the same parameters and keeps the state of its own shares
  // only (data_parallel.h).
  explicit AdamW(std::shared_ptr<Model> model, std::shared_ptr<Communicator> world = nullptr);
  // One step with the model's gradients, summed over the ranks. Zeroes the gradients and returns their norm before clipping.
  // Throws NON_FINITE and changes nothing, on all ranks alike, if a gradient is not finite (the error names its parameter),
  // or if the options could take parameters or moments out of the range of real. The ranks' gradients then keep their total,
  // but not each rank its own, so the step can be repeated and more can be accumulated.
  double step(const AdamWOptions& options);
  int64_t steps() const { return steps_; }
  // NULL if only one process trains.
  DataParallel* parallel() { return parallel_.get(); }
  // Moments, masters and step count, exactly. A single process writes whole tensors; in a parallel run each rank writes its
  // share. `load` takes one complete file, or the files of all ranks from a run with any number of ranks. It reads what this
  // rank owns, and refuses files of another model.
  void save(const std::string& path) const;
  void load(const std::vector<std::string>& paths);  // load the model's parameters first: the masters must round to them

 private:
  // A range of elements of one parameter that this rank owns.
  struct Piece {
    size_t parameter;     // index among the trained parameters
    size_t first, count;  // elements of the parameter
    size_t state;         // index of the state of the first element
  };
  void find_pieces();
  size_t state_elements() const;
  // Σ x² over the owned elements of each trained parameter. data(parameter, piece) returns a pointer to the reals of a piece.
  template <class Data>
  std::vector<double> sums_of_squares(Data data) const;
  struct Norm {
    double value;
    const Parameter* culprit;  // the parameter at which the running sum stopped being finite
  };
  // Norm of the gradients of all ranks. On return, anew is true if any rank does not know its bounds.
  Norm measure_gradients(bool failed, bool& anew) const;
  void update(const AdamWOptions& options, double gradient_scale);

  template <class B>
  struct State {
    const char* prefix;  // of the tensor's name in a file
    B* buffer;
  };
  // self: *this. Templated, so that a const optimizer gives const buffers.
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
  const uint64_t layout_;  // of the trained parameters
  std::unique_ptr<DataParallel> parallel_;
  std::vector<Piece> pieces_;  // in the order of the arena
  Buffer first_, second_;      // real
  mutable Buffer master_;      // real; only for bfloat16 models
  mutable uint64_t version_;   // version of the parameters that the masters belong to; if the model's version differs, they
                               // are refreshed
  int64_t steps_ = 0;
  AdamWBounds bounds_{};
  uint64_t bounded_;  // version of the parameters for which the bounds hold
};

double gradient_norm(Model& model);

}  // namespace looplm
