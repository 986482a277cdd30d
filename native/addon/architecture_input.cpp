#include "architecture_input.h"

namespace looplm::addon {

namespace {

constexpr int64_t MANY = int64_t(1) << 30;

Step read_step(const Input& in) {
  Step step{};
  step.kind = in["kind"].word<Step::Kind>({{"embed", Step::Kind::embed},
                                           {"start", Step::Kind::start},
                                           {"state", Step::Kind::state},
                                           {"block", Step::Kind::block},
                                           {"norm", Step::Kind::norm},
                                           {"add", Step::Kind::add},
                                           {"inject", Step::Kind::inject},
                                           {"copy", Step::Kind::copy}});
  step.to = int32_t(in["to"].integer(0, 64));
  if (!in["from"].missing()) step.from = int32_t(in["from"].integer(0, 64));
  if (!in["index"].missing()) step.index = int32_t(in["index"].integer(-1, 1 << 16));
  if (!in["scale"].missing()) step.scale = in["scale"].number();
  return step;
}

std::vector<Step> read_steps(const Input& in) {
  std::vector<Step> steps;
  for (uint32_t i = 0; i < in.length(); i++) steps.push_back(read_step(in[i]));
  return steps;
}

ParameterForm read_parameter(const Input& in) {
  ParameterForm p;
  p.name = in["name"].text();
  p.shape = in["shape"].integers();
  p.role = in["role"].word<Role>({{"embedding", Role::embedding},
                                  {"head", Role::head},
                                  {"exitGate", Role::exit_gate},
                                  {"exitGateBias", Role::exit_gate_bias},
                                  {"norm", Role::norm},
                                  {"inject", Role::inject},
                                  {"start", Role::start},
                                  {"attention", Role::attention},
                                  {"attentionBias", Role::attention_bias},
                                  {"attentionOutput", Role::attention_output},
                                  {"attentionOutputBias", Role::attention_output_bias},
                                  {"gateUp", Role::gate_up},
                                  {"gateUpBias", Role::gate_up_bias},
                                  {"down", Role::down},
                                  {"downBias", Role::down_bias},
                                  {"attentionNorm", Role::attention_norm},
                                  {"attentionNorm2", Role::attention_norm_2},
                                  {"mlpNorm", Role::mlp_norm},
                                  {"mlpNorm2", Role::mlp_norm_2},
                                  {"queryNorm", Role::query_norm},
                                  {"keyNorm", Role::key_norm}});
  if (!in["index"].missing()) p.index = int32_t(in["index"].integer(0, 1 << 16));
  if (!in["firstRow"].missing()) p.first_row = in["firstRow"].integer(0, int64_t(1) << 40);
  p.initial = in["initial"].word<Initial>({{"normal", Initial::normal},
                                           {"truncatedNormal", Initial::truncated_normal},
                                           {"ones", Initial::ones},
                                           {"zeros", Initial::zeros}});
  if (!in["deviation"].missing()) p.deviations = {in["deviation"].number()};
  const Input parts = in["deviations"];
  if (!parts.missing()) p.deviations.clear();
  for (uint32_t i = 0; !parts.missing() && i < parts.length(); i++) p.deviations.push_back(parts[i].number());
  return p;
}

}  // namespace

Architecture read_architecture(const Input& in) {
  Architecture a;
  a.family = in["family"].text();
  a.vocabulary = in["vocabulary"].integer(1, MANY);
  a.hidden = in["hidden"].integer(1, MANY);
  a.intermediate = in["intermediate"].integer(1, MANY);
  a.layers = int32_t(in["layers"].integer(1, 1 << 16));
  a.heads = int32_t(in["heads"].integer(1, 1 << 16));
  a.kv_heads = int32_t(in["kvHeads"].integer(1, 1 << 16));
  a.head_dim = int32_t(in["headDim"].integer(2, 1 << 14));
  a.loops = int32_t(in["loops"].integer(1, 1 << 10));
  a.norm_eps = in["normEps"].number();
  const Input rotary = in["rotary"], scaling = rotary["scaling"];
  a.rotary.theta = rotary["theta"].number();
  if (!rotary["pairs"].missing()) a.rotary.neighbours = rotary["pairs"].word<bool>({{"halves", false}, {"neighbours", true}});
  if (!scaling.missing()) {
    a.rotary.factor = scaling["factor"].number(), a.rotary.original = scaling["original"].number();
    a.rotary.low = scaling["low"].number(), a.rotary.high = scaling["high"].number();
  }
  if (!in["queryKeyNorm"].missing())
    a.query_key_norm = in["queryKeyNorm"].word<QueryKeyNorm>(
        {{"none", QueryKeyNorm::none}, {"head", QueryKeyNorm::head}, {"all", QueryKeyNorm::all}});
  if (!in["attentionGate"].missing()) a.attention_gate = in["attentionGate"].flag();
  if (!in["prefixSeesItself"].missing()) a.prefix_sees_itself = in["prefixSeesItself"].flag();
  if (!in["stateDeviation"].missing()) a.state_deviation = in["stateDeviation"].number();
  a.residual = in["residual"].word<Residual>(
      {{"pre", Residual::pre}, {"sandwich", Residual::sandwich}, {"normed", Residual::normed}, {"post", Residual::post}});
  a.tied = in["tied"].flag();
  a.exit_gate = in["exitGate"].flag();
  if (!in["fixedLoops"].missing()) a.fixed_loops = in["fixedLoops"].flag();
  if (!in["sharedPlanes"].missing()) a.shared_planes = in["sharedPlanes"].flag();
  a.registers = int32_t(in["registers"].integer(1, 8));
  a.begin = read_steps(in["begin"]);
  a.loop = read_steps(in["loop"]);
  a.read = read_steps(in["read"]);
  const Input parameters = in["parameters"];
  for (uint32_t i = 0; i < parameters.length(); i++) a.parameters.push_back(read_parameter(parameters[i]));
  const Input ignored = in["ignored"];
  for (uint32_t i = 0; !ignored.missing() && i < ignored.length(); i++) a.ignored.push_back(ignored[i].text());
  a.check();
  return a;
}

}  // namespace looplm::addon
